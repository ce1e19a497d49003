"""Masks of several pieces: what is a speck, and what another object with the same number."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np


def pieces_of(mask: np.ndarray) -> list[np.ndarray]:
    """Return the 8-connected pieces of a mask (h, w) bool, each (h, w) bool, the largest first.

    Of equal ones the one whose first pixel comes first goes first.
    """
    labels, areas = label_pieces(mask)
    if len(areas) == 1:
        return [mask]
    return [labels == label + 1 for label in np.argsort(-areas, kind="stable")]


def label_pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the 8-connected pieces of a mask (h, w) bool from 1 on, in the order of their first pixels.

    Returns (h, w) int32, and the pixels of each piece, (pieces,) int64.
    """
    if not mask.size:
        return np.zeros(mask.shape, dtype=np.int32), np.zeros(0, dtype=np.int64)
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    if count > 2:
        # The order of OpenCV's numbers is not promised.
        values, first = np.unique(labels, return_index=True)
        new = np.zeros(count, dtype=np.int32)
        new[values[values > 0][np.argsort(first[values > 0])]] = np.arange(1, count)
        labels = new[labels]
    return labels, np.bincount(labels.ravel(), minlength=count)[1:]


def is_speck(areas: np.ndarray, speck_area: int, speck_fraction: float) -> np.ndarray:
    """Return which pieces of a mask are specks, bool, of their areas (pieces,) with the largest first.

    A speck has fewer than `speck_area` pixels, or less than `speck_fraction` of the largest piece, which is none.
    """
    specks = areas < np.maximum(speck_area, speck_fraction * areas[0])
    specks[0] = False
    return specks


def far_groups(pieces: Sequence[np.ndarray], factor: float) -> list[np.ndarray]:
    """Join the pieces of a mask, the largest first, to groups that lie far apart: (h, w) bool each, that one first.

    Two pieces are near each other where the gap between their boxes is at most `factor` times the longer side of the
    largest piece's box, and in one group where a chain of near pieces joins them.
    """
    boxes = np.array([_box_of(piece) for piece in pieces])
    reach = factor * (boxes[0, 2:] - boxes[0, :2]).max()
    group_of = np.full(len(pieces), -1)
    groups = []
    for first in range(len(pieces)):
        if group_of[first] >= 0:
            continue
        group_of[first], pending = len(groups), [first]
        while pending:
            box = boxes[pending.pop()]
            gaps = np.maximum(np.maximum(boxes[:, :2] - box[2:], box[:2] - boxes[:, 2:]), 0)
            near = np.flatnonzero((np.hypot(*gaps.T) <= reach) & (group_of < 0))
            group_of[near] = len(groups)
            pending += near.tolist()
        groups.append(np.logical_or.reduce([pieces[index] for index in np.flatnonzero(group_of == len(groups))]))
    return groups


def _box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
