"""Which image belongs to which truth and prediction, and one overlay for each."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from detseg.data.coco import CocoDataset, ImageAnnotations, ImageRecord
from detseg.data.images import read_image
from detseg.errors import DataError
from detseg.report.overlays import overlay_name, side_by_side, write_png
from detseg.structures import Predictions
from detseg.structures.predictions_file import PredictionsFile

logger = logging.getLogger(__name__)


class Named(Protocol):
    """What images, truths and predictions have in common."""

    image_id: int | str
    file_name: str


@dataclass(frozen=True)
class Overlay:
    """One picture to draw: truth and predictions of the same image, either may be missing."""

    record: ImageRecord
    truth: int | None
    predictions: Predictions | None


class ImageFinder:
    """Finds the image of a truth or a prediction: by file name, else by the name without its folders where that is
    unambiguous, else, where no name is known, by id."""

    def __init__(self, images: Sequence[Named]) -> None:
        self._by_name = {_normal(image.file_name): index for index, image in enumerate(images)}
        self._by_id = {image.image_id: index for index, image in enumerate(images)}
        self._by_last: dict[str, int | None] = {}
        for index, image in enumerate(images):
            last = PurePosixPath(_normal(image.file_name)).name
            self._by_last[last] = None if last in self._by_last else index

    def find(self, other: Named) -> int | None:
        """Return the index of the image that `other` belongs to, or None."""
        name = _normal(other.file_name)
        if not name:
            return self._by_id.get(other.image_id)
        if name in self._by_name:
            return self._by_name[name]
        return self._by_last.get(PurePosixPath(name).name)


def _normal(name: str) -> str:
    return name.replace("\\", "/")


def match_images(
    records: Sequence[ImageRecord], truth: CocoDataset | None, predictions: PredictionsFile | None
) -> Iterator[Overlay]:
    """Return what there is to draw, in the order of the predictions, or of the images where there are none.

    With predictions, images that the file does not have are left out; without, images that the truth does not have.
    Raises DataError where no image is found.
    """
    images, truths = ImageFinder(records), ImageFinder(truth.images if truth is not None else [])
    found = 0
    if predictions is None:
        for record in records:
            index = truths.find(record)
            if index is not None:
                found += 1
                yield Overlay(record, index, None)
    else:
        for answer in predictions:
            index = images.find(answer)
            if index is not None:
                found += 1
                yield Overlay(records[index], truths.find(answer), answer)
    if not found:
        others = truth.images if predictions is None else predictions.images
        raise DataError(
            f"none of the {len(records)} images ({_names(records)}) is one of the {len(others)} in "
            f"{truth.name if predictions is None else predictions.path} ({_names(others)}); give the images that it "
            "was made for, with the same file names"
        )


def _names(images: Sequence[Named]) -> str:
    names = ", ".join(image.file_name or f"id {image.image_id}" for image in images[:2])
    return names + (", ..." if len(images) > 2 else "")


def draw_overlays(
    overlays: Sequence[Overlay],
    folder: str | os.PathLike[str],
    class_names: Sequence[str],
    *,
    truth: CocoDataset | None = None,
    note: Callable[[Overlay, ImageAnnotations], str] | None = None,
    progress: Callable[[Sequence[Overlay]], Iterator[Overlay]] = iter,
) -> list[Path]:
    """Draw every overlay into `folder`; return the files.

    note: a remark below the pictures that have both truth and prediction. progress: wraps the loop.
    Raises DataError where an image cannot be read or has another size than its masks.
    """
    written = []
    for overlay in progress(overlays):
        image = read_image(overlay.record.path, overlay.record.metadata)
        annotations = truth.annotations(overlay.truth) if truth is not None and overlay.truth is not None else None
        _check_size(overlay, image.shape[:2], truth)
        caption = overlay.record.file_name
        if annotations is not None and overlay.predictions is not None and note is not None:
            caption += f"    {note(overlay, annotations)}"
        picture = side_by_side(
            image, truth=annotations, predictions=overlay.predictions, class_names=class_names, caption=caption
        )
        path = Path(folder) / overlay_name(overlay.record.file_name, overlay.record.image_id)
        write_png(path, picture)
        written.append(path)
    return written


def _check_size(overlay: Overlay, size: tuple[int, int], truth: CocoDataset | None) -> None:
    others = []
    if overlay.predictions is not None:
        others.append(("predictions", overlay.predictions.height, overlay.predictions.width))
    if truth is not None and overlay.truth is not None:
        record = truth.images[overlay.truth]
        others.append(("ground truth", record.height, record.width))
    for name, height, width in others:
        if (height, width) != tuple(size):
            raise DataError(
                f"{overlay.record.path}: the image has {size[0]} x {size[1]} pixels (height x width), but its {name} "
                f"{height} x {width}; give the images that it was made for"
            )
