"""Damaged and hostile files of every kind that detseg reads: a reader answers, or refuses with a DetsegError.

    python benchmarks/fuzz.py [--kinds coco image ...] [--cases 1000] [--seed 0] [--failures fuzz_failures]

Valid files are made in memory and changed: bytes, numbers and structure. Every input is read in a child process that
may take 2 GB more than it began with and 30 s of processor time. Anything but an answer or a DetsegError (another
exception, the end of the process, memory or time beyond the limits) is a failure: its input is saved, and the exit
status is 1. `--cases` are those of every kind; the same seed gives the same inputs.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import io
import json
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_file import read_predictions, write_predictions
from detseg.config.loading import load_config
from detseg.data.folds import read_index
from detseg.errors import DataError, DetsegError
from detseg.files.table import read_table
from detseg.formats.cellpose import read_seg_npy
from detseg.formats.geojson import read_features
from detseg.formats.imagej import read_roi_file
from detseg.formats.run_lengths import read_pairs, to_rles
from detseg.fusion.options import FusionOptions
from detseg.fusion.postprocess import Postprocess
from detseg.images.reading import read_image, read_label_image
from detseg.models.weights.files import Weights, read_weights, write_weights
from detseg.runs.checkpoint import load_checkpoint, save_checkpoint
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions

MEMORY = 2 * 2**30  # bytes
SECONDS = 30  # of processor time
SIDE = 32  # pixels of the images
ODD_VALUES: list[Any] = [
    *[-1, 0, 1, 2**15, 2**31, 2**63, -(2**40), 10**30, 1.5, 1e300, float("nan"), float("inf"), True, False, None],
    *["", "3", "a\0b", "\ud800", "x" * 300, "../../x", "=1+1", [], {}, [[]], [1], {"a": 1}],
]


@dataclass
class Kind:
    """How a kind of file is made, changed and read. make: valid files. change: of one, with a generator of numbers."""

    suffix: str
    make: Callable[[], list[bytes]]
    read: Callable[[Path], Any]
    change: Callable[[np.random.Generator, bytes], bytes]


# Changes.


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
    if random.random() < 0.02:
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
    """Change what the parts of a zip archive hold, with right checksums; or its bytes."""
    if not data.startswith(b"PK") or random.random() < 0.3:
        return change_bytes(random, data)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w") as archive:
        names = source.namelist()
        chosen = names[0] if random.random() < 0.7 else names[random.integers(0, len(names))]
        for name in names:
            content = source.read(name)
            archive.writestr(name, change_bytes(random, content) if name == chosen else content)
    return stream.getvalue()


def change_text(random: np.random.Generator, data: bytes) -> bytes:
    """Change words of a table or list, or its bytes."""
    if random.random() < 0.3:
        return change_bytes(random, data)
    words = data.decode("latin-1").replace(",", " , ").split(" ")
    for _ in range(random.integers(1, 4)):
        words[random.integers(0, len(words))] = str(odd_value(random))
    return "".join(words).encode("utf-8", "replace") if b"," in data else " ".join(words).encode("utf-8", "replace")


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


# Reading, and what is asked of the answer.


def read_coco(path: Path) -> None:
    dataset = CocoDataset.load(path)
    for index in range(len(dataset)):
        rles = dataset.annotations(index).rles
        for rle in rles:
            assert rle_codec.decode(rle).shape == (dataset.images[index].height, dataset.images[index].width)


def read_checkpoint(path: Path) -> None:
    load_checkpoint(path, for_training=True)


def read_weights_of_kind(path: Path) -> None:
    for value in read_weights(path).state.values():
        value.clone()


def read_rle(path: Path) -> None:
    """A mask must be accepted with the size that it claims, its area and box, and survive being written again."""
    content = json.loads(path.read_bytes())
    rle = {"size": content["size"], "counts": content["counts"]}
    if isinstance(rle["counts"], str):
        rle["counts"] = rle["counts"].encode("latin-1")
    expected = content.get("valid") and np.asfortranarray(
        coco_mask.decode({"size": rle["size"], "counts": rle["counts"]}).astype(bool)
    )
    try:
        mask = rle_codec.decode(rle)
    except DataError:
        assert expected is None or expected is False or not content.get("valid"), "a valid RLE was refused"
        raise
    if content.get("valid"):
        assert np.array_equal(mask, expected), "decoded to another mask"
        assert rle_codec.encode_mask(mask)["counts"] == rle["counts"], "pycocotools writes another text"
    assert list(mask.shape) == [int(side) for side in rle["size"]], f"decoded to {mask.shape}"
    assert rle_codec.area([rle])[0] == mask.sum(), "the area is not that of the mask"
    crop, x0, y0 = rle_codec.decode_crop(rle)
    box = [x0, y0, x0 + crop.shape[1], y0 + crop.shape[0]]
    assert not mask.any() or rle_codec.bounding_boxes([rle])[0].tolist() == box, "box and crop differ"
    again = rle_codec.decode(rle_codec.encode_crop(crop, x0, y0, *mask.shape))
    assert np.array_equal(again, mask), "lost when written again"


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


def read_submission_masks(path: Path) -> None:
    table = read_table(path, ["id", "annotation"])
    masks = [read_pairs(row.values["annotation"], SIDE * SIDE) for row in table.rows]
    for by_rows in (True, False):
        rle_codec.area(to_rles(masks, SIDE, SIDE, by_rows=by_rows))


def settings_kind(settings: Any) -> Kind:
    valid = yaml.safe_dump(settings().to_dict()).encode()
    return Kind(".yaml", lambda: [valid], settings.load, change_yaml)


def bytes_kind(suffix: str, make: Any, read: Callable[..., Any], change: Any, *sides: int) -> Kind:
    return Kind(suffix, make, lambda path: read(path.read_bytes(), path.name, *sides), change)


CONFIG = b"MODEL:\n  ROI_HEADS: {NUM_CLASSES: 3}\nSOLVER: {BASE_LR: 0.01, STEPS: [10, 20]}\nSEED: 3\n"
FOLDS = b"file_name,fold\na.png,0\nb.png,1\nc.png,-1\n"
KINDS = {
    "image": Kind(".bin", make_images, read_image, change_bytes),
    "npy": Kind(".npy", make_npy, read_image, change_bytes),
    "labels": Kind(".tif", make_labels, read_label_image, change_bytes),
    "coco": Kind(".json", make_coco, read_coco, change_json),
    "predictions": Kind(".json", make_predictions, lambda path: list(read_predictions(path)), change_json),
    "config": Kind(".yaml", lambda: [CONFIG], load_config, change_yaml),
    "postprocess": settings_kind(Postprocess),
    "fusion": settings_kind(FusionOptions),
    "folds": Kind(".yaml", lambda: [b"0: [a.png, b.png]\n1: [c.png]\n"], read_index, change_yaml),
    "table": Kind(".csv", lambda: [FOLDS, FOLDS.replace(b",", b";")], read_index, change_text),
    "submission": Kind(".csv", lambda: [b"id,annotation\na,1 3 40 5\nb,9 9\n"], read_submission_masks, change_text),
    "geojson": bytes_kind(".geojson", make_geojson, read_features, change_json, SIDE, SIDE),
    "roi": bytes_kind(".zip", make_rois, read_roi_file, change_archive, SIDE, SIDE),
    "cellpose": bytes_kind("_seg.npy", make_cellpose, read_seg_npy, change_bytes),
    "weights": Kind(".pth", make_weights, read_weights_of_kind, change_archive),
    "checkpoint": Kind(".pth", make_checkpoints, read_checkpoint, change_archive),
    "rle": Kind(".json", lambda: [b""], read_rle, change_rle),
}


def make_case(name: str, number: int, seed: int, valid: list[bytes]) -> bytes:
    random = np.random.default_rng([seed, list(KINDS).index(name), number])
    return KINDS[name].change(random, valid[number % len(valid)])


def work(name: str, numbers: range, seed: int, valid: list[bytes], path: Path, reports: Any) -> None:
    """In a child process: read the cases one after the other, and report (number, what became of it)."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.environ["DETSEG_MAX_PIXELS"] = str(2**24)  # the limits of memory follow from it
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        reports.send((number, "begun"))
        path.write_bytes(make_case(name, number, seed, valid))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # whose signal ends this process
        try:
            KINDS[name].read(path)
            outcome = "read"
        except DetsegError as error:
            text = str(error)
            is_memory = "MemoryError" in text or "llocate" in text
            outcome = f"failed: memory: {text[:300]}" if is_memory else "refused"
            if not text or (path.name not in text and name not in ("rle", "submission")):
                outcome = f"failed: the message does not name the file: {text[:300]}"
        except BaseException as error:
            outcome = f"failed: {type(error).__name__}: {str(error)[:300]}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        reports.send((number, outcome))
    reports.send((-1, "done"))


def run_kind(name: str, cases: int, seed: int, failures: Path, bar: tqdm) -> tuple[Counter, list[str]]:
    """Read all cases of a kind; return the counts of outcomes, and lines about the failures."""
    kind, outcomes, lines = KINDS[name], Counter(), []
    valid = kind.make()
    context = multiprocessing.get_context("fork")
    number = 0

    def fail(reason: str) -> None:
        outcomes["failed"] += 1
        failures.mkdir(parents=True, exist_ok=True)
        kept = failures / f"{name}_{seed}_{number}{kind.suffix}"
        kept.write_bytes(make_case(name, number, seed, valid))  # the child has gone on to the next one
        lines.append(f"{kept}: {reason}")
        tqdm.write(lines[-1])

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"case{kind.suffix}"
        while number < cases:
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=work, args=(name, range(number, cases), seed, valid, path, sender))
            child.start()
            sender.close()
            try:
                while True:
                    number, outcome = receiver.recv()
                    if outcome == "done":
                        number = cases
                        break
                    if outcome == "begun":
                        continue
                    bar.update()
                    if outcome.startswith("failed"):
                        fail(outcome)
                    else:
                        outcomes[outcome] += 1
            except EOFError:
                child.join()
                reason = "30 s" if child.exitcode == -signal.SIGPROF else f"exit status {child.exitcode}"
                fail(f"failed: the process ended ({reason})")
                bar.update()
                number += 1
            child.join()
    return outcomes, lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="default: all")
    parser.add_argument("--cases", type=int, default=1000, help="of every kind (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all cases (default %(default)s)")
    parser.add_argument("--failures", type=Path, default=Path("fuzz_failures"), help="folder for inputs that failed")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    started, table, failed = time.perf_counter(), [], []
    with tqdm(total=arguments.cases * len(arguments.kinds), unit="case", mininterval=2) as bar:
        for name in arguments.kinds:
            bar.set_description(name)
            outcomes, lines = run_kind(name, arguments.cases, arguments.seed, arguments.failures, bar)
            failed += lines
            table.append(
                f"  {name:12} {outcomes['read']:8} read  {outcomes['refused']:8} refused  {outcomes['failed']:5} failed"
            )
    total = arguments.cases * len(arguments.kinds)
    print(f"{total} inputs in {time.perf_counter() - started:.0f} s, {len(failed)} failures", *table, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
