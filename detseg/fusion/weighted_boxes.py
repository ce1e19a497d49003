"""Weighted boxes fusion: groups of boxes around their running mean.

Solovyev, Wang, Gabruseva: Weighted boxes fusion, Image and Vision Computing 107 (2021). Boxes come by descending score;
each joins the group whose mean box, weighted by score, it overlaps most and by more than the threshold, or else begins
one. Which group a box joins depends on all boxes before it, so this is a loop; a grid over the image leaves each box a
handful of groups to look at.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Cells = tuple[int, int, int, int]  # first column and row, last column and row, of the grid


def group_boxes(
    boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, thresholds: np.ndarray, *, over_smaller: bool = False
) -> np.ndarray:
    """Return the first member (N,) int64 of the group that each of N boxes belongs to.

    boxes: (N, 4) XYXY, of positive area, by descending score. scores: (N,) weights of the mean. groups: (N,) int64;
    boxes of different groups (classes) never join. thresholds: (N,) of the box that begins a group.
    over_smaller: intersection over the smaller area, instead of IoU.
    """
    leader = np.arange(len(boxes))
    for group in np.unique(groups):
        inside = np.flatnonzero(groups == group)
        growing = _GrowingGroups(boxes[inside], over_smaller)
        found = growing.join_all(scores[inside].tolist(), thresholds[inside].tolist())
        leader[inside] = inside[found]
    return leader


def mean_boxes(boxes: np.ndarray, scores: np.ndarray, number: np.ndarray, count: int) -> np.ndarray:
    """Return the mean (count, 4) float64 of the boxes (N, 4) of every group number (N,), weighted by score (N,).

    A group whose scores are all 0 gets the plain mean.
    """
    has_score = np.bincount(number, scores, count)[number] > 0
    weights = np.where(has_score, scores, 1.0)
    totals = np.bincount(number, weights, count)
    sums = [np.bincount(number, weights * boxes[:, side], count) for side in range(4)]
    return np.stack(sums, axis=1) / totals[:, None]


class _GrowingGroups:
    """Groups of one class. Plain Python numbers: 24,000 steps on four numbers each, where NumPy's calls would cost more
    than the arithmetic.
    """

    def __init__(self, boxes: np.ndarray, over_smaller: bool) -> None:
        self._boxes = np.asarray(boxes, dtype=np.float64).tolist()
        self._over_smaller = over_smaller
        # A box touches about four cells of this size, and all boxes together a few a box.
        self._per_cell = 1.0 / max(1.5 * float(np.mean(boxes[:, 2:] - boxes[:, :2])), 1e-9)
        self._grid: dict[tuple[int, int], list[int]] = {}
        self._leaders: list[int] = []
        self._means: list[tuple[float, float, float, float]] = []
        self._sums: list[list[float]] = []  # of score * x0, y0, x1, y1, and of the scores
        self._cells: list[Cells] = []
        self._limits: list[float] = []

    def join_all(self, scores: list[float], thresholds: list[float]) -> list[int]:
        """Return the leader of every box."""
        result = []
        for index, (box, score) in enumerate(zip(self._boxes, scores, strict=True)):
            cells = self._cells_of(box)
            best = self._closest(box, cells)
            if best < 0:
                best = self._begin(index, box, score, cells, thresholds[index])
            else:
                self._add(best, box, score)
            result.append(self._leaders[best])
        return result

    def _closest(self, box: list[float], cells: Cells) -> int:
        """Return the group that the box joins, or -1; of groups equally close, the one begun first."""
        x0, y0, x1, y1 = box
        area = (x1 - x0) * (y1 - y0)
        best, best_overlap = -1, -1.0
        for key in _keys(cells):
            for group in self._grid.get(key, ()):
                u0, v0, u1, v1 = self._means[group]
                width = (x1 if x1 < u1 else u1) - (x0 if x0 > u0 else u0)
                if width <= 0:
                    continue
                height = (y1 if y1 < v1 else v1) - (y0 if y0 > v0 else v0)
                if height <= 0:
                    continue
                shared, other = width * height, (u1 - u0) * (v1 - v0)
                overlap = shared / (min(area, other) if self._over_smaller else area + other - shared)
                better = overlap > best_overlap or (overlap == best_overlap and group < best)
                if better and overlap > self._limits[group]:
                    best, best_overlap = group, overlap
        return best

    def _begin(self, index: int, box: list[float], score: float, cells: Cells, limit: float) -> int:
        group = len(self._leaders)
        self._leaders.append(index)
        self._means.append(tuple(box))
        self._sums.append([*(score * side for side in box), score])
        self._cells.append(cells)
        self._limits.append(limit)
        for key in _keys(cells):
            self._grid.setdefault(key, []).append(group)
        return group

    def _add(self, group: int, box: list[float], score: float) -> None:
        sums = self._sums[group]
        for side in range(4):
            sums[side] += score * box[side]
        sums[4] += score
        total = sums[4]
        if total <= 0:
            return  # scores of 0 move nothing
        mean = (sums[0] / total, sums[1] / total, sums[2] / total, sums[3] / total)
        self._means[group] = mean
        cells, before = self._cells_of(mean), self._cells[group]
        if cells != before:
            # It stays where it was, too: more groups are looked at then, but none is missed.
            known = set(_keys(before))
            for key in _keys(cells):
                if key not in known:
                    self._grid.setdefault(key, []).append(group)
            self._cells[group] = cells

    def _cells_of(self, box: list[float] | tuple[float, ...]) -> Cells:
        per_cell = self._per_cell
        return int(box[0] * per_cell), int(box[1] * per_cell), int(box[2] * per_cell), int(box[3] * per_cell)


def _keys(cells: Cells) -> Iterator[tuple[int, int]]:
    first_column, first_row, last_column, last_row = cells
    return ((column, row) for column in range(first_column, last_column + 1) for row in range(first_row, last_row + 1))
