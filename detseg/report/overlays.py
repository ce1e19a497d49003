"""Overlays: an image, its ground truth and its prediction side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from detseg.data.coco import CocoDataset
from detseg.report.contours import CROWD_COLOUR, class_colour, draw_objects, fitting_line_width, typical_thickness
from detseg.report.display import display_scale, resize_display, to_display
from detseg.report.layout import LegendEntry, Panel, compose
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.atomic_write import written_whole


class Annotations(Protocol):
    """N annotated objects of one image, as CocoDataset.annotations returns them."""

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
) -> np.ndarray:
    """Return a picture (h, w, 3) uint8 RGB: the image, then what there is of ground truth and prediction over it.

    image: (H, W, C) of any numbers. truth, predictions: masks of its size; predictions that are boxes alone are drawn
    as boxes. class_names: by class index, for the legend. caption: the line below.
    """
    rles_of = {} if truth is None else {"truth": truth.rles}
    if predictions is not None:
        rles_of["predictions"] = predictions.rles if predictions.rles is not None else _rectangles(predictions)
    # One scale and one width of the lines for both sides, so that they compare.
    thickness = typical_thickness([rle for rles in rles_of.values() for rle in rles])
    shown = to_display(image)
    scale = display_scale(*shown.shape[:2], thickness)
    line_width = fitting_line_width(thickness, scale)
    base = resize_display(shown, scale)
    panels = [Panel(base, "Image")]
    sides: list[tuple[str, np.ndarray]] = []
    if truth is not None:
        colours = [
            CROWD_COLOUR if crowd else class_colour(index)
            for index, crowd in zip(truth.classes.tolist(), truth.crowd.tolist(), strict=True)
        ]
        real = truth.classes[~truth.crowd]
        picture = draw_objects(base, rles_of["truth"], colours, scale, line_width)
        panels.append(Panel(picture, "Ground truth", _count(len(real))))
        sides.append(("true", real))
    if predictions is not None:
        colours = [class_colour(index) for index in predictions.classes.tolist()]
        picture = draw_objects(base, rles_of["predictions"], colours, scale, line_width)
        panels.append(Panel(picture, "Prediction", _count(len(predictions))))
        sides.append(("predicted", predictions.classes))
    return compose(panels, caption, _legend(sides, class_names))


def _count(number: int) -> str:
    return f"{number:,} object{'' if number == 1 else 's'}"


def _rectangles(predictions: Predictions) -> list[dict[str, Any]]:
    """Return the boxes as masks."""
    height, width = predictions.height, predictions.width
    corners = np.round(predictions.boxes).astype(np.int64)
    corners = np.clip(corners, 0, [width, height, width, height])
    return [
        rle_codec.encode_crop(np.ones((max(y1 - y0, 0), max(x1 - x0, 0)), dtype=bool), int(x0), int(y0), height, width)
        for x0, y0, x1, y1 in corners
    ]


def _legend(sides: Sequence[tuple[str, np.ndarray]], class_names: Sequence[str]) -> list[LegendEntry]:
    """Return one entry a class that occurs, with its counts; none where there is but one class."""
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


def draw_side_by_side(
    dataset: CocoDataset,
    index: int,
    predictions: Predictions | None,
    folder: str | os.PathLike[str],
    *,
    note: str = "",
) -> Path:
    """Draw image number `index` of a data set, its ground truth and its prediction; return the PNG written in `folder`.

    The folder is made where it is missing. note: a remark behind the image's name. Raises DataError where the image
    cannot be read or the picture cannot be written.
    """
    record = dataset.images[index]
    picture = side_by_side(
        dataset.read_image(index),
        truth=dataset.annotations(index),
        predictions=predictions,
        class_names=dataset.class_names,
        caption="    ".join(part for part in (record.file_name, note) if part),
    )
    path = Path(folder) / overlay_name(record.file_name, record.image_id)
    write_png(path, picture)
    return path


def overlay_name(file_name: str, image_id: int | str) -> str:
    """Return the name of an image's overlay: its own path in one word, so that images of several folders differ."""
    name = file_name or str(image_id)
    word = "".join(sign if sign.isalnum() or sign in "-_." else "_" for sign in os.path.splitext(name)[0])
    return f"{word.strip('.')[-150:] or 'image'}.png"


def write_png(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Write a picture (h, w, 3) uint8 RGB as PNG, under a temporary name first; its folder is made."""
    path = Path(path)
    with written_whole(path, "the picture") as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(temporary, format="PNG", compress_level=4)
