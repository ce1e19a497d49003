"""Damaged and hostile files of every kind that detseg reads: a reader answers, or refuses with a DetsegError.

    python benchmarks/fuzz.py [--kinds coco image ...] [--cases 1000] [--first 0] [--seed 0] [--failures fuzz_failures]

Inputs are the valid files of fuzz_inputs.py, changed by fuzz_changes.py. Each is read in a child process, many one
after the other, that may take 2 GB more than it began with and 30 s of processor time an input. Anything but an answer
or a DetsegError that names the file (another exception, the end of the process, memory or time beyond the limits) is a
failure: its input is saved, and the exit status is 1. `--cases` are those of every kind; the same seed gives the same
inputs, and `--first` goes on where an earlier run ended.

Images may have 2**24 pixels here, not 2**28: an image of the default limit takes more than 2 GB, rightly.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
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

import fuzz_inputs as inputs
import numpy as np
import torch
import yaml
from fuzz_changes import change_archive, change_bytes, change_json, change_parts, change_rle, change_text, change_yaml
from fuzz_inputs import SIDE
from pycocotools import mask as coco_mask
from tqdm import tqdm

from detseg.coco.catalog import ENVIRONMENT as DATASETS_FOLDER
from detseg.coco.catalog import find_dataset, read_catalog
from detseg.coco.dataset import CocoDataset, ImageRecord
from detseg.coco.predictions_file import read_predictions
from detseg.config.loading import load_config
from detseg.curation.download import read_download_table
from detseg.curation.splits import read_split_lists
from detseg.data.folds import read_index
from detseg.errors import DataError, DetsegError
from detseg.formats.cellpose import read_seg_npy
from detseg.formats.classes import read_class_map
from detseg.formats.file_sets import open_files
from detseg.formats.geojson import read_features
from detseg.formats.imagej import read_roi_file
from detseg.fusion.options import FusionOptions
from detseg.fusion.postprocess import Postprocess
from detseg.images.reading import read_image, read_label_image
from detseg.images.size import ENVIRONMENT as MOST_PIXELS
from detseg.inference.external_boxes import YoloBoxes
from detseg.inference.image_list import find_images
from detseg.models.weights.files import read_weights
from detseg.runs.checkpoint import load_checkpoint
from detseg.structures import rle as rle_codec
from detseg.submission.formats import SubmissionImage
from detseg.submission.reading import read_submission

MEMORY = 2 * 2**30  # bytes
SECONDS = 30  # of processor time


@dataclass
class Kind:
    """How a kind of file is made, changed and read. make: valid files. change: of one, with a generator of numbers."""

    suffix: str
    make: Callable[[], list[bytes]]
    read: Callable[[Path], Any]
    change: Callable[[np.random.Generator, bytes], bytes]


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


def read_masks_of_submission(path: Path) -> None:
    images = {name: SubmissionImage(name, SIDE, SIDE) for name in "ab"}
    read_submission(path, images)


def read_archive(path: Path) -> None:
    files = open_files(path)
    for name in files.names:
        files.read_picture(name, {})


def read_zarr(path: Path) -> None:
    """The case is a zip archive of the folder, so that it is one file."""
    with tempfile.TemporaryDirectory(dir=path.parent) as parent:
        folder = Path(parent) / path.with_suffix(".zarr").name
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        read_image(folder)


def read_sets(_: Path) -> None:
    """The catalog of `$DETSEG_DATASETS`, beside the one that comes with detseg."""
    for name in read_catalog():
        find_dataset(name)


def find(path: Path) -> None:
    find_images([str(path)])


def read_lists(path: Path) -> None:
    read_split_lists(path.parent, ["a.png", "b/c.png"], lambda name: [name])


def read_yolo(path: Path) -> None:
    record = ImageRecord(1, f"{path.stem}.png", path, SIDE, SIDE)
    YoloBoxes(path.parent, [record.file_name], ["a", "b"])(record, SIDE, SIDE)


def settings_kind(settings: Any) -> Kind:
    valid = yaml.safe_dump(settings().to_dict()).encode()
    return Kind(".yaml", lambda: [valid], settings.load, change_yaml)


def bytes_kind(suffix: str, make: Any, read: Callable[..., Any], change: Any, *sides: int) -> Kind:
    return Kind(suffix, make, lambda path: read(path.read_bytes(), path.name, *sides), change)


KINDS = {
    "image": Kind(".bin", inputs.make_images, read_image, change_bytes),
    "npy": Kind(".npy", inputs.make_npy, read_image, change_bytes),
    "zarr": Kind(".zip", inputs.make_zarr, read_zarr, change_parts),
    "labels": Kind(".tif", inputs.make_labels, read_label_image, change_bytes),
    "coco": Kind(".json", inputs.make_coco, read_coco, change_json),
    "predictions": Kind(".json", inputs.make_predictions, lambda path: list(read_predictions(path)), change_json),
    "config": Kind(".yaml", lambda: [inputs.CONFIG], load_config, change_yaml),
    "postprocess": settings_kind(Postprocess),
    "fusion": settings_kind(FusionOptions),
    "catalog": Kind(".yaml", lambda: [inputs.CATALOG], read_sets, change_yaml),
    "sources": Kind(".yaml", lambda: [inputs.SOURCES], lambda _: read_download_table(), change_yaml),
    "classes": Kind(".yaml", lambda: [b"tumor: cancer\nstroma: null\n3: cancer\n"], read_class_map, change_yaml),
    "folds": Kind(".yaml", lambda: [b"0: [a.png, b.png]\n1: [c.png]\n"], read_index, change_yaml),
    "table": Kind(".csv", lambda: inputs.FOLDS, read_index, change_text),
    "submission": Kind(".csv", lambda: inputs.SUBMISSIONS, read_masks_of_submission, change_text),
    "yolo": Kind(".txt", lambda: [b"0 0.5 0.5 0.1 0.2\n1 0.2 0.3 0.1 0.1 0.9\n"], read_yolo, change_text),
    "image_list": Kind(".txt", lambda: [b"a.png\n# b\n../c/*.png\n."], find, change_text),
    "split_list": Kind(".txt", lambda: [b"a.png\nb/c.png # note\n"], read_lists, change_text),
    "geojson": bytes_kind(".geojson", inputs.make_geojson, read_features, change_json, SIDE, SIDE),
    "roi": bytes_kind(".zip", inputs.make_rois, read_roi_file, change_archive, SIDE, SIDE),
    "cellpose": bytes_kind("_seg.npy", inputs.make_cellpose, read_seg_npy, change_bytes),
    "archive": Kind(".zip", inputs.make_archives, read_archive, change_archive),
    "weights": Kind(".pth", inputs.make_weights, read_weights_of_kind, change_archive),
    "checkpoint": Kind(".pth", inputs.make_checkpoints, read_checkpoint, change_archive),
    "rle": Kind(".json", lambda: [b""], read_rle, change_rle),
}
# Whose messages need not name the file: no file, or what it names.
NAMELESS = ("rle", "image_list")


def make_case(name: str, number: int, seed: int, valid: list[bytes]) -> bytes:
    random = np.random.default_rng([seed, list(KINDS).index(name), number])
    return KINDS[name].change(random, valid[number % len(valid)])


def work(name: str, numbers: range, seed: int, valid: list[bytes], path: Path, pipe: tuple[Any, Any]) -> None:
    """In a child process: read the cases one after the other, and send what became of each."""
    receiver, outcomes = pipe
    receiver.close()  # so that sending fails, and this process ends, where the other one is gone
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.environ.update({MOST_PIXELS: str(2**24), DATASETS_FOLDER: str(path.parent)})
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        path.write_bytes(make_case(name, number, seed, valid))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # whose signal ends this process
        try:
            KINDS[name].read(path)
            outcome = "read"
        except DetsegError as error:
            text, outcome = str(error), "refused"
            if "MemoryError" in text or "llocate" in text:
                outcome = f"memory: {text[:300]}"
            elif not text or (path.stem not in text and name not in NAMELESS):
                outcome = f"the message does not name the file: {text[:300]}"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {str(error)[:300]}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        outcomes.send(outcome)


def run_kind(name: str, numbers: range, seed: int, failures: Path, bar: tqdm) -> Counter:
    """Read all cases of a kind; return the counts of outcomes. Inputs that fail are kept, and said."""
    kind, counts = KINDS[name], Counter()
    valid = kind.make()
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}{kind.suffix}"  # catalog.yaml and sources.yaml must be called so
        while numbers:
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=work, args=(name, numbers, seed, valid, path, (receiver, sender)))
            child.start()
            sender.close()
            for number in numbers:
                try:
                    outcome = receiver.recv()
                except EOFError:  # one child reads all cases that are left, unless one of them ends it
                    child.join()
                    is_late = child.exitcode == -signal.SIGPROF
                    outcome = f"{SECONDS} s" if is_late else f"the process ended: exit status {child.exitcode}"
                counts[outcome if outcome in ("read", "refused") else "failed"] += 1
                if outcome not in ("read", "refused"):
                    failures.mkdir(parents=True, exist_ok=True)
                    kept = failures / f"{name}_{seed}_{number}{kind.suffix}"
                    kept.write_bytes(make_case(name, number, seed, valid))  # the child has gone on to the next one
                    tqdm.write(f"{kept}: {outcome}")
                bar.update()
                if child.exitcode is not None:
                    break
            numbers = range(number + 1, numbers.stop)
            child.join()
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="default: all")
    parser.add_argument("--cases", type=int, default=1000, help="of every kind (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all cases (default %(default)s)")
    parser.add_argument("--failures", type=Path, default=Path("fuzz_failures"), help="folder for inputs that failed")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    numbers = range(arguments.first, arguments.first + arguments.cases)
    started, total = time.perf_counter(), Counter()
    with tqdm(total=len(numbers) * len(arguments.kinds), unit="case", mininterval=2) as bar:
        for name in arguments.kinds:
            bar.set_description(name)
            counts = run_kind(name, numbers, arguments.seed, arguments.failures, bar)
            total += counts
            tqdm.write(f"{name:12} {counts['read']:8} read  {counts['refused']:8} refused  {counts['failed']:5} failed")
    print(f"{total.total()} inputs in {time.perf_counter() - started:.0f} s, {total['failed']} failures")
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
