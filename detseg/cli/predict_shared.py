"""`predict` by several processes: each predicts its share of the images, and of the tiles of large ones.

The shares are kept in files beside the output; the main process gathers them in the order of the images, so that the
output is that of one process. Processes are started here (--processes), or by torchrun, also on several machines that
share the folder.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.cli.predict_job import Job, find_job_images, load_job
from detseg.runs.threads import choose_threads

if TYPE_CHECKING:
    from detseg.inference.image_list import ImageList
    from detseg.inference.predictor import SkippedImage
    from detseg.structures.predictions import Predictions


def processes_of_torchrun() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@dataclass(frozen=True)
class Result:
    """What a command predicts: images, classes, what the file says of itself, and a function that predicts all images,
    appends those that it cannot to a list, and shows on a bar how far it is. skipped: those that are known before.
    """

    images: ImageList
    classes: Sequence[str]
    info: dict[str, Any]
    predictions: Callable[[list[SkippedImage], Any], Iterator[Predictions]]
    skipped: list[SkippedImage] = field(default_factory=list)


def state_folder(arguments: argparse.Namespace) -> Path:
    """Where the predictions of tiles, of other processes and of folds stay until the end: beside the output."""
    target = Path(arguments.output or arguments.label_images)
    folder = target.with_name(f"{target.name}.tiles")
    return folder if arguments.fold is None else folder / f"fold{arguments.fold}"


def all_predictions(
    arguments: argparse.Namespace, job: Job, skipped: list[SkippedImage], bar: Any
) -> Iterator[Predictions]:
    """The predictions of all images, by this process or gathered from several."""
    folder = state_folder(arguments)
    count = max(arguments.processes, processes_of_torchrun())
    if count == 1:

        def progress(name: str, done: int, total: int) -> None:
            bar.set_postfix_str(f"{name}: tile {done} of {total}" if done < total else "")

        yield from job.predict(job.images.records, skipped, state=folder, progress=progress)
        return
    if arguments.processes > 1:
        run_children(arguments, count, folder, bar.update)
    yield from gather_shares(job, count, folder, skipped)


def predict_share(
    arguments: argparse.Namespace, rank: int, count: int, folder: Path, done: Callable[[int], Any] = lambda images: None
) -> None:
    """Predict every count-th image, and every count-th tile of each large one, into files of a folder."""
    from detseg.coco.predictions_file import PredictionsWriter
    from detseg.errors import DataError, OutputError

    job = load_job(arguments, find_job_images(arguments))
    tiles, soft_masks = job.tiles(state=folder), job.predictor.needs_soft_masks(arguments.soft_masks)
    own, in_tiles = [], []
    for number, record in enumerate(job.images.records):
        try:
            source = tiles.open(record)
            if source is not None and not tiles.applies(source):
                source.close()
                source = None
        except DataError:
            source = None  # the process whose share it is reports it
        if source is None:
            own += [record] if number % count == rank else []
            continue
        in_tiles.append(number)
        with source:
            if job.boxes is None:
                try:
                    tiles.predict_share(record, source, (rank, count), soft_masks=soft_masks)
                except (DataError, OutputError):
                    continue  # reported when the tiles are combined
        done(0)
    skipped: list[SkippedImage] = []
    folder.mkdir(parents=True, exist_ok=True)
    with PredictionsWriter(folder / f"part{rank}.json", [*job.predictor.classes]) as writer:
        for predictions in job.predict(own, skipped):
            writer.write(predictions)
            done(1)
    report = {"in_tiles": in_tiles, "skipped": {image.file_name: image.reason for image in skipped}}
    (folder / f"report{rank}.json").write_text(json.dumps(report), encoding="utf-8")


def gather_shares(job: Job, count: int, folder: Path, skipped: list[SkippedImage]) -> Iterator[Predictions]:
    """The predictions of all processes in the order of the images; what could not be predicted goes to `skipped`."""
    from detseg.coco.predictions_file import read_predictions
    from detseg.inference.predictor import SkippedImage

    reports = [json.loads((folder / f"report{rank}.json").read_text(encoding="utf-8")) for rank in range(count)]
    in_tiles = set(reports[0]["in_tiles"])
    parts = [iter(read_predictions(folder / f"part{rank}.json")) for rank in range(count)]
    for number, record in enumerate(job.images.records):
        rank = number % count
        if number in in_tiles:
            yield from job.predict([record], skipped, state=folder)
        elif record.file_name in reports[rank]["skipped"]:
            skipped.append(SkippedImage(record.file_name, reports[rank]["skipped"][record.file_name]))
        else:
            yield next(parts[rank])


def run_children(arguments: argparse.Namespace, count: int, folder: Path, done: Callable[[int], Any]) -> None:
    """Start the processes and wait for them. Raises RunError where one fails; it has printed why."""
    import multiprocessing
    import time

    from detseg.errors import RunError

    context = multiprocessing.get_context("spawn")
    # Not a shared number: its semaphore stays in /dev/shm where all processes are killed.
    counts, sender = context.Pipe(duplex=False)
    children = [
        context.Process(target=_child, args=(arguments, rank, count, folder, sender), daemon=True)
        for rank in range(count)
    ]
    for child in children:
        child.start()
    try:
        while any(child.is_alive() for child in children):
            if any(child.exitcode for child in children):
                break
            while counts.poll():
                done(len(counts.recv_bytes()))
            time.sleep(0.1)
    finally:
        failed = [rank for rank, child in enumerate(children) if child.exitcode]
        for child in children:
            if failed:
                child.terminate()
            child.join()
    if failed:
        raise RunError(f"process {failed[0]} of {count} ended with status {children[failed[0]].exitcode}; see above")


def _child(arguments: argparse.Namespace, rank: int, count: int, folder: Path, counts: Any) -> None:
    import sys

    import torch

    from detseg.errors import DetsegError
    from detseg.files.names import printable
    from detseg.files.processes import end_with_parent

    end_with_parent()

    def done(images: int) -> None:
        # Processes share the pipe: messages this short are written at once (PIPE_BUF).
        counts.send_bytes(b"." * images)

    if arguments.num_threads is None:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    choose_threads(arguments.num_threads)
    try:
        predict_share(arguments, rank, count, folder, done)
    except DetsegError as error:
        # The bar is the main process's, which says itself that this one ended; the message stands below it.
        above = "\n" if sys.stderr.isatty() else ""
        print(f"{above}error: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
