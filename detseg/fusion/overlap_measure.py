"""How much two detections overlap: IoU of boxes, IoU of masks, or intersection over the smaller one."""

from __future__ import annotations

import numpy as np

from detseg.errors import DataError
from detseg.structures.overlaps import PackedMasks, Pairs, meeting_boxes


class OverlapMeasure:
    """Overlaps of N detections of one image, computed for the pairs that are asked for.

    kind: "box_iou", "mask_iou" or "intersection_over_smaller". Where one of a pair has no mask, their boxes count.
    boxes: (N, 4). masks: of the N detections. has_mask: (N,) bool.
    """

    def __init__(self, kind: str, boxes: np.ndarray, masks: PackedMasks | None, has_mask: np.ndarray) -> None:
        self.over_smaller = kind == "intersection_over_smaller"
        self._boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        sides = np.maximum(self._boxes[:, 2:] - self._boxes[:, :2], 0)
        self._box_areas = sides[:, 0] * sides[:, 1]
        self._has_mask = has_mask
        # Whether any overlap is one of masks.
        self.by_masks = kind != "box_iou" and bool(has_mask.any())
        self._masks = masks
        if kind == "mask_iou" and len(boxes) and not self.by_masks:
            raise DataError(
                "mask_iou compares masks, but these predictions are boxes without masks; use overlap: box_iou"
            )

    @classmethod
    def of_masks(cls, masks: PackedMasks) -> OverlapMeasure:
        """Return the IoUs of masks."""
        return cls("mask_iou", masks.boxes, masks, np.ones(len(masks), dtype=bool))

    def close_pairs(self, groups: np.ndarray, above: np.ndarray) -> Pairs:
        """Return the pairs of one group, first < second, whose overlap may be greater than above[first].

        Of boxes, it is greater. groups: (N,) int64. above: (N,) float64.
        """
        found = [(np.zeros(0, dtype=np.int32),) * 2]  # there may be millions
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
        """Return boxes (N, 4) outside of which no detection overlaps anything."""
        reach = self._boxes.copy()
        if self.by_masks:
            tight = self._masks.boxes[self._has_mask].astype(np.float64)
            if not self._has_mask.all():
                # Against a detection without mask the box counts, which may reach further than the mask, or less far.
                tight[:, :2] = np.minimum(tight[:, :2], reach[self._has_mask, :2])
                tight[:, 2:] = np.maximum(tight[:, 2:], reach[self._has_mask, 2:])
            reach[self._has_mask] = tight
        return reach

    def _at_most(self, pairs: Pairs) -> np.ndarray:
        """Return an upper bound (P,) of the overlaps; of boxes, the overlaps themselves."""
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
