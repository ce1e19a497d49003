"""A contact sheet of training samples: each as the network sees it, and beside that with its masks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from detseg.coco.dataset import CocoDataset
from detseg.files.atomic import written_whole
from detseg.report.drawing import (
    class_colour,
    draw_objects,
    fitting_line_width,
    resize_display,
    to_display,
    typical_thickness,
)
from detseg.report.layout import BACKGROUND, LegendEntry, Panel, compose
from detseg.structures import rle as rle_codec
from detseg.structures.sample import Sample

# Samples on one sheet, and in one row of it.
PER_SHEET = 12
_COLUMNS = 3
# The longer side of a sample's picture: smaller ones are enlarged by a whole number, larger ones reduced.
_SIDE = 384
_GAP = 3
_LONGEST_NAME = 34
# Stripes over what the losses ignore, pixels.
_STRIPE = 5
_IGNORED = (200, 60, 200)


def contact_sheet(
    samples: Sequence[Sample],
    *,
    class_names: Sequence[str] = (),
    value_range: tuple[float, float] | None = None,
    caption: str = "",
) -> np.ndarray:
    """Return one picture (h, w, 3) uint8 RGB of some samples, at most `PER_SHEET`, in rows.

    All are drawn at one scale, so that they compare. value_range: intensities that are shown black and white; None
    shows images of 8 bits as they are and stretches each other one. Ignored regions are striped.
    """
    longest = max(max(sample.height, sample.width) for sample in samples)
    scale = float(_SIDE // longest) if longest <= _SIDE else _SIDE / longest
    panels = [_panel(sample, scale, value_range) for sample in samples]
    height = max(panel.picture.shape[0] for panel in panels)
    width = max(panel.picture.shape[1] for panel in panels)
    panels = [Panel(_padded(panel.picture, height, width), panel.title, panel.note) for panel in panels]
    rows = [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]
    legend = _legend(samples, class_names)
    last = len(rows) - 1
    pictures = [
        compose(row, caption if number == last else "", legend if number == last else [])
        for number, row in enumerate(rows)
    ]
    widest = max(picture.shape[1] for picture in pictures)
    return np.concatenate([_padded(picture, picture.shape[0], widest) for picture in pictures])


def _panel(sample: Sample, scale: float, value_range: tuple[float, float] | None) -> Panel:
    base = resize_display(_shown(sample.image, value_range), scale)
    picture, note = base, ""
    if sample.ignore is not None:
        picture = _striped(picture, sample.ignore, scale)
    if sample.layers is not None:
        rles = sample.layers.to_rles()
        line_width = fitting_line_width(typical_thickness(rles), scale)
        picture = draw_objects(picture, rles, [class_colour(index) for index in sample.classes], scale, line_width)
        note = f"{len(rles):,} object{'' if len(rles) == 1 else 's'}"
    gap = np.full((base.shape[0], _GAP, 3), BACKGROUND, dtype=np.uint8)
    return Panel(np.concatenate([base, gap, picture], axis=1), _short(sample.file_name), note)


def _short(name: str) -> str:
    """Cut the middle out of a long name, so that the number of objects has its place behind it."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 13]}...{name[-10:]}"


def _shown(image: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    """Return an image (H, W, C) as (H, W, 3) uint8 without a stretch of its own, which would undo changes."""
    if value_range is not None:
        low, high = value_range
        image = np.clip((image.astype(np.float32) - low) * (255 / max(high - low, 1e-12)), 0, 255)
        image = np.rint(image).astype(np.uint8)
    if image.dtype != np.uint8:
        return to_display(image)
    if image.shape[2] == 2:
        image = np.concatenate([image, np.zeros_like(image[:, :, :1])], axis=2)
    return np.ascontiguousarray(np.repeat(image[:, :, :1], 3, axis=2) if image.shape[2] == 1 else image[:, :, :3])


def _striped(picture: np.ndarray, ignore: np.ndarray, scale: float) -> np.ndarray:
    height, width = picture.shape[:2]
    rows = np.minimum((np.arange(height) / scale).astype(np.int64), ignore.shape[0] - 1)
    columns = np.minimum((np.arange(width) / scale).astype(np.int64), ignore.shape[1] - 1)
    stripes = (np.arange(height)[:, None] + np.arange(width)[None]) // _STRIPE % 2 == 0
    where = ignore[rows][:, columns] & stripes
    result = picture.copy()
    result[where] = picture[where] // 2 + np.array(_IGNORED, dtype=np.uint8) // 2
    return result


def _padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    canvas = np.full((height, width, 3), BACKGROUND, dtype=np.uint8)
    canvas[: picture.shape[0], : picture.shape[1]] = picture
    return canvas


def _legend(samples: Sequence[Sample], class_names: Sequence[str]) -> list[LegendEntry]:
    """Return one entry a class that occurs, none where there is but one class, and one for ignored regions."""
    entries = []
    if len(class_names) > 1:
        counts = np.bincount(np.concatenate([sample.classes for sample in samples]), minlength=len(class_names))
        entries = [
            LegendEntry(f"{name}: {count:,}", class_colour(index))
            for index, (name, count) in enumerate(zip(class_names, counts.tolist(), strict=False))
            if count
        ]
    if any(sample.ignore is not None and sample.ignore.any() for sample in samples):
        entries.append(LegendEntry("ignored", _IGNORED))
    return entries


# What repair did, to be looked at: the annotations that changed most, before and after, on one sheet.

# The side of one picture in pixels, and the least part of the image that it shows.
SIDE = 240
LEAST_WINDOW = 24
COLUMNS = 3
CHANGED, OTHERS, NEW = (255, 176, 0), (64, 190, 255), (240, 110, 180)


class Change(Protocol):
    """One line of the list of changes."""

    image: str
    annotation: int | str
    rule: str
    action: str
    area_before: int
    area_after: int

    @property
    def pixels(self) -> int: ...


def draw_repairs(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    changes: Sequence[Change],
    path: Path,
    *,
    count: int = 24,
    image_root: str | os.PathLike[str] | None = None,
) -> int:
    """Write a PNG of the `count` annotations that changed most, pairs of before and after; every rule has its share.

    The annotation is drawn in yellow, pieces split off it in pink, others of the image in blue.

    Returns how many pairs there are. Raises DataError where an image cannot be read.
    """
    old = CocoDataset.load(before, image_root, skipped=[])
    new = CocoDataset.load(after, image_root)
    shown = worst_changes(changes, count)
    pairs = [panel for change in shown for panel in _pair(old, new, change)]
    blank = Panel(np.full((SIDE, SIDE, 3), 255, dtype=np.uint8), "")
    pairs += [blank] * (-len(pairs) % (2 * COLUMNS))
    rows = [compose(pairs[start : start + 2 * COLUMNS], "", ()) for start in range(0, len(pairs), 2 * COLUMNS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path, "the picture") as temporary:
        Image.fromarray(np.vstack(rows)).save(temporary, format="PNG")
    return len(shown)


def worst_changes(changes: Sequence[Change], count: int) -> list[Change]:
    """Return `count` changes, most pixels first, the rules in turn, so that no rule crowds out another."""
    queues: dict[str, list[Change]] = {}
    for change in sorted(changes, key=lambda change: (-change.pixels, change.image, str(change.annotation))):
        queues.setdefault(change.rule, []).append(change)
    chosen: list[Change] = []
    while len(chosen) < count and any(queues.values()):
        for queue in queues.values():
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return sorted(chosen, key=lambda change: (list(queues).index(change.rule), -change.pixels))


def _pair(old: CocoDataset, new: CocoDataset, change: Change) -> list[Panel]:
    index = next(number for number, record in enumerate(old.images) if record.file_name == change.image)
    image_id = old.images[index].image_id
    other = next(number for number, record in enumerate(new.images) if record.image_id == image_id)
    ids, masks = _masks(old, index)
    new_ids, new_masks = _masks(new, other)
    own = [rle for rle, annotation in zip(masks, ids, strict=True) if annotation == change.annotation]
    record = old.images[index]
    window = _window(own, record.height, record.width)
    picture = to_display(old.read_image(index))
    known = set(ids)
    titles = f"{change.rule} {change.action}", f"{change.area_before} to {change.area_after} px"
    return [
        Panel(_draw(picture, window, masks, ids, change, known), titles[0]),
        Panel(_draw(picture, window, new_masks, new_ids, change, known), titles[1]),
    ]


def _masks(dataset: CocoDataset, index: int) -> tuple[list[Any], list[dict[str, Any]]]:
    record = dataset.images[index]
    rles, _ = dataset.table.rles(index, record.height, record.width)
    return [row.get("id") for row in dataset.table.decode(index)], rles


def _window(rles: Sequence[Mapping[str, Any]], height: int, width: int) -> tuple[int, int, int, int]:
    """Return x0, y0 and the sides of a window around a mask, within the image."""
    x0, y0, x1, y1 = rle_codec.bounding_boxes(rles)[0] if len(rles) else (0, 0, width, height)
    side = int(max(1.3 * (x1 - x0), 1.3 * (y1 - y0), LEAST_WINDOW))
    wide, high = min(side, width), min(side, height)
    left = int(np.clip((x0 + x1 - wide) / 2, 0, width - wide))
    top = int(np.clip((y0 + y1 - high) / 2, 0, height - high))
    return left, top, wide, high


def _draw(
    picture: np.ndarray,
    window: tuple[int, int, int, int],
    rles: Sequence[Mapping[str, Any]],
    ids: Sequence[Any],
    change: Change,
    known: set[Any],
) -> np.ndarray:
    left, top, wide, high = window
    scale = SIDE / max(wide, high)
    base = resize_display(np.ascontiguousarray(picture[top : top + high, left : left + wide]), scale)
    cut, colours = [], []
    for annotation, (mask, x0, y0) in zip(ids, rle_codec.decode_crops(rles), strict=True):
        part = mask[max(top - y0, 0) : max(top + high - y0, 0), max(left - x0, 0) : max(left + wide - x0, 0)]
        if part.any():
            cut.append((part, max(x0 - left, 0), max(y0 - top, 0)))
            colours.append(CHANGED if annotation == change.annotation else OTHERS if annotation in known else NEW)
    order = sorted(range(len(cut)), key=lambda number: colours[number] == CHANGED)
    encoded = rle_codec.encode_crops([cut[number] for number in order], high, wide)
    drawn = draw_objects(base, encoded, [colours[number] for number in order], scale, 1)
    canvas = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    canvas[: drawn.shape[0], : drawn.shape[1]] = drawn[:SIDE, :SIDE]
    return canvas
