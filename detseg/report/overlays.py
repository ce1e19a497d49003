"""Overlays: an image, its ground truth and its prediction side by side."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from detseg.coco.dataset import CocoDataset, ImageRecord
from detseg.coco.masks import box_to_rle
from detseg.coco.pairing import ImageIndex, PairedImage
from detseg.coco.predictions_file import PredictionsFile
from detseg.errors import DataError
from detseg.evaluation.matches import ImageMatches
from detseg.files.atomic import written_whole
from detseg.images.reading import read_image
from detseg.report.drawing import (
    class_colour,
    display_scale,
    draw_objects,
    fitting_line_width,
    object_colours,
    resize_display,
    to_display,
    typical_thickness,
)
from detseg.report.layout import LegendEntry, Panel, compose
from detseg.report.numbers import write_numbers
from detseg.report.outcomes import draw_outcomes, outcome_legend, outcome_note
from detseg.structures import Predictions
from detseg.structures.boxes import to_xywh


class Annotations(Protocol):
    """N annotated objects of one image, as from CocoDataset.annotations."""

    rles: list[dict[str, Any]]
    classes: np.ndarray
    crowd: np.ndarray


def side_by_side(
    image: np.ndarray,
    *,
    truth: Annotations | None = None,
    predictions: Predictions | None = None,
    class_names: Sequence[str] = (),
    caption: str = "",
    numbers: str = "none",
    matches: ImageMatches | None = None,
) -> np.ndarray:
    """Return a picture (h, w, 3) uint8 RGB: the image alone, then with the given ground truth and prediction.

    image: (H, W, C) of any dtype. truth, predictions: masks of its size; predictions without masks are drawn as boxes.
    class_names: by class index, for the legend. caption: the line below. numbers: "auto", "all" or "none", see
    `write_numbers`; the number of an object is that in the table of objects. matches: of truth and predictions; adds a
    panel with true positives, false positives and missed objects in three colours.
    """
    rles_of = {} if truth is None else {"truth": truth.rles}
    if predictions is not None:
        rles_of["predictions"] = predictions.rles
        if predictions.rles is None:
            size = predictions.height, predictions.width
            rles_of["predictions"] = [box_to_rle(box, *size) for box in to_xywh(predictions.boxes).tolist()]
    # Both sides have the same scale and line width, to be comparable.
    thickness = typical_thickness([rle for rles in rles_of.values() for rle in rles])
    shown = to_display(image)
    scale = display_scale(*shown.shape[:2], thickness)
    line_width = fitting_line_width(thickness, scale)
    base = resize_display(shown, scale)
    panels = [Panel(base, "Image")]
    sides: list[tuple[str, np.ndarray]] = []

    def add(title: str, word: str, rles: Sequence[Mapping[str, Any]], classes: np.ndarray, crowd: np.ndarray) -> None:
        counted = classes[~crowd]
        note = f"{len(counted):,} object{'' if len(counted) == 1 else 's'}"
        drawn = draw_objects(base, rles, object_colours(classes, crowd), scale, line_width)
        if numbers != "none":
            # Ignored regions are not counted in tables either.
            own = list(itertools.compress(rles, ~crowd))
            drawn, written = write_numbers(drawn, own, range(1, len(own) + 1), scale, numbers)
            note += f", {written:,} numbered" if written < len(own) else ""
        panels.append(Panel(drawn, title, note))
        sides.append((word, counted))

    if truth is not None:
        add("Ground truth", "true", rles_of["truth"], truth.classes, truth.crowd)
    if predictions is not None:
        no_crowd = np.zeros(len(predictions), dtype=bool)
        add("Prediction", "predicted", rles_of["predictions"], predictions.classes, no_crowd)
    legend = _legend(sides, class_names)
    if matches is not None:
        drawn = draw_outcomes(shown, rles_of["truth"], rles_of["predictions"], matches, scale=scale)
        panels.append(Panel(drawn, "Hits and errors", outcome_note(matches)))
        legend += outcome_legend()
    return compose(panels, caption, legend)


def _legend(sides: Sequence[tuple[str, np.ndarray]], class_names: Sequence[str]) -> list[LegendEntry]:
    """Return one entry per class that occurs, with its counts; none if there is only one class."""
    if len(class_names) < 2 or not sides:
        return []
    counts = [np.bincount(classes, minlength=len(class_names)) for _, classes in sides]
    entries = []
    for index, name in enumerate(class_names):
        numbers = [int(count[index]) for count in counts]
        if any(numbers):
            texts = [f"{number} {side}" for number, (side, _) in zip(numbers, sides, strict=True)]
            entries.append(LegendEntry(f"{name}: {', '.join(texts)}", class_colour(index)))
    return entries


def overlay_names(images: Iterable[PairedImage]) -> list[str]:
    """Return the names of the images' overlays: their paths with `_` for slashes.

    If several give the same name, such as `a/x.png`, `a_x.png` and `a/x.tif`, all but the first get a number.
    """
    names, numbers, taken = [], Counter(), set()
    for image in images:
        name = os.path.splitext(image.file_name or str(image.image_id))[0]
        word = "".join(sign if sign.isalnum() or sign in "-_." else "_" for sign in name).strip(".")[-150:] or "image"
        own = word
        while own.casefold() in taken:  # file systems may ignore case
            numbers[word.casefold()] += 1
            own = f"{word}_{numbers[word.casefold()] + 1}"
        taken.add(own.casefold())
        names.append(f"{own}.png")
    return names


def write_png(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Write a picture (h, w, 3) uint8 RGB as PNG, atomically; its folder is created."""
    path = Path(path)
    with written_whole(path, "the picture") as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(temporary, format="PNG", compress_level=4)


@dataclass(frozen=True)
class Overlay:
    """One picture to draw: truth and predictions of the same image, one of which may be missing."""

    record: ImageRecord
    truth: int | None
    predictions: Predictions | None


def match_images(
    records: Sequence[ImageRecord], truth: CocoDataset | None, predictions: PredictionsFile | None
) -> Iterator[Overlay]:
    """Yield the overlays to draw, in the order of the predictions, or of the images if there are none.

    With predictions, images without an entry in their file are left out; without, images that the truth lacks. Raises
    DataError if no image is found.
    """
    truths = ImageIndex(truth.images if truth is not None else [], "the ground truth")
    number_of = {image.image_id: number for number, image in enumerate(truth.images if truth is not None else [])}
    if predictions is None:
        for record, own in zip(records, truths.pair_some(records, "--images"), strict=True):
            if own is not None:
                yield Overlay(record, number_of[own.image_id], None)
        return
    found = ImageIndex(records, "--images").pair_some(predictions.images, str(predictions.path))
    for record, predicted in zip(found, predictions, strict=True):
        if record is not None:
            own = truths.find(predicted)
            yield Overlay(record, None if own is None else number_of[own.image_id], predicted)


def draw_overlay(
    overlay: Overlay,
    path: str | os.PathLike[str],
    class_names: Sequence[str],
    *,
    truth: CocoDataset | None = None,
    note: str = "",
    numbers: str = "none",
) -> None:
    """Draw an overlay into a PNG file; its folder is created.

    truth: the data set that `overlay.truth` is an index into. note: text after the image's name. numbers: see
    `side_by_side`.

    Raises DataError if the image cannot be read or its size differs from its masks', or the picture cannot be written.
    """
    record, predictions = overlay.record, overlay.predictions
    image = read_image(record.path, record.metadata)
    sizes = {}
    if predictions is not None:
        sizes["predictions"] = (predictions.height, predictions.width)
    annotations = None
    if truth is not None and overlay.truth is not None:
        sizes["ground truth"] = (truth.images[overlay.truth].height, truth.images[overlay.truth].width)
        annotations = truth.annotations(overlay.truth)
    for name, (height, width) in sizes.items():
        if (height, width) != image.shape[:2]:
            raise DataError(
                f"{record.path}: the image has {image.shape[0]} x {image.shape[1]} pixels (height x width), but its "
                f"{name} {height} x {width}; give the images that it was made from"
            )
    caption = "    ".join(part for part in (record.file_name, note) if part)
    sides = {"truth": annotations, "predictions": predictions}
    picture = side_by_side(image, **sides, class_names=class_names, caption=caption, numbers=numbers)
    write_png(path, picture)
