"""Mending masks that annotation tools have damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.ndimage import binary_fill_holes

from detseg.structures import rle as rle_codec


def fill_holes(rles: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Fill the holes of N masks: background that 4-connected paths do not join with the outside of the mask's box.

    A hole that is open to the border of the image stays. Each mask is filled by itself, so that an object that lies in
    the hole of another one is then covered by it, too.

    Returns the masks, unchanged ones as they came, and how many pixels each one gained, (N,) int64.
    """
    filled: list[dict[str, Any]] = []
    gained = np.zeros(len(rles), dtype=np.int64)
    for index, (rle, (crop, x0, y0)) in enumerate(zip(rles, rle_codec.decode_crops(rles), strict=True)):
        whole = binary_fill_holes(crop)
        gained[index] = int(whole.sum() - crop.sum())
        filled.append(rle_codec.encode_crop(whole, x0, y0, *rle["size"]) if gained[index] else dict(rle))
    return filled, gained
