"""What is seen where a map leaves the image."""

from __future__ import annotations

import numpy as np

# One value a channel, or the image mirrored.
BORDERS = ("constant", "reflect")
# The median is taken of every so many pixels along each axis.
_STEP = 8


def background_value(image: np.ndarray) -> np.ndarray:
    """Return the median (C,) of each channel of an image (H, W, C), of its dtype: most of a micrograph is background.

    It is taken of a part of the pixels, which tells as much and is fast.
    """
    pixels = image[:: min(_STEP, image.shape[0]), :: min(_STEP, image.shape[1])].reshape(-1, image.shape[2])
    # Of an even number of pixels, the one above the middle: a value that occurs.
    return np.partition(pixels, len(pixels) // 2, axis=0)[len(pixels) // 2]


def filled(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (height, width, C) of an image's background value and dtype."""
    canvas = np.empty((height, width, image.shape[2]), dtype=image.dtype)
    canvas[:] = background_value(image)
    return canvas
