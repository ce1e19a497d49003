"""Which boxes of an image meet, without looking at all pairs.

The image is cut into horizontal strips about as high as a box; within a strip, boxes are swept from left to right.
24,000 boxes of 800 cells have a million pairs that meet, out of 288 million.

Symbols: N boxes, P pairs, E entries (a box in a strip).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from detseg.structures.bit_masks import chunks_of, spread

# Pairs that are looked at together.
PAIRS_AT_ONCE = 2**19
MAX_STRIPS = 2**16


def meeting_boxes(boxes: np.ndarray, groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, in portions, every pair of boxes of one group that share area, once.

    boxes: (N, 4) XYXY. groups: (N,) int64 >= 0; boxes of different groups never meet.
    Yields (first, second), (P,) int64 each, with first < second.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    solid = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    if len(solid) < 2:
        return
    x0, y0, x1, y1 = boxes[solid].T
    lowest, highest = _strips(y0, y1)
    entry, step = spread(highest - lowest + 1)
    strip = lowest[entry] + step
    # Ranks instead of coordinates, so that strip, group and place make one exact key.
    places = np.sort(x0)
    begin, end = np.searchsorted(places, x0), np.searchsorted(places, x1)
    _, group = np.unique(groups[solid], return_inverse=True)
    cell = (strip * (group.max() + 1) + group[entry]) * (len(solid) + 1)
    order = np.argsort(cell + begin[entry], kind="stable")
    box, strip, key = entry[order], strip[order], (cell + begin[entry])[order]
    limit = np.searchsorted(key, (cell + end[entry])[order])
    position = np.arange(len(order))
    counts = np.maximum(limit - position - 1, 0)
    for chunk in chunks_of(counts, PAIRS_AT_ONCE):
        here, step = spread(counts[chunk])
        left = position[chunk][here]
        one, other = box[left], box[left + 1 + step]
        # A pair that shares several strips counts in the upper one.
        new = strip[left] == np.maximum(lowest[one], lowest[other])
        meets = new & (np.minimum(y1[one], y1[other]) > np.maximum(y0[one], y0[other]))
        one, other = solid[one[meets]], solid[other[meets]]
        yield np.minimum(one, other), np.maximum(one, other)


def _strips(y0: np.ndarray, y1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last strip (N,) int64 of boxes; strips are as high as the mean box."""
    top, extent = y0.min(), y1.max() - y0.min()
    height = max(float((y1 - y0).mean()), extent / MAX_STRIPS)
    return ((y0 - top) / height).astype(np.int64), ((y1 - top) / height).astype(np.int64)


# Which masks of an image share pixels: found by their boxes, counted in their crops.

# A mask (h, w) bool whose upper left pixel lies at x0, y0 of the image: (mask, x0, y0).
MaskCrop = tuple[np.ndarray, int, int]


@dataclass(frozen=True)
class Overlaps:
    """The P pairs of masks that share pixels.

    first, second: (P,) int64 indices, first < second. pixels: (P,) int64, shared. areas: (N,) int64 of all masks.
    """

    first: np.ndarray
    second: np.ndarray
    pixels: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union (P,) float64."""
        return self.pixels / (self.areas[self.first] + self.areas[self.second] - self.pixels)

    @property
    def of_smaller(self) -> np.ndarray:
        """Shared pixels by the area of the smaller mask, (P,) float64."""
        return self.pixels / np.minimum(self.areas[self.first], self.areas[self.second])


def boxes_of(crops: Sequence[MaskCrop]) -> np.ndarray:
    """Return the boxes (N, 4) int64 of crops, XYXY half-open: those of the arrays, not of their pixels."""
    boxes = [(x0, y0, x0 + crop.shape[1], y0 + crop.shape[0]) for crop, x0, y0 in crops]
    return np.array(boxes, dtype=np.int64).reshape(-1, 4)


def common_pixels(first: MaskCrop, second: MaskCrop) -> int:
    """Count the pixels that two masks of one image share."""
    (a, ax, ay), (b, bx, by) = first, second
    x0, y0 = max(ax, bx), max(ay, by)
    x1, y1 = min(ax + a.shape[1], bx + b.shape[1]), min(ay + a.shape[0], by + b.shape[0])
    if x1 <= x0 or y1 <= y0:
        return 0
    return int(np.count_nonzero(a[y0 - ay : y1 - ay, x0 - ax : x1 - ax] & b[y0 - by : y1 - by, x0 - bx : x1 - bx]))


def find_overlaps(crops: Sequence[MaskCrop], at_least: float = 0.0) -> Overlaps:
    """Find the pairs of masks that share pixels.

    Time grows with the number of pairs of boxes that meet; no full-size mask is made.

    Args:
        crops: the N masks of an image.
        at_least: pairs that cannot share this part of the smaller mask are passed over.
    """
    boxes = boxes_of(crops)
    areas = np.array([np.count_nonzero(crop) for crop, _, _ in crops], dtype=np.int64)
    order = np.argsort(boxes[:, 0], kind="stable")
    ends = np.searchsorted(boxes[order, 0], boxes[order, 2])
    pairs: list[tuple[int, int, int]] = []
    for position, index in enumerate(order):
        others = order[position + 1 : ends[position]]
        width = np.minimum(boxes[others, 2], boxes[index, 2]) - np.maximum(boxes[others, 0], boxes[index, 0])
        height = np.minimum(boxes[others, 3], boxes[index, 3]) - np.maximum(boxes[others, 1], boxes[index, 1])
        window = np.where((width > 0) & (height > 0), width * height, 0)
        least = np.maximum(at_least * np.minimum(areas[others], areas[index]), 1)
        for other in others[window >= least]:
            pixels = common_pixels(crops[index], crops[other])
            if pixels and pixels >= at_least * min(areas[index], areas[other]):
                pairs.append((min(index, other), max(index, other), pixels))
    table = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 3)
    return Overlaps(table[:, 0], table[:, 1], table[:, 2], areas)


def near_duplicates(overlaps: Overlaps, least_iou: float) -> list[tuple[int, int]]:
    """Return (kept, dropped) for masks that are nearly the same.

    As non-maximum suppression with the area for a score: the largest is kept (of equal ones the first) and what has at
    least `least_iou` with it is dropped, then the same with those that are left.
    """
    close = overlaps.iou >= least_iou
    partners: dict[int, list[int]] = {}
    for first, second in zip(overlaps.first[close].tolist(), overlaps.second[close].tolist(), strict=True):
        partners.setdefault(first, []).append(second)
        partners.setdefault(second, []).append(first)
    gone: set[int] = set()
    pairs = []
    for kept in sorted(partners, key=lambda index: (-overlaps.areas[index], index)):
        if kept in gone:
            continue
        for other in sorted(partners[kept]):
            if other not in gone:
                gone.add(other)
                pairs.append((kept, other))
    return pairs


def nested(overlaps: Overlaps, classes: np.ndarray, least: float) -> dict[int, list[int]]:
    """Return outer mask -> the smaller masks of its class that lie in it with at least `least` of their pixels."""
    inside: dict[int, list[int]] = {}
    areas = overlaps.areas
    same = classes[overlaps.first] == classes[overlaps.second]
    close = same & (overlaps.of_smaller >= least) & (areas[overlaps.first] != areas[overlaps.second])
    for first, second in zip(overlaps.first[close].tolist(), overlaps.second[close].tolist(), strict=True):
        outer, inner = (first, second) if areas[first] > areas[second] else (second, first)
        inside.setdefault(outer, []).append(inner)
    return inside


def outlines_of_clusters(crops: Sequence[MaskCrop], inside: dict[int, list[int]], least: float = 0.5) -> set[int]:
    """Return the outer masks of which two or more inner ones cover at least `least`: they go around a group."""
    return {
        outer
        for outer, inner in inside.items()
        if len(inner) > 1 and covered(crops[outer], [crops[i] for i in inner]) >= least
    }


def covered(crop: MaskCrop, others: Sequence[MaskCrop]) -> float:
    """Return the part of a mask's pixels that others cover."""
    mask, x0, y0 = crop
    seen = np.zeros_like(mask)
    for other, ox, oy in others:
        left, top = max(ox, x0), max(oy, y0)
        right, bottom = min(ox + other.shape[1], x0 + mask.shape[1]), min(oy + other.shape[0], y0 + mask.shape[0])
        if right > left and bottom > top:
            part = other[top - oy : bottom - oy, left - ox : right - ox]
            seen[top - y0 : bottom - y0, left - x0 : right - x0] |= part
    return np.count_nonzero(seen & mask) / max(np.count_nonzero(mask), 1)
