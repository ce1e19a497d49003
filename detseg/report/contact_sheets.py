"""Contact sheets of training samples: each as the network sees it, without and with its masks."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.curation.repair.rules import Change
from detseg.report.drawing import (
    class_colour,
    draw_close_up,
    draw_objects,
    object_colours,
    resize_display,
    to_display,
    window_around,
)
from detseg.report.layout import BACKGROUND, LegendEntry, Panel, compose
from detseg.report.overlays import write_png
from detseg.structures import rle as rle_codec
from detseg.structures.sample import Sample

# Samples per sheet, and per row.
PER_SHEET = 12
_COLUMNS = 3
# Longer side of a sample's picture: smaller ones are enlarged by an integer factor, larger ones reduced.
_SIDE = 384
_GAP = 3
_LONGEST_NAME = 34
# Width of the stripes over regions that losses ignore, pixels.
_STRIPE = 5
_IGNORED = (200, 60, 200)


def contact_sheet(
    samples: Sequence[Sample],
    *,
    class_names: Sequence[str] = (),
    value_range: tuple[float, float] | None = None,
    caption: str = "",
) -> np.ndarray:
    """Return one picture (h, w, 3) uint8 RGB with at most `PER_SHEET` samples in rows.

    All are drawn at the same scale, to be comparable. value_range: intensities shown as black and white; None shows
    8-bit images as they are and stretches each other one. Ignored regions are striped.
    """
    longest = max(max(sample.height, sample.width) for sample in samples)
    scale = float(_SIDE // longest) if longest <= _SIDE else _SIDE / longest
    panels = [_panel(sample, scale, value_range) for sample in samples]
    height, width = np.max([panel.picture.shape[:2] for panel in panels], axis=0)
    panels = [dataclasses.replace(panel, picture=_padded(panel.picture, height, width)) for panel in panels]
    rows = [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]
    pictures = [compose(row, "", []) for row in rows[:-1]]
    pictures.append(compose(rows[-1], caption, _legend(samples, class_names)))
    widest = max(picture.shape[1] for picture in pictures)
    return np.concatenate([_padded(picture, picture.shape[0], widest) for picture in pictures])


def _panel(sample: Sample, scale: float, value_range: tuple[float, float] | None) -> Panel:
    if value_range is None and sample.image.dtype == np.uint8:
        value_range = (0, 255)  # stretching would undo augmentation of intensities
    base = resize_display(to_display(sample.image, value_range), scale)
    picture, note = base, ""
    if sample.ignore is not None:
        picture = _striped(picture, sample.ignore, scale)
    if sample.layers is not None:
        rles = sample.layers.to_rles()
        no_crowd = np.zeros(len(rles), dtype=bool)
        picture = draw_objects(picture, rles, object_colours(sample.classes, no_crowd), scale)
        note = f"{len(rles):,} object{'' if len(rles) == 1 else 's'}"
    name = sample.file_name
    if len(name) > _LONGEST_NAME:  # leaves space for the number of objects
        name = f"{name[: _LONGEST_NAME - 13]}...{name[-10:]}"
    gap = np.full((base.shape[0], _GAP, 3), BACKGROUND, dtype=np.uint8)
    return Panel(np.concatenate([base, gap, picture], axis=1), name, note)


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
    """Return one entry per class that occurs, unless there is only one class, and one for ignored regions."""
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


# Repairs: the annotations that changed most, before and after, on one sheet.

# Side of one picture in pixels, and the minimum part of the image that it shows.
SIDE, LEAST_WINDOW = 240, 24
# Pairs per row, and per sheet.
COLUMNS, MOST_PAIRS = 3, 24
CHANGED, OTHERS, NEW = (255, 176, 0), (64, 190, 255), (240, 110, 180)


def draw_repairs(
    before: str | os.PathLike[str], after: str | os.PathLike[str], changes: Sequence[Change], path: Path
) -> int:
    """Write a PNG of the annotations that changed most, as pairs of before and after, with examples of every rule.

    The annotation is yellow, pieces split off it are pink, other objects blue.

    Returns the number of pairs. Raises DataError if an image cannot be read.
    """
    old = CocoDataset.load(before, skipped=[])
    new = CocoDataset.load(after)
    shown = worst_changes(changes, MOST_PAIRS)
    pairs = [panel for change in shown for panel in _before_and_after(old, new, change)]
    blank = Panel(np.full((SIDE, SIDE, 3), 255, dtype=np.uint8), "")
    pairs += [blank] * (-len(pairs) % (2 * COLUMNS))
    rows = [compose(pairs[start : start + 2 * COLUMNS], "", ()) for start in range(0, len(pairs), 2 * COLUMNS)]
    write_png(path, np.vstack(rows))
    return len(shown)


def worst_changes(changes: Sequence[Change], count: int) -> list[Change]:
    """Return `count` changesby descending number of pixels, alternating between rules."""
    queues: dict[str, list[Change]] = {}
    for change in sorted(changes, key=lambda change: (-change.pixels, change.image, str(change.annotation))):
        queues.setdefault(change.rule, []).append(change)
    # The first of every rule, then the second of every rule, ...
    ranked = [(rank, rule) for rule in queues for rank in range(len(queues[rule]))]
    chosen = sorted(ranked, key=lambda one: one[0])[:count]
    return [queues[rule][rank] for rule in queues for rank, other in chosen if other == rule]


def _before_and_after(old: CocoDataset, new: CocoDataset, change: Change) -> list[Panel]:
    index = next(number for number, record in enumerate(old.images) if record.file_name == change.image)
    record = old.images[index]
    other = next(number for number, one in enumerate(new.images) if one.image_id == record.image_id)
    picture = to_display(old.read_image(index))
    ids, masks = _masks(old, index)
    own = [rle for rle, annotation in zip(masks, ids, strict=True) if annotation == change.annotation]
    box = rle_codec.bounding_boxes(own)[0] if own else (0, 0, record.width, record.height)
    side = int(max(1.3 * (box[2] - box[0]), 1.3 * (box[3] - box[1]), LEAST_WINDOW))
    window = window_around(box, side, record.height, record.width)
    known = set(ids)
    panels = []
    for title, own_ids, own_masks in (
        (f"{change.rule} {change.action}", ids, masks),
        (f"{change.area_before} to {change.area_after} px", *_masks(new, other)),
    ):
        drawn: dict[tuple[int, int, int], list[Any]] = {OTHERS: [], NEW: [], CHANGED: []}
        for annotation, rle in zip(own_ids, own_masks, strict=True):
            drawn[CHANGED if annotation == change.annotation else OTHERS if annotation in known else NEW].append(rle)
        layers = [(rles, shade, 1) for shade, rles in drawn.items()]
        panels.append(Panel(draw_close_up(picture, window, layers, side=SIDE), title))
    return panels


def _masks(dataset: CocoDataset, index: int) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return the ids and the masks of the annotations of an image."""
    record = dataset.images[index]
    rles, _ = dataset.table.rles(index, record.height, record.width)
    return [row.get("id") for row in dataset.table.decode(index)], rles
