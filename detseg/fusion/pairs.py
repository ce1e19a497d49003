"""How much two detections overlap: IoU of boxes, IoU of masks, or intersection over the smaller one."""

from __future__ import annotations

import numpy as np

from detseg.errors import DataError
from detseg.structures.overlaps import BitMasks, Pairs, meeting_boxes


class OverlapMeasure:
    """Overlaps of N detections of one image, computed for the pairs that are asked for.

    kind: "box_iou", "mask_iou" or "intersection_over_smaller". Where one of a pair has no mask, their boxes count.
    boxes: (N, 4). masks: the masks of the detections that have one, mask_of: (N,) int64 their index, -1 for none.
    """

    def __init__(self, kind: str, boxes: np.ndarray, masks: BitMasks | None, mask_of: np.ndarray) -> None:
        self.over_smaller = kind == "intersection_over_smaller"
        self._boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        sides = np.maximum(self._boxes[:, 2:] - self._boxes[:, :2], 0)
        self._box_areas = sides[:, 0] * sides[:, 1]
        self._masks = None if kind == "box_iou" else masks
        self._mask_of = mask_of
        if kind == "mask_iou" and len(boxes) and not (mask_of >= 0).any():
            raise DataError("mask_iou compares masks, but these predictions are boxes alone; use overlap: box_iou")

    @property
    def by_masks(self) -> bool:
        """Whether any overlap is one of masks."""
        return self._masks is not None and bool((self._mask_of >= 0).any())

    def near(self, groups: np.ndarray, above: np.ndarray) -> Pairs:
        """Return the pairs of one group whose overlap may be greater than above[first]; boxes decide exactly.

        groups: (N,) int64. above: (N,) float64.
        """
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for pairs in meeting_boxes(self._reach(), groups):
            pairs = pairs.select(self._at_most(pairs.first, pairs.second) > above[pairs.first])
            found.append((pairs.first.astype(np.int32), pairs.second.astype(np.int32)))
        if not found:
            return Pairs(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32))
        return Pairs(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def __call__(self, pairs: Pairs) -> np.ndarray:
        """Return the overlaps (P,) float64 in [0, 1]."""
        overlaps = self._of_boxes(pairs.first, pairs.second)
        if not self.by_masks:
            return overlaps
        first, second = self._mask_of[pairs.first], self._mask_of[pairs.second]
        both = np.flatnonzero((first >= 0) & (second >= 0))
        first, second = first[both], second[both]
        shared = self._masks.shared_pixels(first, second)
        overlaps[both] = self._ratio(shared, self._masks.areas[first], self._masks.areas[second])
        return overlaps

    def _reach(self) -> np.ndarray:
        """Return boxes (N, 4) outside of which no detection overlaps anything."""
        if not self.by_masks:
            return self._boxes
        has_mask = self._mask_of >= 0
        reach = self._boxes.copy()
        tight = self._masks.boxes[self._mask_of[has_mask]].astype(np.float64)
        if not has_mask.all():
            # Against a detection without mask the box counts, which may reach further than the mask, or less far.
            tight[:, :2] = np.minimum(tight[:, :2], reach[has_mask, :2])
            tight[:, 2:] = np.maximum(tight[:, 2:], reach[has_mask, 2:])
        reach[has_mask] = tight
        return reach

    def _at_most(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return an upper bound (P,) of the overlaps; of boxes, the overlaps themselves."""
        overlaps = self._of_boxes(first, second)
        if not self.by_masks:
            return overlaps
        first, second = self._mask_of[first], self._mask_of[second]
        both = np.flatnonzero((first >= 0) & (second >= 0))
        first, second = first[both], second[both]
        one, other = self._masks.areas[first], self._masks.areas[second]
        shared = np.minimum(_shared_area(self._masks.boxes, first, second), np.minimum(one, other))
        overlaps[both] = self._ratio(shared, one, other)
        return overlaps

    def _of_boxes(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        shared = _shared_area(self._boxes, first, second)
        return self._ratio(shared, self._box_areas[first], self._box_areas[second])

    def _ratio(self, shared: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        whole = np.minimum(one, other) if self.over_smaller else one + other - shared
        return np.divide(shared, whole, out=np.zeros(len(shared)), where=whole > 0)


def _shared_area(boxes: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the shared area (P,) of boxes first[p] and second[p]."""
    width = np.minimum(boxes[first, 2], boxes[second, 2]) - np.maximum(boxes[first, 0], boxes[second, 0])
    height = np.minimum(boxes[first, 3], boxes[second, 3]) - np.maximum(boxes[first, 1], boxes[second, 1])
    return np.maximum(width, 0) * np.maximum(height, 0)
