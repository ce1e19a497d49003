"""The input of exports: the objects of a data set's images, from a COCO file or a Predictions file alike."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.coco.pairing import PairedImage
from detseg.coco.predictions_file import PredictionsFile, read_predictions
from detseg.errors import DataError
from detseg.files.reading import open_plain_or_gzip
from detseg.structures.predictions import Predictions
from detseg.structures.sample import PixelSize, pixel_size_of

_HEAD = 2**20


@dataclass(frozen=True)
class ImageObjects:
    """The N objects of one image.

    file_name: of the image, with slashes. height, width: pixels. rles: N COCO RLEs. classes: (N,) int64, 0-based.
    scores: (N,) float32, or None for annotations. pixel_size: (y, x) micrometres, if known. fields: additional fields
    of the image in its COCO file. picture: the image file, for intensities. num_ignored: number of regions that are
    neither object nor background, which are not exported.
    """

    image_id: int | str
    file_name: str
    height: int
    width: int
    rles: list[dict[str, Any]]
    classes: np.ndarray
    scores: np.ndarray | None = None
    pixel_size: PixelSize | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    picture: Path | None = None
    num_ignored: int = 0

    def __len__(self) -> int:
        return len(self.rles)

    @classmethod
    def from_predictions(cls, found: Predictions) -> ImageObjects:
        """Create from predictions. Raises DataError if they have no masks."""
        if found.rles is None:
            name = found.file_name or found.image_id
            raise DataError(f"{name}: these predictions have no masks, which are needed")
        image = (found.image_id, found.file_name, found.height, found.width)
        return cls(*image, found.rles, found.classes, scores=found.scores, pixel_size=found.pixel_size)

    @classmethod
    def from_annotations(cls, dataset: CocoDataset, index: int) -> ImageObjects:
        """Return the objects of an image of a data set; regions to be ignored are counted."""
        record = dataset.images[index]
        annotations = dataset.annotations(index)
        return cls(
            *(record.image_id, record.file_name, record.height, record.width),
            annotations.objects.rles,
            annotations.objects.classes,
            pixel_size=pixel_size_of(record.metadata, f"{dataset.name}: image {record.file_name}"),
            fields=record.metadata,
            num_ignored=int(annotations.crowd.sum()),
        )

    def select(self, keep: np.ndarray) -> ImageObjects:
        """Return a subset of the objects, `keep` (N,) bool."""
        rles = [rle for rle, kept in zip(self.rles, keep, strict=True) if kept]
        return replace(
            self, rles=rles, classes=self.classes[keep], scores=None if self.scores is None else self.scores[keep]
        )


class ObjectsFile:
    """All images of a file: iterate over it, repeatedly, for one ImageObjects per image, empty ones included.

    class_names: by class index. images: ids, file names and sizes. names: the file names alone. holds_predictions:
    whether it has predictions, not annotations.
    """

    def __init__(self, path: Path, content: CocoDataset | PredictionsFile) -> None:
        self._content = content
        self.class_names: Sequence[str] = content.class_names
        self.images: Sequence[PairedImage] = content.images
        self.holds_predictions = isinstance(content, PredictionsFile)
        self.names = [image.file_name for image in content.images]
        if not all(self.names):
            raise DataError(
                f"{path}: does not name its images (plain COCO results do not); export a Predictions file, or give the "
                "ground truth's COCO file to `detseg evaluate` first"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[ImageObjects]:
        if isinstance(self._content, PredictionsFile):
            yield from map(ImageObjects.from_predictions, self._content)
            return
        for index in range(len(self)):
            yield ImageObjects.from_annotations(self._content, index)


def open_objects(path: str | os.PathLike[str]) -> ObjectsFile:
    """Open a COCO data set or a Predictions file, .json or .json.gz.

    Raises DataError if it is neither, or broken.
    """
    path = Path(path)
    try:
        with open_plain_or_gzip(path) as file:
            head = file.read(_HEAD)
            holds_results = b'"detseg predictions' in head or head.lstrip().startswith(b"[")
            # Annotations have no scores. Other layouts may have long lists before the annotations.
            holds_results = holds_results or b'"score"' in head + file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; check that it exists and is complete") from None
    return ObjectsFile(path, read_predictions(path) if holds_results else CocoDataset.load(path))
