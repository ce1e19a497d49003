"""Windows that cover an image: of equal size, evenly spaced, with overlap."""

from __future__ import annotations

import math

import numpy as np

Window = tuple[int, int, int, int]  # x0, y0, x1, y1


def grid_windows(height: int, width: int, *, tile: int, overlap: int) -> list[Window]:
    """Return windows of tile x tile pixels (smaller if the image is) that cover an image, row by row.

    Neighbours share at least `overlap` pixels, which is less than `tile`.
    """
    rows, columns = window_ranges(height, tile, overlap), window_ranges(width, tile, overlap)
    return [(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns]


def window_ranges(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Return start and end of the windows along one axis, evenly spaced; the last one ends with the image."""
    if length <= tile:
        return [(0, length)]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [(start, start + tile) for start in np.linspace(0, length - tile, count).astype(int).tolist()]
