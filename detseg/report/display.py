"""From whatever a microscope stores to something that a screen can show."""

from __future__ import annotations

import cv2
import numpy as np

# Percentiles that become black and white.
STRETCH = (0.3, 99.7)
# The longer side of a panel: small images are enlarged to the first, huge ones are reduced to the second.
MIN_SIDE = 640
MAX_SIDE = 2048
MAX_ENLARGEMENT = 8
# Thin objects are enlarged to this many pixels on the screen, as long as the longer side stays within the second.
VISIBLE = 9
ENLARGED_SIDE = 1536


def to_display(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W) or (H, W, C) of any numbers as (H, W, 3) uint8 RGB.

    8-bit images that use their range are shown as they are; all others are stretched between two percentiles, all
    channels alike so that colours stay. Of two channels the first becomes red and the second green, of more than three
    the first three are shown. Values that are not finite are black.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[:, :, None]
    channels = image.shape[2]
    if channels == 2:
        image = np.concatenate([image, np.zeros_like(image[:, :, :1])], axis=2)
    image = image[:, :, :1] if channels == 1 else image[:, :, :3]
    shown = image if image.dtype == np.uint8 and _uses_range(image) else _stretch(image)
    return np.ascontiguousarray(np.repeat(shown, 3, axis=2) if channels == 1 else shown)


def _uses_range(image: np.ndarray) -> bool:
    """Whether an 8-bit image can be seen without a stretch."""
    if image.size == 0:
        return True
    low, high = np.percentile(image, STRETCH)
    return bool(high - low >= 100)


def _stretch(image: np.ndarray) -> np.ndarray:
    values = image.astype(np.float32)
    finite = np.isfinite(values)
    low, high = np.percentile(values[finite], STRETCH) if finite.any() else (0.0, 1.0)
    if high <= low:
        high = low + 1
    values = np.where(finite, (values - low) / (high - low), 0)
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


def display_scale(height: int, width: int, thickness: float | None = None) -> float:
    """Return the factor by which an image is drawn: a whole number for enlarging, a fraction for reducing.

    thickness: of the objects, in pixels of the image; where they are thin, the picture is drawn larger.
    """
    longest = max(height, width, 1)
    if longest > MAX_SIDE:
        return MAX_SIDE / longest
    scale = min(-(-MIN_SIDE // longest), MAX_ENLARGEMENT)
    while thickness is not None and thickness * scale < VISIBLE and longest * (scale + 1) <= ENLARGED_SIDE:
        scale += 1
    return float(scale)


def resize_display(image: np.ndarray, scale: float) -> np.ndarray:
    """Return an image (H, W, 3) uint8 enlarged or reduced by `scale`, pixel centres at +0.5."""
    if scale == 1:
        return image.copy()
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
