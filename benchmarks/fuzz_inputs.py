"""The inputs of fuzz.py: small valid files of every kind, and what damages them (bytes, numbers, structure)."""

from __future__ import annotations

import copy
import gzip
import io
import json
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from detseg.coco.predictions_file import write_predictions
from detseg.models.weights.files import Weights, write_weights
from detseg.runs.checkpoint import save_checkpoint
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions

SIDE = 32  # pixels of the images
ODD_VALUES: list[Any] = [
    *[-1, 0, 1, 2**15, 2**31, 2**63, -(2**40), 10**30, 1.5, 1e300, float("nan"), float("inf"), True, False, None],
    *["", "3", "a\0b", "\ud800", "x" * 300, "../../x", "=1+1", [], {}, [[]], [1], {"a": 1}],
]


def odd_value(random: np.random.Generator) -> Any:
    return copy.deepcopy(ODD_VALUES[random.integers(0, len(ODD_VALUES))])


def change_bytes(random: np.random.Generator, data: bytes) -> bytes:
    """Change a few bytes: other ones, missing, repeated or cut off; numbers of 1, 2, 4 or 8 bytes at their limits."""
    changed = bytearray(data)
    for _ in range(random.integers(1, 5)):
        at = int(random.integers(0, len(changed) + 1))
        if random.random() < 0.4:
            at = min(at, int(random.integers(0, 200)))  # headers decide most
        length = int(2 ** random.integers(0, 6))
        action = random.integers(0, 7)
        if action == 0:
            changed[at : at + 1] = random.bytes(1)
        elif action == 1:
            del changed[at : at + length]
        elif action == 2:
            changed[at:at] = changed[at : at + length]
        elif action == 3:
            changed[at:at] = random.bytes(length)
        elif action == 4 and random.random() < 0.3:
            del changed[at:]
        else:
            width = int(2 ** random.integers(0, 4))
            number = [0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (4 * width), 8][random.integers(0, 6)]
            order = "little" if random.random() < 0.7 else "big"
            changed[at : at + width] = number.to_bytes(width, order)
    return bytes(changed)


def change_tree(random: np.random.Generator, value: Any) -> Any:
    """Change values somewhere in nested lists and dicts: odd ones, missing, twice, or from another place."""
    value = copy.deepcopy(value)
    for _ in range(random.integers(1, 4)):
        places = _places(value)
        if not places:
            return odd_value(random)
        holder, key = places[random.integers(0, len(places))]
        action = random.integers(0, 6)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, list):
            holder.append(holder[key])
        elif action == 2:
            other, there = places[random.integers(0, len(places))]
            holder[key] = copy.deepcopy(other[there])
        elif action == 3 and isinstance(holder, dict):
            holder[str(odd_value(random))] = holder.pop(key)
        elif action == 4 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = holder[key] * float(random.choice([-1, 0.5, 1e6])) + float(random.integers(-2, 3))
        else:
            holder[key] = odd_value(random)
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    found = [(value, key) for key, _ in items]
    for _, item in items:
        if isinstance(item, (dict, list)):
            found += _places(item)
    return found


def change_json(random: np.random.Generator, data: bytes) -> bytes:
    """Change the tree of a JSON file (gzip or not), its bytes, or both."""
    is_packed = data[:2] == b"\x1f\x8b"
    if random.random() < 0.1:
        return change_bytes(random, data)
    text = gzip.decompress(data) if is_packed else data
    if random.random() < 0.8:
        text = json.dumps(change_tree(random, json.loads(text))).encode()
    else:
        text = change_bytes(random, text)
    if random.random() < 0.002:
        place = int(random.integers(0, len(text)))
        text = text[:place] + [b"[" * 100_000, b" " * 2**27, b"9" * 10_000][random.integers(0, 3)] + text[place:]
    return gzip.compress(text, 1) if is_packed else text


YAML_PARTS = [
    "[" * 5000,
    "2018-99-99",
    "7" * 6000,
    "1" + ":59" * 50_000,
    "&a [*a]",
    "{<<: {a: 1}}",
    "!!python/name:os.x",
]


def change_yaml(random: np.random.Generator, data: bytes) -> bytes:
    if random.random() < 0.3:
        return change_bytes(random, data)
    text = yaml.safe_dump(change_tree(random, yaml.safe_load(data)), allow_unicode=False)
    if random.random() < 0.2:
        line = text.split("\n")[int(random.integers(0, text.count("\n") + 1))]
        text = text.replace(line, f"{line.partition(':')[0]}: {YAML_PARTS[random.integers(0, len(YAML_PARTS))]}", 1)
    return text.encode("utf-8", "replace")


def change_archive(random: np.random.Generator, data: bytes) -> bytes:
    """Change what a part of a zip archive holds, or the bytes of the archive or of any other file."""
    return (
        change_parts(random, data) if data.startswith(b"PK") and random.random() < 0.7 else change_bytes(random, data)
    )


def change_parts(random: np.random.Generator, data: bytes) -> bytes:
    """Change what a part of a zip archive holds, mostly the first; JSON as such. The archive itself stays whole."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w") as archive:
        names = source.namelist()
        chosen = names[0] if random.random() < 0.7 else names[random.integers(0, len(names))]
        for name in names:
            content = source.read(name)
            if name == chosen:
                content = (change_json if content.startswith(b"{") else change_bytes)(random, content)
            archive.writestr(name, content)
    return stream.getvalue()


def change_text(random: np.random.Generator, data: bytes) -> bytes:
    """Change words of a table or list, or its bytes."""
    if random.random() < 0.3:
        return change_bytes(random, data)
    words = data.decode("latin-1").replace(",", " , ").split(" ")
    for _ in range(random.integers(1, 4)):
        words[random.integers(0, len(words))] = str(odd_value(random))
    return "".join(words).encode("utf-8", "replace") if b"," in data else " ".join(words).encode("utf-8", "replace")


def change_rle(random: np.random.Generator, _: bytes) -> bytes:
    """Noise of any density, or blocks, which give long runs; valid, or with damaged text, counts or sizes."""
    height, width = (int(side) for side in random.integers(1, 25, 2))
    mask = random.random((height, width)) < random.random()
    if random.random() < 0.5:
        mask[:] = False
        for _ in range(random.integers(0, 4)):
            y, x = random.integers(0, height), random.integers(0, width)
            mask[y : y + random.integers(1, 12), x : x + random.integers(1, 12)] ^= True
    size: list[Any] = [height, width]
    text = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode()
    kind = random.integers(0, 5)
    odd = odd_value(random)
    if kind == 0:
        return json.dumps({"size": size, "counts": text, "valid": True}).encode()
    if kind == 1:
        text = change_bytes(random, text.encode()).decode("latin-1")
    elif kind == 2:
        text = random.bytes(int(random.integers(0, 20))).decode("latin-1")
    elif kind == 3:
        size[random.integers(0, 2)] = odd
        size = [size, size[:1], [*size, 1], odd][random.integers(0, 4)]
    else:
        cuts = np.sort(random.integers(0, height * width + 1, random.integers(0, 8)))
        counts: list[Any] = np.diff(cuts, prepend=0, append=height * width).tolist()
        if random.random() < 0.7:
            counts[random.integers(0, len(counts))] = odd
        return json.dumps({"size": size, "counts": counts}).encode()
    return json.dumps({"size": size, "counts": text}).encode()


# Valid files.


def saved(write: Callable[[Any], Any]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def written(write: Callable[[Path], Any], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def make_images() -> list[bytes]:
    random = np.random.default_rng(0)
    gray = random.integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    color = random.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    images = [Image.fromarray(gray), Image.fromarray(color), Image.fromarray(color).convert("P")]
    files = [saved(lambda f, i=i, k=k: i.save(f, k)) for i in images for k in ("PNG", "BMP", "TIFF")]
    files += [saved(lambda f, i=i: i.save(f, "JPEG")) for i in images[:2]]
    files.append(saved(lambda f: Image.fromarray(gray.astype(np.uint16) * 200).save(f, "PNG")))
    tiffs: list[tuple[np.ndarray, dict[str, Any]]] = [
        (gray, {}),
        (gray, {"compression": "zlib", "predictor": True}),
        (np.stack([gray] * 6), {"imagej": True, "metadata": {"axes": "ZYX"}}),
        (np.stack([gray] * 3), {"ome": True, "metadata": {"axes": "CYX", "PhysicalSizeX": 0.5}}),
        (color, {"tile": (16, 16), "photometric": "rgb"}),
        (gray.astype(np.float32), {"bigtiff": True, "rowsperstrip": 5}),
        (gray.astype(np.uint16), {"byteorder": ">"}),
    ]
    return files + [saved(lambda f, a=a, o=o: tifffile.imwrite(f, a, **o)) for a, o in tiffs]


def make_labels() -> list[bytes]:
    labels = np.repeat(np.repeat(np.arange(16).reshape(4, 4), 8, axis=0), 8, axis=1)
    types = (np.uint8, np.uint16, np.int32, np.float32)
    files = [saved(lambda f, t=t: tifffile.imwrite(f, labels.astype(t), compression="zlib")) for t in types]
    return [*files, saved(lambda f: Image.fromarray(labels.astype(np.uint16)).save(f, "PNG"))]


def make_npy() -> list[bytes]:
    arrays = [np.zeros((SIDE, SIDE), np.uint8), np.ones((3, SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE, 3), bool)]
    return [saved(lambda f, a=a: np.save(f, a)) for a in arrays]


def some_rles() -> list[dict[str, Any]]:
    masks = np.zeros((2, SIDE, SIDE), dtype=bool)
    masks[0, 3:9, 4:20] = masks[1, 20:30, 1:7] = True
    return [rle_codec.encode_mask(mask) for mask in masks]


def make_coco() -> list[bytes]:
    first, second = ({**rle, "counts": rle["counts"].decode()} for rle in some_rles())
    masks = [first, second, [[1, 1, 20.5, 1, 20, 20]], {"size": [SIDE, SIDE], "counts": [100, 20, 904]}]
    rows = [
        {"id": n, "image_id": 1 + n % 2, "category_id": 1 + n % 2, "segmentation": mask, "iscrowd": int(n == 3)}
        | {"bbox": [1, 1, 5, 5], "area": 25}
        for n, mask in enumerate(masks)
    ]
    images = [{"id": n, "file_name": f"{n}.png", "height": SIDE, "width": SIDE} for n in (1, 2)]
    content = {"info": {"image_root": "."}, "images": images, "annotations": rows}
    content["categories"] = [{"id": 1, "name": "cell"}, {"id": 2, "name": "debris"}]
    text = json.dumps(content).encode()
    return [text, gzip.compress(text, 1)]


def make_predictions() -> list[bytes]:
    images = [
        Predictions(
            image_id=n,
            file_name=f"{n}.png",
            height=SIDE,
            width=SIDE,
            boxes=np.array([[4, 3, 20, 9], [1, 20, 7, 30]], np.float32),
            scores=np.array([0.9, 0.5], np.float32),
            classes=np.array([0, 1]),
            rles=some_rles(),
        )
        for n in (1, 2)
    ]
    files = [
        written(lambda path: write_predictions(path, images, ["a", "b"]), name) for name in ("a.json", "a.json.gz")
    ]
    content = json.loads(files[0])
    return [*files, json.dumps(content["annotations"]).encode(), json.dumps(content, indent=1).encode()]


def make_geojson() -> list[bytes]:
    square = [[[1, 1], [20, 1], [20, 20], [1, 1]], [[4, 4], [9, 4], [9, 9], [4, 4]]]
    features = [
        {"type": "Feature", "geometry": {"type": kind, "coordinates": places}, "properties": properties}
        for kind, places in (("Polygon", square), ("MultiPolygon", [square]))
        for properties in ({"objectType": "cell", "classification": {"name": "Tumor"}}, {"classification": "x"})
    ]
    return [json.dumps({"type": "FeatureCollection", "features": features}).encode(), json.dumps(features).encode()]


def make_rois() -> list[bytes]:
    from roifile import ImagejRoi

    roi = ImagejRoi.frompoints(np.array([[1, 1], [20, 1], [20, 20], [1, 20]])).tobytes()
    part = ImagejRoi.frompoints(np.array([[1.5, 1], [20.25, 1], [20, 20.5]])).tobytes()

    def archive(file: Any) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr("a.roi", roi)
            opened.writestr("b.roi", part)

    return [roi, part, saved(archive)]


def make_cellpose() -> list[bytes]:
    content = {"masks": np.eye(SIDE, dtype=np.uint16), "outlines": np.eye(SIDE, dtype=np.uint16), "filename": "a.png"}
    return [saved(lambda f: np.save(f, np.array(content, dtype=object), allow_pickle=True))]


def some_weights() -> dict[str, torch.Tensor]:
    names = ("backbone.a.weight", "backbone.a.bias", "head.weight")
    return {name: torch.arange(12.0).reshape(3, 4) for name in names}


def make_weights() -> list[bytes]:
    state = some_weights()
    files = [written(lambda path: write_weights(path, Weights(state)), f"a{end}") for end in (".pth", ".safetensors")]
    arrays = {"model": {name: value.numpy() for name, value in state.items()}}
    files += [pickle.dumps(arrays, protocol=protocol) for protocol in (0, 2, 4)]
    return [*files, saved(lambda f: torch.save({"model": state}, f, _use_new_zipfile_serialization=False))]


def make_checkpoints() -> list[bytes]:
    state = some_weights()
    content = {
        "model": state,
        "ema": {"model": state, "updates": 3},
        "config": {"INPUT.FORMAT": "RGB"},
        "classes": ["cell"],
        "iteration": 3,
        "position": 6,
        "optimizer": {"state": {0: {"m": state["head.weight"]}}},
        "rng": {"torch": torch.get_rng_state(), "cuda": []},
        "progress": {"best": {}, "window": {}},
    }
    content["optimizer"]["param_groups"] = [{"lr": 0.1, "params": [0]}]  # type: ignore[index]
    return [written(lambda path: save_checkpoint(path, content), "a.pth")]


def make_archives() -> list[bytes]:
    """Images in a zip archive, as data sets are downloaded."""

    def archive(file: Any) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
            for number, image in enumerate(make_images()[::5]):
                opened.writestr(f"images/{number}.png", image)

    return [saved(archive)]


def make_zarr() -> list[bytes]:
    """Folders of version 2 and 3, plain arrays and an OME-Zarr image, each in a zip archive."""
    import zarr

    array = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)
    files = []
    for version in (2, 3):
        for is_ome in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                if is_ome:
                    group = zarr.open_group(folder, mode="w", zarr_format=version)
                    axes = [{"name": letter, "type": "space", "unit": "micrometer"} for letter in "yx"]
                    scale = [{"type": "scale", "scale": [0.5, 0.5]}]
                    levels = [{"path": "0", "coordinateTransformations": scale}]
                    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
                where = f"{folder}/0" if is_ome else folder
                zarr.create_array(where, data=array, chunks=(16, 16), zarr_format=version)
                files.append(saved(lambda file, folder=folder: _pack(file, Path(folder))))
    return files


def _pack(file: Any, folder: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        # What says of what kind the folder is comes first, because the first file is changed most.
        for path in sorted(folder.rglob("*"), key=lambda path: ("z" not in path.name, path)):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())


CONFIG = b"MODEL:\n  ROI_HEADS: {NUM_CLASSES: 3}\nSOLVER: {BASE_LR: 0.01, STEPS: [10, 20]}\nSEED: 3\n"
CATALOG = b"""
- {name: one, json: one/train.json, image_root: one, classes: [a, b], prepare: get it}
- {name: two, generate: synthetic, split: train, options: {images: 3}}
"""
SOURCES = b"""
- {name: one, title: One, files: [{url: "https://a.org/{a}", path: "{a}.zip", bytes: 3, sha256: ab}], each: {a: [b]}}
- {name: two, kaggle: [competitions, download], files: [{path: a.zip}], folder: one}
"""
FOLDS = [b"file_name,fold\na.png,0\nb.png,1\nc.png,-1\n", b"file_name;fold\na.png;0\nb.png;1\n"]
SUBMISSIONS = [
    b"id,annotation\na,1 3 40 5\na,300 5\nb,9 9\n",
    b"ImageId,EncodedPixels\na,1 3 40 5\nb,\n",
]
