"""The windows of an image that SAM sees: each object in the one in which it is deepest."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

Window = tuple[int, int, int, int]  # x0, y0, x1, y1


def windows_of_boxes(
    height: int, width: int, boxes: np.ndarray, *, tile: int, overlap: int
) -> Iterator[tuple[Window, np.ndarray]]:
    """Yield windows with the positions (n,) int64 of the boxes (N, 4) XYXY that are seen in them, each box once.

    Windows have up to tile x tile pixels, and neighbours share at least `overlap`. A box that none shows whole gets a
    window of its own, a square with the box in the middle and `overlap` around it, as far as the image goes.
    """
    columns, rows = _starts(width, tile, overlap), _starts(height, tile, overlap)
    column, fits_x = _deepest(boxes[:, 0], boxes[:, 2], columns, tile, width)
    row, fits_y = _deepest(boxes[:, 1], boxes[:, 3], rows, tile, height)
    fits = fits_x & fits_y
    place = row * len(columns) + column
    for number in np.unique(place[fits]).tolist():
        y0, x0 = rows[number // len(columns)], columns[number % len(columns)]
        yield (x0, y0, min(x0 + tile, width), min(y0 + tile, height)), np.flatnonzero(fits & (place == number))
    for index in np.flatnonzero(~fits):
        x0, y0, x1, y1 = boxes[index].tolist()
        side = math.ceil(max(x1 - x0, y1 - y0)) + 2 * overlap
        left, top = _start((x0 + x1) / 2, side, width), _start((y0 + y1) / 2, side, height)
        yield (left, top, min(left + side, width), min(top + side, height)), np.array([index])


def grid_windows(height: int, width: int, *, tile: int, overlap: int) -> list[Window]:
    """Return all windows of an image."""
    return [
        (x, y, min(x + tile, width), min(y + tile, height))
        for y in _starts(height, tile, overlap)
        for x in _starts(width, tile, overlap)
    ]


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where windows begin along one edge, evenly spread; the last one ends with the image."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return np.linspace(0, length - tile, count).astype(int).tolist()


def _start(middle: float, side: int, length: int) -> int:
    return min(max(math.floor(middle - side / 2), 0), max(length - side, 0))


def _deepest(
    low: np.ndarray, high: np.ndarray, starts: list[int], tile: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the window in which each interval is farthest from the sides that cut the image, and whether it is whole
    there; a side on the image's border cuts nothing.
    """
    begin = np.array(starts)
    before = np.where(begin > 0, low[:, None] - begin, np.inf)
    after = np.where(begin + tile < length, begin + tile - high[:, None], np.inf)
    depth = np.minimum(before, after)
    best = depth.argmax(axis=1)
    return best, depth[np.arange(len(low)), best] >= 0
