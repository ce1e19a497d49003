"""Changes of intensities; each keeps dtype and range, and gets its numbers from the caller."""

from __future__ import annotations

import numpy as np

# The least and the greatest intensity that an image may have.
ValueRange = tuple[float, float]


def natural_range(image: np.ndarray) -> ValueRange:
    """Return the range of a dtype of whole numbers, or from the least to the greatest value of a float image."""
    if image.dtype.kind == "u":
        return 0.0, float(np.iinfo(image.dtype).max)
    return float(image.min()), float(image.max())


def change_intensities(image: np.ndarray, *, contrast: float, brightness: float, value_range: ValueRange) -> np.ndarray:
    """Return (image - mean) * contrast + mean + brightness * (high - low), cut to the range, of the same dtype.

    image: (H, W, C) uint8, uint16 or float32. contrast: a factor, 1 for none. brightness: a fraction of the range, 0
    for none.
    """
    low, high = value_range
    mean = float(image.mean(dtype=np.float64))
    shift = mean - mean * contrast + brightness * (high - low)
    if image.dtype == np.uint8:
        table = np.clip(np.arange(256) * contrast + shift, low, high)
        return np.rint(table).astype(np.uint8)[image]
    changed = np.clip(image.astype(np.float32) * np.float32(contrast) + np.float32(shift), low, high)
    return np.rint(changed).astype(image.dtype) if image.dtype.kind == "u" else changed.astype(np.float32)


def invert(image: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Return low + high - image, of the same dtype."""
    return image.dtype.type(value_range[0] + value_range[1]) - image
