"""The images of `predict` in shards: files that any process can write, each atomically.

    shard000007-1f00d2c4a9e0.json    Predictions file of some consecutive images
    shard000007-1f00d2c4a9e0.report  if there are any: images that cannot be predicted, and those to predict in tiles

The second part of the name is a hash of everything that the predictions depend on, so that an existing file is valid
and not written again. A process locks the shard on which it works; the operating system releases the lock if it dies.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.cli.predict_job import Job

if TYPE_CHECKING:
    from detseg.coco.dataset import ImageRecord
    from detseg.inference.image_list import SkippedImage
    from detseg.structures.predictions import Predictions

# Enough shards for many processes to finish at about the same time; at most so many images per shard that little is
# lost if a process dies.
SHARDS, MOST_IMAGES = 64, 100
_POLL_SECONDS = 0.2


class Shards:
    """The shards of a job in a folder.

    Their size depends on the number of images and not of processes, so that other processes can continue.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self.folder = folder
        batch = job.arguments.batch_size
        self.size = batch * max(min(len(job.images.records) // (SHARDS * batch), MOST_IMAGES // batch), 1)
        self.settings = _settings(job)
        self.path = functools.cache(self._path)  # hashes the image files only once

    def __len__(self) -> int:
        return -(-len(self.job.images.records) // self.size)

    def images(self, number: int) -> range:
        """Return the image indices of a shard."""
        return range(number * self.size, min((number + 1) * self.size, len(self.job.images.records)))

    def _path(self, number: int) -> Path:
        records = [self.job.images.records[index] for index in self.images(number)]
        made_of = json.dumps([self.settings, *map(_of_image, records)], sort_keys=True, default=str)
        return self.folder / f"shard{number:06d}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}.json"

    def done(self) -> int:
        """Return the number of images in finished shards."""
        there = {entry.name for entry in os.scandir(self.folder)} if self.folder.is_dir() else set()
        return sum(len(self.images(number)) for number in range(len(self)) if self.path(number).name in there)

    def predict(self, number: int, progress: Callable[[int], Any] = lambda images: None) -> None:
        """Predict a shard, except images to be predicted in tiles."""
        from detseg.coco.predictions_file import PredictionsWriter
        from detseg.files.atomic import write_json

        path, records = self.path(number), self.job.images.records
        indices = self.images(number)
        large = [index for index in indices if self._is_large(records[index])]
        whole = [records[index] for index in indices if index not in large]
        skipped: list[SkippedImage] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        with PredictionsWriter(path, [*self.job.predictor.classes]) as writer:
            for predictions in self.job.predict(whole, skipped):
                writer.write(predictions)
                progress(1)
            # Written before the shard itself, whose presence means that it is complete.
            report = {"large": large, "skipped": {image.file_name: image.reason for image in skipped}}
            path.with_suffix(".report").unlink(missing_ok=True)
            if large or skipped:
                write_json(path.with_suffix(".report"), report)

    def _is_large(self, record: ImageRecord) -> bool:
        from detseg.errors import DataError

        tiles = self.job.tiles(self.job.predictor_of(record))
        try:
            source = tiles.open(record)
            if source is None:
                return False
            with source:
                return tiles.applies(source)
        except DataError:
            return False  # the prediction will report the error

    def report(self, number: int) -> dict[str, Any]:
        """Return the report of a finished shard: "large", image indices; "skipped", file name -> reason."""
        from detseg.files.atomic import read_json

        path = self.path(number).with_suffix(".report")
        return read_json(path) if path.is_file() else {"large": [], "skipped": {}}

    def work(self, rank: int, count: int) -> None:
        """Work as one of `count` processes: predict shards until all are done, then a share of the tiles of large
        images.

        Shards of other processes are waited for, and predicted here if those processes die.
        """
        from detseg.files.lock import try_lock

        first = rank * len(self) // count
        left = deque([*range(first, len(self)), *range(first)])
        self.folder.mkdir(parents=True, exist_ok=True)
        passed = 0  # consecutive shards that other processes hold
        while left:
            number = left.popleft()
            if self.path(number).is_file():
                continue
            lock = try_lock(self.path(number).with_suffix(".lock"))
            if lock is None:
                left.append(number)
                passed += 1
                if passed >= len(left):
                    time.sleep(_POLL_SECONDS)
                continue
            passed = 0
            try:
                if not self.path(number).is_file():
                    self.predict(number)
            finally:
                lock.release()
        for number in range(len(self)):
            for index in self.report(number)["large"]:
                self._predict_tiles(self.job.images.records[index], rank, count)

    def _predict_tiles(self, record: ImageRecord, rank: int, count: int) -> None:
        from detseg.errors import DataError, OutputError

        if self.job.boxes is not None:  # only tiles with boxes are predicted, when they are combined
            return
        predictor = self.job.predictor_of(record)
        tiles = self.job.tiles(predictor, state=self.folder)
        soft_masks = predictor.needs_soft_masks(self.job.arguments.soft_masks)
        try:
            source = tiles.open(record)
            if source is not None:
                with source:
                    tiles.predict_share(record, source, (rank, count), soft_masks=soft_masks)
        except (DataError, OutputError):
            pass  # reported when the tiles are combined

    def gather(self, skipped: list[SkippedImage], bar: Any) -> Iterator[Predictions]:
        """Yield the predictions of all images in order; missing shards are predicted here. See `Result`."""
        from detseg.coco.predictions_file import read_predictions
        from detseg.inference.image_list import SkippedImage

        def progress(name: str, done: int, total: int) -> None:
            bar.set_postfix_str(f"{name}: tile {done} of {total}" if done < total else "")

        records = self.job.images.records
        for number in range(len(self)):
            if not self.path(number).is_file():
                self.predict(number, bar.update)
            report, found = self.report(number), iter(read_predictions(self.path(number)))
            for index in self.images(number):
                name = records[index].file_name
                if index in report["large"]:
                    yield from self.job.predict([records[index]], skipped, state=self.folder, progress=progress)
                elif name in report["skipped"]:
                    skipped.append(SkippedImage(name, report["skipped"][name]))
                else:
                    yield next(found)


def _settings(job: Job) -> str:
    """Return a hash of everything that the predictions of a job depend on, except the images."""
    import torch

    boxes = Path(job.arguments.boxes) if job.arguments.boxes else None
    files = [] if boxes is None else sorted(boxes.rglob("*.txt")) if boxes.is_dir() else [boxes]
    settings = {
        "info": job.info(),
        "tiling": [dataclasses.asdict(predictor.tiling) for predictor in job.predictors],
        "soft_masks": job.arguments.soft_masks,
        "batch_size": job.arguments.batch_size,
        "boxes": [_of_file(file) for file in files],
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _of_image(record: ImageRecord) -> list[Any]:
    return [record.image_id, record.file_name, record.height, record.width, record.metadata, *_of_file(record.path)]


def _of_file(path: Path) -> list[Any]:
    try:
        about = path.stat()
    except (OSError, ValueError):  # the prediction will report the error
        return [str(path)]
    return [str(path.absolute()), about.st_size, about.st_mtime_ns]
