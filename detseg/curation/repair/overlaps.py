"""Masks that are there twice, and masks that lie in others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detseg.structures.mask_crop import MaskCrop, union_of
from detseg.structures.overlaps import Overlaps


def near_duplicates(overlaps: Overlaps, least_iou: float) -> list[tuple[int, int]]:
    """Return (kept, dropped) for masks that are nearly the same.

    As non-maximum suppression with the area for a score: the largest is kept (of equal ones the first) and what has at
    least `least_iou` with it is dropped, then the same with those that are left.
    """
    close = overlaps.select(overlaps.iou >= least_iou)
    partners: dict[int, list[int]] = {}
    for first, second in zip(close.first.tolist(), close.second.tolist(), strict=True):
        partners.setdefault(first, []).append(second)
        partners.setdefault(second, []).append(first)
    gone: set[int] = set()
    pairs = []
    for kept in sorted(partners, key=lambda index: (-overlaps.first_areas[index], index)):
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
    areas = overlaps.first_areas
    same = classes[overlaps.first] == classes[overlaps.second]
    close = overlaps.select(same & (overlaps.of_smaller >= least) & (areas[overlaps.first] != areas[overlaps.second]))
    for first, second in zip(close.first.tolist(), close.second.tolist(), strict=True):
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
    return crop.shared_pixels(union_of(others)) / max(crop.area, 1)
