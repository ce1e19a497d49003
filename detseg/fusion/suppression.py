"""Greedy suppression on a sparse list of pairs: NMS, clusters around the best detections, soft-NMS.

These methods are defined as a loop over detections, best first. A detection that overlaps no better one can be decided
at once, wherever it is. So every round here decides all such detections of the image together; the result is that of
the loop, in about ten rounds.

Detections are numbered by rank, 0 the best. Symbols: N detections, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from detseg.errors import DataError
from detseg.fusion.overlaps import score_order
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.overlaps import PackedMasks, Pairs, meeting_boxes

# Overlap of detections: IoU of boxes, IoU of masks, or intersection over the smaller area.


class OverlapMeasure:
    """Overlaps of N detections of one image, computed only for the requested pairs.

    kind: "box_iou", "mask_iou" or "intersection_over_smaller". If one of a pair has no mask, their boxes are compared.
    boxes: (N, 4). masks: of the N detections. has_mask: (N,) bool.
    """

    def __init__(self, kind: str, boxes: np.ndarray, masks: PackedMasks | None, has_mask: np.ndarray) -> None:
        self.over_smaller = kind == "intersection_over_smaller"
        self._boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        sides = np.maximum(self._boxes[:, 2:] - self._boxes[:, :2], 0)
        self._box_areas = sides[:, 0] * sides[:, 1]
        self._has_mask = has_mask
        # Whether masks are compared for any pair.
        self.by_masks = kind != "box_iou" and bool(has_mask.any())
        self._masks = masks
        if kind == "mask_iou" and len(boxes) and not self.by_masks:
            raise DataError(
                "mask_iou compares masks, but these predictions are boxes without masks; use overlap: box_iou"
            )

    @classmethod
    def of_masks(cls, masks: PackedMasks) -> OverlapMeasure:
        """Create a measure of mask IoU."""
        return cls("mask_iou", masks.boxes, masks, np.ones(len(masks), dtype=bool))

    def close_pairs(self, groups: np.ndarray, above: np.ndarray) -> Pairs:
        """Return the pairs within a group, first < second, whose overlap may be greater than above[first].

        For boxes the overlap is greater. groups: (N,) int64. above: (N,) float64.
        """
        found = [(np.zeros(0, dtype=np.int32),) * 2]  # int32 because there may be millions
        for pairs in meeting_boxes(self._reach(), groups):
            close = pairs.select(self._at_most(pairs) > above[pairs.first])
            found.append((close.first.astype(np.int32), close.second.astype(np.int32)))
        return Pairs(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def __call__(self, pairs: Pairs) -> np.ndarray:
        """Return the overlaps (P,) float64 in [0, 1]."""
        overlaps = self._of_boxes(pairs)
        if self.by_masks:
            both = np.flatnonzero(self._has_mask[pairs.first] & self._has_mask[pairs.second])
            first, second = pairs.first[both], pairs.second[both]
            shared = self._masks.shared_pixels(first, second)
            overlaps[both] = self._ratio(shared, self._masks.areas[first], self._masks.areas[second])
        return overlaps

    def _reach(self) -> np.ndarray:
        """Return boxes (N, 4) outside which a detection overlaps nothing."""
        reach = self._boxes.copy()
        if self.by_masks:
            tight = self._masks.boxes[self._has_mask].astype(np.float64)
            if not self._has_mask.all():
                # Its box, larger or smaller than the mask, is compared with detections without mask.
                tight[:, :2] = np.minimum(tight[:, :2], reach[self._has_mask, :2])
                tight[:, 2:] = np.maximum(tight[:, 2:], reach[self._has_mask, 2:])
            reach[self._has_mask] = tight
        return reach

    def _at_most(self, pairs: Pairs) -> np.ndarray:
        """Return an upper bound (P,) of the overlaps; for boxes the overlaps themselves."""
        overlaps = self._of_boxes(pairs)
        if self.by_masks:
            both = np.flatnonzero(self._has_mask[pairs.first] & self._has_mask[pairs.second])
            first, second = pairs.first[both], pairs.second[both]
            one, other = self._masks.areas[first], self._masks.areas[second]
            shared = np.minimum(_shared_area(self._masks.boxes, first, second), np.minimum(one, other))
            overlaps[both] = self._ratio(shared, one, other)
        return overlaps

    def _of_boxes(self, pairs: Pairs) -> np.ndarray:
        shared = _shared_area(self._boxes, pairs.first, pairs.second)
        return self._ratio(shared, self._box_areas[pairs.first], self._box_areas[pairs.second])

    def _ratio(self, shared: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        whole = np.minimum(one, other) if self.over_smaller else one + other - shared
        return np.divide(shared, whole, out=np.zeros(len(shared)), where=whole > 0)


def _shared_area(boxes: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the shared area (P,) of boxes first[p] and second[p]."""
    width = np.minimum(boxes[first, 2], boxes[second, 2]) - np.maximum(boxes[first, 0], boxes[second, 0])
    height = np.minimum(boxes[first, 3], boxes[second, 3]) - np.maximum(boxes[first, 1], boxes[second, 1])
    return np.maximum(width, 0) * np.maximum(height, 0)


def keep_best(pairs: Pairs, overlaps: Callable[[Pairs], np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """Return which detections (N,) bool greedy non-maximum suppression keeps.

    A detection is kept unless a better, kept one overlaps it by more than thresholds[better], (N,) float64. pairs must
    contain at least all such pairs; `overlaps` is called for a small part of them.
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


def join_best(
    pairs: Pairs, overlaps: Callable[[Pairs], np.ndarray], thresholds: np.ndarray, kept: np.ndarray
) -> np.ndarray:
    """Return the kept detection (N,) int64 that every detection belongs to; a kept one belongs to itself.

    Of the better ones that overlap it by more than their threshold, it is the one with the largest overlap; of a tie,
    the best.
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

    The detection with the highest score is taken, and the scores of the remaining ones that overlap it are multiplied
    by factor(pairs, overlap) (P,) in [0, 1]; this repeats for the rest. A detection that falls below `low` could only
    lower others below it, and is therefore not processed further.

    pairs, overlap: all overlapping pairs; in those given to factor, `first` is the detection that was taken.
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


def suppress_duplicates(predictions: Predictions, thresholds: np.ndarray) -> Predictions:
    """Drop predictions whose mask IoU with a better one of their class is greater than thresholds (N,) float64.

    The threshold is that of the better one, which must itself be kept; infinity drops none. The order is kept.
    """
    if not len(predictions) or np.isinf(thresholds).all():
        return predictions
    order = score_order(predictions.scores)
    measure = OverlapMeasure.of_masks(PackedMasks(rle_codec.read_runs([predictions.rles[index] for index in order])))
    limits = thresholds[order]
    kept = np.empty(len(order), dtype=bool)
    kept[order] = keep_best(measure.close_pairs(predictions.classes[order], limits), measure, limits)
    return predictions.select(kept)


def overlapping_pairs(predictions: Predictions) -> tuple[Pairs, np.ndarray]:
    """Return all pairs of one class whose masks share pixels, first < second, and their IoUs (P,) float64."""
    measure = OverlapMeasure.of_masks(PackedMasks(rle_codec.read_runs(predictions.rles)))
    pairs = measure.close_pairs(predictions.classes, np.zeros(len(predictions)))
    ious = measure(pairs)
    return pairs.select(ious > 0), ious[ious > 0]
