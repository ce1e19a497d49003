"""Which boxes of an image meet, without looking at all pairs.

The image is cut into horizontal strips about as high as a box; within a strip, boxes are swept from left to right.
24,000 boxes of 800 cells have a million pairs that meet, out of 288 million.

Symbols: N boxes, P pairs, E entries (a box in a strip).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from detseg.fusion.bit_masks import chunks_of, spread

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
