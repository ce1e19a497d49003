"""Boxes as NumPy arrays: (N, 4) float32, XYXY, in pixels, half-open.

A box `(x0, y0, x1, y1)` covers the pixels with x0 <= x < x1 and y0 <= y < y1, so a mask whose columns are 3, 4 and 5
has x0 = 3 and x1 = 6, and its width is x1 - x0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def box_area(boxes: np.ndarray) -> np.ndarray:
    """Return the area in square pixels, (N,) float32, of boxes (N, 4); inverted boxes have area 0."""
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def to_xywh(boxes: np.ndarray) -> np.ndarray:
    """Convert boxes (N, 4) XYXY to COCO's x, y, width, height: (N, 4) float64."""
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def box_intersection(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection area (N, M) float32 in square pixels of every pair of boxes (N, 4) and (M, 4)."""
    first = np.asarray(first, dtype=np.float32).reshape(-1, 4)
    second = np.asarray(second, dtype=np.float32).reshape(-1, 4)
    width = np.minimum(first[:, None, 2], second[None, :, 2]) - np.maximum(first[:, None, 0], second[None, :, 0])
    height = np.minimum(first[:, None, 3], second[None, :, 3]) - np.maximum(first[:, None, 1], second[None, :, 1])
    return np.maximum(width, 0) * np.maximum(height, 0)


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection over union (N, M) float32, in [0, 1], of every pair of boxes (N, 4) and (M, 4).

    Two boxes without area have IoU 0.
    """
    intersection = box_intersection(first, second)
    union = box_area(first)[:, None] + box_area(second)[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Clip boxes (N, 4) to an image of `height` x `width` pixels; float32."""
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    limits = np.array([width, height, width, height], dtype=np.float32)
    return np.clip(boxes, 0, limits)


def depth_in_window(boxes: np.ndarray, window: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    """Return the distances (N,) of boxes (N, 4) to the sides of a window XYXY that cut the image, negative outside.

    Sides on the border of the image, height x width, do not cut it: in a window that is the whole image, all distances
    are infinite.
    """
    x0, y0, x1, y1 = window
    gaps = [np.full(len(boxes), np.inf)]
    for is_cut, distance in (
        (x0 > 0, boxes[:, 0] - x0),
        (y0 > 0, boxes[:, 1] - y0),
        (x1 < width, x1 - boxes[:, 2]),
        (y1 < height, y1 - boxes[:, 3]),
    ):
        if is_cut:
            gaps.append(distance)
    return np.minimum.reduce(gaps)


def boxes_by_tile(
    boxes: np.ndarray, rows: Sequence[tuple[int, int]], columns: Sequence[tuple[int, int]], height: int, width: int
) -> tuple[list[tuple[int, int, np.ndarray]], np.ndarray]:
    """Assign each box (N, 4) to the tile of a grid in which it is farthest from the sides that cut the image.

    rows, columns: (start, end) of each, in an image height x width.

    Returns:
        (row, column, indices (n,) int64 of its boxes) of every tile with any; the indices of the boxes that no tile
        contains entirely.
    """
    row, is_whole_y = _deepest(boxes[:, 1], boxes[:, 3], rows, height)
    column, is_whole_x = _deepest(boxes[:, 0], boxes[:, 2], columns, width)
    place, is_whole = row * len(columns) + column, is_whole_y & is_whole_x
    inside = np.flatnonzero(is_whole)
    inside = inside[np.argsort(place[inside], kind="stable")]
    groups = np.split(inside, np.flatnonzero(np.diff(place[inside])) + 1) if len(inside) else []
    tiles = [(int(row[group[0]]), int(column[group[0]]), group) for group in groups]
    return tiles, np.flatnonzero(~is_whole)


def _deepest(
    low: np.ndarray, high: np.ndarray, ranges: Sequence[tuple[int, int]], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the range in which each of N intervals is farthest from both ends, and whether it lies entirely inside;
    ends of the image do not count.
    """
    start, end = np.array(ranges).T
    before = np.where(start > 0, low[:, None] - start, np.inf)
    after = np.where(end < length, end - high[:, None], np.inf)
    depth = np.minimum(before, after)
    best = depth.argmax(axis=1)
    return best, depth[np.arange(len(low)), best] >= 0
