"""What repair did, to be looked at: the annotations that changed most, before and after, on one sheet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from detseg.data.coco import CocoDataset
from detseg.report.contours import draw_objects
from detseg.report.display import resize_display, to_display
from detseg.report.layout import Panel, compose
from detseg.structures import rle as rle_codec
from detseg.structures.atomic_write import written_whole

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
