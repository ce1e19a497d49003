"""`predict` by several processes: each predicts its share of the images, and of the tiles of large ones.

The shares wait in files beside the output; the main process puts them together in the order of the images, so that the
output is that of one process. Processes are started here (--processes), or by torchrun, also on several machines that
share the folder.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detseg.inference.predictor import Predictor, SkippedImage
    from detseg.inference.sources import ImageSource
    from detseg.structures.predictions import Predictions


def processes_of_torchrun() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def predict_share(
    arguments: argparse.Namespace, rank: int, count: int, folder: Path, done: Callable[[int], Any] = lambda images: None
) -> None:
    """Predict every count-th image, and every count-th tile of each large one, into files of a folder."""
    from detseg.cli.predict_model import load_predictor
    from detseg.cli.predict_tiles import find_sources, set_tiling
    from detseg.coco.predictions_file import PredictionsWriter
    from detseg.errors import DataError
    from detseg.inference.given_boxes import read_boxes

    source = find_sources(arguments)
    predictor = load_predictor(arguments)
    set_tiling(predictor, arguments)
    boxes = read_boxes(arguments.boxes, source, predictor.classes) if arguments.boxes else None
    large = predictor.large_images(batch_size=arguments.batch_size, workers=arguments.workers, state=folder)
    own, tiled = [], []
    for number, record in enumerate(source.records):
        try:
            opened = large.claim(record)
        except DataError:
            opened = None  # whose turn it is will tell
        if opened is None:
            own += [record] if number % count == rank else []
            continue
        tiled.append(number)
        with opened:
            if boxes is None:
                try:
                    large.predict_share(record, opened, (rank, count), soft_masks=arguments.soft_masks)
                except DataError:
                    continue  # told when the image is put together
        done(0)
    skipped: list[SkippedImage] = []
    folder.mkdir(parents=True, exist_ok=True)
    with PredictionsWriter(folder / f"part{rank}.json", [*predictor.classes]) as writer:
        for predictions in predictor.predict_records(
            own,
            batch_size=arguments.batch_size,
            soft_masks=arguments.soft_masks,
            skipped=skipped,
            boxes=boxes,
            workers=arguments.workers,
        ):
            writer.write(predictions)
            done(1)
    told = {"tiled": tiled, "skipped": {image.file_name: image.reason for image in skipped}}
    (folder / f"told{rank}.json").write_text(json.dumps(told), encoding="utf-8")


def put_together(
    arguments: argparse.Namespace,
    predictor: Predictor,
    source: ImageSource,
    count: int,
    folder: Path,
    skipped: list[SkippedImage],
    boxes: Any,
) -> Iterator[Predictions]:
    """The answers of all processes in the order of the images; what could not be predicted goes to `skipped`."""
    from detseg.coco.predictions_file import read_predictions
    from detseg.inference.predictor import SkippedImage

    told = [json.loads((folder / f"told{rank}.json").read_text(encoding="utf-8")) for rank in range(count)]
    tiled = set(told[0]["tiled"])
    parts = [iter(read_predictions(folder / f"part{rank}.json")) for rank in range(count)]
    for number, record in enumerate(source.records):
        rank = number % count
        if number in tiled:
            large = predictor.large_images(batch_size=arguments.batch_size, workers=arguments.workers, state=folder)
            yield from predictor.predict_records(
                [record], soft_masks=arguments.soft_masks, skipped=skipped, boxes=boxes, large=large
            )
        elif record.file_name in told[rank]["skipped"]:
            skipped.append(SkippedImage(record.file_name, told[rank]["skipped"][record.file_name]))
        else:
            yield next(parts[rank])


def run_children(arguments: argparse.Namespace, count: int, folder: Path, done: Callable[[int], Any]) -> None:
    """Start the processes and wait for them. Raises RunError where one fails; it has said why."""
    import multiprocessing
    import time

    from detseg.errors import RunError

    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    children = [
        context.Process(target=_child, args=(arguments, rank, count, folder, counter), daemon=True)
        for rank in range(count)
    ]
    for child in children:
        child.start()
    seen = 0
    try:
        while any(child.is_alive() for child in children):
            if any(child.exitcode for child in children):
                break
            done(counter.value - seen)
            seen = counter.value
            time.sleep(0.1)
    finally:
        failed = [rank for rank, child in enumerate(children) if child.exitcode]
        for child in children:
            if failed:
                child.terminate()
            child.join()
    if failed:
        raise RunError(f"process {failed[0]} of {count} ended with status {children[failed[0]].exitcode}; see above")


def _child(arguments: argparse.Namespace, rank: int, count: int, folder: Path, counter: Any) -> None:
    import sys

    import torch

    from detseg.errors import DetsegError

    def done(images: int) -> None:
        with counter.get_lock():
            counter.value += images

    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    try:
        predict_share(arguments, rank, count, folder, done)
    except DetsegError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
