"""Weighted boxes fusion: clusters of boxes around their running mean.

Solovyev, Wang, Gabruseva: Weighted boxes fusion, Image and Vision Computing 107 (2021). In descending order of score,
each box joins the cluster whose mean box, weighted by score, it overlaps most and by more than the threshold, or starts
a new one. The cluster of a box depends on all boxes before it, so this is a loop; a grid over the image leaves few
clusters to compare each box with.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


def cluster_boxes(
    boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, thresholds: np.ndarray, *, over_smaller: bool = False
) -> np.ndarray:
    """Return the first box (N,) int64 of the cluster that each of N boxes belongs to.

    boxes: (N, 4) XYXY, of positive area, by descending score. scores: (N,) weights of the mean. groups: (N,) int64;
    boxes of different groups (classes) never join. thresholds: (N,); that of the first box applies to its cluster.
    over_smaller: use intersection over the smaller area instead of IoU.
    """
    leader = np.arange(len(boxes))
    for group in np.unique(groups):
        inside = np.flatnonzero(groups == group)
        # Plain Python numbers: 24,000 steps with four numbers each, for which NumPy's call overhead would exceed the
        # arithmetic.
        columns = (np.asarray(boxes[inside], dtype=np.float64), scores[inside], thresholds[inside])
        leader[inside] = inside[_leaders(*(column.tolist() for column in columns), over_smaller)]
    return leader


@dataclass(slots=True)
class _Cluster:
    """mean: the box weighted by score. sums: of score x side, and of the scores. cells: the grid cells of the mean."""

    leader: int
    limit: float
    mean: Sequence[float]
    sums: list[float]
    cells: tuple[int, ...]


def _leaders(boxes: list[list[float]], scores: list[float], limits: list[float], over_smaller: bool) -> list[int]:
    """Return the index of the first box of the cluster of every box, for one class."""
    sides = [side for x0, y0, x1, y1 in boxes for side in (x1 - x0, y1 - y0)]
    # With this size a box touches about four cells, and a cell is touched by few boxes.
    per_cell = 1.0 / max(1.5 * sum(sides) / len(sides), 1e-9)
    grid: dict[tuple[int, int], list[_Cluster]] = defaultdict(list)
    leaders = []
    for index, (box, score) in enumerate(zip(boxes, scores, strict=True)):
        x0, y0, x1, y1 = box
        area = (x1 - x0) * (y1 - y0)
        cells = _cells(box, per_cell)
        best, best_overlap = None, -1.0
        for key in _keys(cells):
            for cluster in grid.get(key, ()):
                u0, v0, u1, v1 = cluster.mean
                width = (x1 if x1 < u1 else u1) - (x0 if x0 > u0 else u0)
                if width <= 0:
                    continue
                height = (y1 if y1 < v1 else v1) - (y0 if y0 > v0 else v0)
                if height <= 0:
                    continue
                shared, other = width * height, (u1 - u0) * (v1 - v0)
                overlap = shared / (min(area, other) if over_smaller else area + other - shared)
                # A tie goes to the cluster that was started first.
                is_better = overlap > best_overlap or (overlap == best_overlap and cluster.leader < best.leader)
                if is_better and overlap > cluster.limit:
                    best, best_overlap = cluster, overlap
        if best is None:
            best = _Cluster(index, limits[index], box, [*(score * side for side in box), score], cells)
            for key in _keys(cells):
                grid[key].append(best)
        else:
            sums = best.sums
            for side in range(4):
                sums[side] += score * box[side]
            sums[4] += score
            total = sums[4]
            if total > 0:  # scores of 0 move nothing
                best.mean = sums[0] / total, sums[1] / total, sums[2] / total, sums[3] / total
                cells = _cells(best.mean, per_cell)
                if cells != best.cells:
                    # Its old cells are kept too: this adds comparisons, but misses none.
                    for key in set(_keys(cells)) - set(_keys(best.cells)):
                        grid[key].append(best)
                    best.cells = cells
        leaders.append(best.leader)
    return leaders


def _cells(box: Sequence[float], per_cell: float) -> tuple[int, ...]:
    """Return first column, first row, last column and last row of the grid cells that a box touches."""
    return int(box[0] * per_cell), int(box[1] * per_cell), int(box[2] * per_cell), int(box[3] * per_cell)


def _keys(cells: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    first_column, first_row, last_column, last_row = cells
    return itertools.product(range(first_column, last_column + 1), range(first_row, last_row + 1))
