"""Masks that are there twice, and masks that are inside of others."""

from __future__ import annotations

import numpy as np

from detseg.structures.overlaps import Overlaps


def near_duplicates(overlaps: Overlaps, least_iou: float) -> list[tuple[int, int]]:
    """Return (kept, dropped) for masks that are nearly the same.

    As non-maximum suppression with the area for a score: the largest is kept (of equal ones the first) and what has at
    least `least_iou` with it is dropped, then the same with those that are left.
    """
    close = overlaps.select(overlaps.iou >= least_iou)
    like: dict[int, list[int]] = {}
    for first, second in zip(close.first.tolist(), close.second.tolist(), strict=True):
        like.setdefault(first, []).append(second)
        like.setdefault(second, []).append(first)
    gone: set[int] = set()
    pairs = []
    for kept in sorted(like, key=lambda index: (-overlaps.first_areas[index], index)):
        if kept not in gone:
            pairs += [(kept, other) for other in sorted(like[kept]) if other not in gone]
            gone.update(like[kept])
    return pairs


def nested(overlaps: Overlaps, classes: np.ndarray, least: float) -> dict[int, list[int]]:
    """Return outer mask -> the smaller masks of its class of which at least the part `least` is inside it."""
    inside: dict[int, list[int]] = {}
    areas = overlaps.first_areas
    same = classes[overlaps.first] == classes[overlaps.second]
    close = overlaps.select(same & (overlaps.of_smaller >= least) & (areas[overlaps.first] != areas[overlaps.second]))
    for first, second in zip(close.first.tolist(), close.second.tolist(), strict=True):
        outer, inner = (first, second) if areas[first] > areas[second] else (second, first)
        inside.setdefault(outer, []).append(inner)
    return inside
