"""Outlines of masks along pixel edges, which enclose exactly the centres of their pixels.

Points are x, y in pixels from the outer corner of the first pixel. `coco.masks.fill_polygons` is the inverse.
"""

from __future__ import annotations

import cv2
import numpy as np

# Rings of one connected component: its outline, then its holes; each (P, 2) int64, x, y.
Polygon = list[np.ndarray]


def trace_polygons(pixels: np.ndarray, x0: int = 0, y0: int = 0) -> list[Polygon]:
    """Trace a mask (h, w) bool whose upper left pixel is (x0, y0) of the image.

    Returns:
        One polygon per 4-connected component. A ring has points only where it turns, none twice, and is not closed.
        Outlines run clockwise on the screen (y down), holes the other way; rings of a polygon touch only in single
        points, as required by OGC's simple features and QuPath. An empty mask has no polygon.
    """
    if not pixels.any():
        return []
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(pixels.astype(np.uint8), connectivity=4)
    polygons = []
    for number in range(1, count):
        left, top, width, height = boxes[number, :4]
        part = labels[top : top + height, left : left + width] == number
        rings = [ring + np.array([x0 + left, y0 + top]) for ring in _rings(part)]
        # All rings have the interior on the same side, so the outline is the one with the other orientation.
        polygons.append(sorted(rings, key=lambda ring: -_twice_area(ring)))
    return polygons


def _rings(part: np.ndarray) -> list[np.ndarray]:
    """Return the rings of a 4-connected mask (h, w) bool, each (P, 2) int64."""
    xs, ys, across, down = _corners(part)
    unseen = np.ones(len(xs), dtype=bool)
    rings = []
    for first in range(len(xs)):
        if not unseen[first]:
            continue
        chain, corner = [], first
        while unseen[corner]:
            other = across[corner]
            unseen[corner] = unseen[other] = False
            chain += [corner, other]
            corner = down[other]
        ring = np.stack([xs[chain], ys[chain]], axis=1)
        # The first step goes to the right, along the upper edge of a pixel inside, or the lower edge of one.
        inside_below = ys[first] < part.shape[0] and part[ys[first], xs[first]]
        rings += _split(ring if inside_below else ring[::-1])
    return rings


def _corners(part: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int], list[int]]:
    """Return x, y (P,) int64 of the points where outlines turn, and the next ones along their rows and columns.

    A corner shared by two diagonal pixels occurs twice, once for each, so that no ring crosses from one to the other.
    """
    padded = np.pad(part, 1)
    upper_left, upper_right = padded[:-1, :-1], padded[:-1, 1:]
    lower_left, lower_right = padded[1:, :-1], padded[1:, 1:]
    falling = upper_left & lower_right & ~upper_right & ~lower_left
    rising = upper_right & lower_left & ~upper_left & ~lower_right
    turns = (upper_left ^ upper_right ^ lower_left ^ lower_right) | falling | rising
    rows, columns = np.nonzero(turns)
    repeats = 1 + (falling | rising)[rows, columns]
    ys, xs = np.repeat(rows, repeats), np.repeat(columns, repeats)
    # Of a corner that occurs twice, the first is reached from the left. In its column it is the upper one if its pixel
    # is the upper left one of the diagonal, else the lower one.
    is_second = np.append(False, (np.diff(xs) == 0) & (np.diff(ys) == 0))
    order = np.lexsort((is_second ^ np.repeat(rising[rows, columns], repeats), ys, xs))
    count = np.arange(len(xs))
    across = count ^ 1
    down = np.empty_like(count)
    down[order] = order[count ^ 1]
    return xs, ys, across.tolist(), down.tolist()


def _split(ring: np.ndarray) -> list[np.ndarray]:
    """Split a ring (P, 2) that returns to a point into rings that do not."""
    if len(set(map(tuple, ring.tolist()))) == len(ring):
        return [ring]
    pieces, path, position = [], [], {}
    for point in map(tuple, ring.tolist()):
        if point in position:
            start = position[point]
            pieces.append(path[start:])
            for passed in path[start + 1 :]:
                del position[passed]
            path = path[: start + 1]
        else:
            position[point] = len(path)
            path.append(point)
    return [_without_straight_points(np.array(piece)) for piece in [*pieces, path]]


def _without_straight_points(ring: np.ndarray) -> np.ndarray:
    step = np.roll(ring, -1, axis=0) - ring
    before = np.roll(step, 1, axis=0)
    return ring[step[:, 0] * before[:, 1] != step[:, 1] * before[:, 0]]


def _twice_area(ring: np.ndarray) -> int:
    """Return twice the area within a ring, positive if it runs clockwise on the screen."""
    x, y = ring[:, 0], ring[:, 1]
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())
