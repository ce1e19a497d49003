"""The inputs of fuzz.py: small valid files of every kind, which fuzz_changes.py damages."""

from __future__ import annotations

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
from PIL import Image

from detseg.coco.predictions_file import write_predictions
from detseg.models.weights.files import Weights, write_weights
from detseg.runs.checkpoint import save_checkpoint
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions

SIDE = 32  # pixels of the images


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
