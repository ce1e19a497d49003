"""Masks of several pieces: specks are dropped, further objects split off."""

from __future__ import annotations

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
