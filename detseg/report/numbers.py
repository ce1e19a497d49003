"""The numbers of objects written into pictures: their labels in tables and label images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from detseg.report.layout import font
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import MaskCrop

# Font heights in pixels; digits below the first are not readable.
_SMALLEST, _LARGEST = 10, 18
# Font height relative to the object's shorter side on the screen.
_SHARE = 0.5
# A number is left out if it would take more than this fraction of the width or height of its object's box.
_WIDEST = 0.9


def write_numbers(
    picture: np.ndarray,
    rles: Sequence[Mapping[str, Any]],
    numbers: Sequence[int],
    scale: float,
    which: str = "auto",
) -> tuple[np.ndarray, int]:
    """Write a number into each of N objects.

    Args:
        picture: (h, w, 3) uint8, which shows the image at `scale`.
        rles: masks at the size of the image; those without pixels get no number.
        numbers: one per object.
        which: "auto": those that fit into their objects without covering another number; "all"; "none".

    Returns:
        The picture with the numbers, and their count.
    """
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    taken = np.zeros(picture.shape[:2], dtype=bool)
    crops = rle_codec.decode_crops(rles) if which != "none" else []
    # Large objects, with space for their numbers, first.
    order = sorted((index for index, crop in enumerate(crops) if crop.mask.any()), key=lambda index: -crops[index].area)
    written = 0
    for index in order:
        crop, text = crops[index], str(numbers[index])
        height, width = crop.mask.shape
        size = int(np.clip(_SHARE * min(height, width) * scale, _SMALLEST, _LARGEST))
        letters = font(size)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=letters)
        middle_x, middle_y = (place * scale for place in _middle(crop))
        x, y = middle_x - (left + right) / 2, middle_y - (top + bottom) / 2
        rows = slice(max(int(y + top) - 1, 0), max(int(y + bottom) + 2, 0))
        columns = slice(max(int(x + left) - 1, 0), max(int(x + right) + 2, 0))
        if which == "auto" and (
            right - left > _WIDEST * width * scale
            or bottom - top > _WIDEST * height * scale
            or taken[rows, columns].any()
        ):
            continue
        taken[rows, columns] = True
        draw.text((x, y), text, fill=(255, 255, 255), font=letters, stroke_width=1, stroke_fill=(0, 0, 0))
        written += 1
    return np.array(canvas), written


def _middle(crop: MaskCrop) -> tuple[float, float]:
    """Return x, y in the image of the centroid, or, if that is outside the mask, of its innermost pixel."""
    rows, columns = np.nonzero(crop.mask)
    y, x = rows.mean(), columns.mean()
    if not crop.mask[int(y + 0.5), int(x + 0.5)]:
        depth = cv2.distanceTransform(np.pad(crop.mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
    return crop.x0 + float(x) + 0.5, crop.y0 + float(y) + 0.5
