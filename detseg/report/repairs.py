"""What repair did, to be looked at: the annotations that changed most, before and after, on one sheet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detseg.coco.dataset import CocoDataset
from detseg.curation.repair.rules import Change
from detseg.files.atomic import make_folder, written_whole
from detseg.report.close_ups import draw_close_up, window_around
from detseg.report.drawing import to_display
from detseg.report.layout import Panel, compose
from detseg.structures import rle as rle_codec

# The side of one picture in pixels, and the least part of the image that it shows.
SIDE, LEAST_WINDOW = 240, 24
# Pairs in a row.
COLUMNS = 3
CHANGED, OTHERS, NEW = (255, 176, 0), (64, 190, 255), (240, 110, 180)


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
    pairs = [panel for change in shown for panel in _before_and_after(old, new, change)]
    blank = Panel(np.full((SIDE, SIDE, 3), 255, dtype=np.uint8), "")
    pairs += [blank] * (-len(pairs) % (2 * COLUMNS))
    rows = [compose(pairs[start : start + 2 * COLUMNS], "", ()) for start in range(0, len(pairs), 2 * COLUMNS)]
    make_folder(path.parent)
    with written_whole(path, "the picture") as temporary:
        Image.fromarray(np.vstack(rows)).save(temporary, format="PNG")
    return len(shown)


def worst_changes(changes: Sequence[Change], count: int) -> list[Change]:
    """Return `count` changes, most pixels first, the rules in turn, so that no rule crowds out another."""
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
