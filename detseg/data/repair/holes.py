"""Holes of masks: background that a mask encloses.

A hole is a 4-connected part of the background that does not reach the outside of the mask's box, found by invading the
complement from there. So a gap that only touches the outside through a corner is a hole, and one that is open to the
border of the image is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from detseg.data.repair.overlaps import MaskCrop, common_pixels
from detseg.structures import rle as rle_codec

# Of another object, the part of its pixels inside a hole from which on it counts as lying there.
LIES_IN_HOLE = 0.5


def label_holes(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the holes of a mask (h, w) bool: (h, w) int32 with 0 outside of holes, and how many there are."""
    if mask.all():
        return np.zeros(mask.shape, dtype=np.int32), 0
    around = np.ones((mask.shape[0] + 2, mask.shape[1] + 2), dtype=np.uint8)
    around[1:-1, 1:-1] = ~mask
    count, labels = cv2.connectedComponents(around, connectivity=4, ltype=cv2.CV_32S)
    if count <= 2:
        return np.zeros(mask.shape, dtype=np.int32), 0
    # The number of the outside, which the corner shows, and 0, the mask, become 0.
    outside = labels[0, 0]
    new = np.zeros(count, dtype=np.int32)
    new[[label for label in range(1, count) if label != outside]] = np.arange(1, count - 1)
    return new[labels[1:-1, 1:-1]], count - 2


def hole_areas(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of every hole of a mask (h, w) bool, (holes,) int64."""
    labels, count = label_holes(mask)
    return np.bincount(labels.ravel(), minlength=count + 1)[1:]


def filled(mask: np.ndarray) -> np.ndarray:
    """Return a mask (h, w) bool without its holes; the mask itself where it has none."""
    labels, count = label_holes(mask)
    return mask | (labels > 0) if count else mask


def filled_where_free(crop: MaskCrop, others: Iterable[MaskCrop]) -> tuple[np.ndarray, bool]:
    """Fill the holes of a mask in which none of the other objects lies with at least half of its pixels.

    A nucleus in the ring of another one is not buried; an object that only crosses a hole does not keep it open.

    Returns the mask (h, w) bool, the same array where nothing was filled, and whether a hole was left.
    """
    mask = crop[0]
    labels, count = label_holes(mask)
    if not count:
        return mask, False
    taken = _holes_with_objects(labels, crop, others)
    free = (labels > 0) & ~np.isin(labels, taken)
    return (mask | free if free.any() else mask), bool(taken)


def _holes_with_objects(labels: np.ndarray, crop: MaskCrop, others: Iterable[MaskCrop]) -> list[int]:
    """Return the labels of the holes in which other objects lie."""
    _, x0, y0 = crop
    taken: set[int] = set()
    for other in others:
        area = np.count_nonzero(other[0])
        if common_pixels((labels > 0, x0, y0), other) < LIES_IN_HOLE * area:
            continue
        for label in range(1, int(labels.max()) + 1):
            if common_pixels((labels == label, x0, y0), other) >= LIES_IN_HOLE * area:
                taken.add(label)
    return sorted(taken)


def fill_holes(rles: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Fill all holes of N masks.

    Each mask is filled by itself, so that an object that lies in the hole of another one is then covered by it, too.

    Returns the masks, unchanged ones as they came, and how many pixels each one gained, (N,) int64.
    """
    results: list[dict[str, Any]] = []
    gained = np.zeros(len(rles), dtype=np.int64)
    for index, (rle, (crop, x0, y0)) in enumerate(zip(rles, rle_codec.decode_crops(rles), strict=True)):
        whole = filled(crop)
        gained[index] = np.count_nonzero(whole) - np.count_nonzero(crop)
        results.append(rle_codec.encode_crop(whole, x0, y0, *rle["size"]) if gained[index] else dict(rle))
    return results, gained
