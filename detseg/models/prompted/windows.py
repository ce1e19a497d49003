"""The windows of an image for SAM: each object is assigned to the one in which it is deepest."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from detseg.structures.boxes import boxes_by_tile
from detseg.structures.windows import Window, window_ranges


def windows_of_boxes(
    height: int, width: int, boxes: np.ndarray, *, tile: int, overlap: int
) -> Iterator[tuple[Window, np.ndarray]]:
    """Yield windows with the indices (n,) int64 of the boxes (N, 4) XYXY assigned to them, each box once.

    Windows have up to tile x tile pixels and overlap by at least `overlap`. A box that is entirely in none gets its own
    window, a square with the box in the centre and `overlap` around it, clipped to the image.
    """
    rows, columns = window_ranges(height, tile, overlap), window_ranges(width, tile, overlap)
    tiles, others = boxes_by_tile(boxes, rows, columns, height, width)
    for row, column, inside in tiles:
        (y0, y1), (x0, x1) = rows[row], columns[column]
        yield (x0, y0, x1, y1), inside
    for index in others:
        x0, y0, x1, y1 = boxes[index].tolist()
        side = math.ceil(max(x1 - x0, y1 - y0)) + 2 * overlap
        left, top = _start((x0 + x1) / 2, side, width), _start((y0 + y1) / 2, side, height)
        yield (left, top, min(left + side, width), min(top + side, height)), np.array([index])


def _start(middle: float, side: int, length: int) -> int:
    return min(max(math.floor(middle - side / 2), 0), max(length - side, 0))
