"""Greedy suppression over a sparse list of pairs: NMS, groups around the best detections, soft-NMS.

Taken literally, these methods go through the detections one after the other, best first. A detection none of whose
neighbours is better can be decided at once, wherever it lies: nothing that comes before it touches it. So every round
here decides all such detections of the image together, and the result is that of the loop, in some ten rounds.

Detections are numbered by rank, 0 the best. Symbols: N detections, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from detseg.fusion.overlaps import score_order
from detseg.fusion.pairs import OverlapMeasure
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.overlaps import BitMasks, Pairs

Overlaps = Callable[[Pairs], np.ndarray]


def keep_best(pairs: Pairs, overlaps: Overlaps, thresholds: np.ndarray) -> np.ndarray:
    """Return which detections (N,) bool greedy non-maximum suppression keeps.

    A detection is kept unless a better one, kept before, overlaps it by more than thresholds[better], (N,) float64.
    pairs must hold at least all pairs of such an overlap; `overlaps` is asked for a small part of them.
    """
    open_ = np.ones(len(thresholds), dtype=bool)
    kept = np.zeros(len(thresholds), dtype=bool)
    while len(pairs):
        beaten = np.zeros(len(thresholds), dtype=bool)
        beaten[pairs.second] = True
        best = open_ & ~beaten
        kept |= best
        of_best = pairs.select(best[pairs.first])
        too_close = overlaps(of_best) > thresholds[of_best.first]
        open_ &= ~best
        open_[of_best.second[too_close]] = False
        pairs = pairs.select(open_[pairs.first] & open_[pairs.second])
    return kept | open_


def join_best(pairs: Pairs, overlaps: Overlaps, thresholds: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return for every detection (N,) int64 the kept one that it belongs to; a kept one belongs to itself.

    That is, of the better ones that overlap it by more than their threshold, the one that overlaps it most, and of
    those equal, the best.
    """
    leader = np.arange(len(thresholds))
    pairs = pairs.select(kept[pairs.first] & ~kept[pairs.second])
    overlap = overlaps(pairs)
    close = overlap > thresholds[pairs.first]
    pairs, overlap = pairs.select(close), overlap[close]
    order = np.lexsort((pairs.first, -overlap, pairs.second))
    member, first_of_member = np.unique(pairs.second[order], return_index=True)
    leader[member] = pairs.first[order][first_of_member]
    return leader


def decay_scores(
    pairs: Pairs, overlap: np.ndarray, scores: np.ndarray, factor: Callable[[Pairs, np.ndarray], np.ndarray], low: float
) -> np.ndarray:
    """Return the scores (N,) float64 after soft-NMS (Bodla et al., ICCV 2017).

    The detection of the highest score is taken, and the scores of those left that overlap it are multiplied by
    factor(pairs, overlap) (P,) in [0, 1]; then again among those left. One that falls below `low` only decays others
    below it, and is therefore not followed further.

    pairs, overlap: all pairs that overlap; factor gets them with `first` the one that was taken.
    """
    scores = np.asarray(scores, dtype=np.float64).copy()
    open_ = scores >= low
    inside = open_[pairs.first] & open_[pairs.second]
    pairs, overlap = pairs.select(inside), overlap[inside]
    while len(pairs):
        # Of two equal scores, the better rank is taken first.
        first_wins = scores[pairs.first] >= scores[pairs.second]
        beaten = np.zeros(len(scores), dtype=bool)
        beaten[np.where(first_wins, pairs.second, pairs.first)] = True
        best = open_ & ~beaten
        from_first, from_second = best[pairs.first], best[pairs.second]
        taken = np.concatenate([pairs.first[from_first], pairs.second[from_second]])
        other = np.concatenate([pairs.second[from_first], pairs.first[from_second]])
        factors = factor(Pairs(taken, other), np.concatenate([overlap[from_first], overlap[from_second]]))
        np.multiply.at(scores, other, factors)
        open_ &= ~best & (scores >= low)
        inside = open_[pairs.first] & open_[pairs.second]
        pairs, overlap = pairs.select(inside), overlap[inside]
    return scores


# Non-maximum suppression by mask IoU among the predictions of one image and class, as the postprocess does it.


def suppress_duplicates(predictions: Predictions, thresholds: np.ndarray) -> Predictions:
    """Drop predictions whose mask IoU with a better one of their class is greater than thresholds (N,) float64.

    The threshold is that of the better one, which must itself be kept; infinity is none. The order stays.
    """
    if not len(predictions) or np.isinf(thresholds).all():
        return predictions
    order = score_order(predictions.scores)
    measure = mask_measure(predictions.select(order))
    limits = thresholds[order]
    pairs = measure.near(predictions.classes[order], limits)
    kept = np.empty(len(order), dtype=bool)
    kept[order] = keep_best(pairs, measure, limits)
    return predictions.select(kept)


def overlapping_pairs(predictions: Predictions) -> tuple[Pairs, np.ndarray]:
    """Return all pairs of one class whose masks share pixels, first < second, and their IoUs (P,) float64."""
    measure = mask_measure(predictions)
    pairs = measure.near(predictions.classes, np.zeros(len(predictions)))
    ious = measure(pairs)
    return pairs.select(ious > 0), ious[ious > 0]


def mask_measure(predictions: Predictions) -> OverlapMeasure:
    """Return the IoUs of the masks of one image's predictions."""
    masks = BitMasks(rle_codec.read_runs(predictions.rles))
    return OverlapMeasure("mask_iou", predictions.boxes, masks, np.arange(len(predictions)))


# Weighted boxes fusion: groups of boxes around their running mean.
#
# Solovyev, Wang, Gabruseva: Weighted boxes fusion, Image and Vision Computing 107 (2021). Boxes come by descending
# score;
# each joins the group whose mean box, weighted by score, it overlaps most and by more than the threshold, or else
# begins
# one. Which group a box joins depends on all boxes before it, so this is a loop; a grid over the image leaves each
# box a
# handful of groups to look at.

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
