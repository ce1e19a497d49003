"""From whatever a microscope stores to something that a screen can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from detseg.structures import rle as rle_codec

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


# Contours of many objects: thin, smooth, one colour a class, fast for thousands.
#
# Every object is traced in the crop that holds it, never in a full-size mask, and its line runs inside its border, so
# that touching cells keep two lines with a gap between them.

# Colours that people with any colour vision tell apart (Okabe and Ito 2008), those first that stand out from black,
# gray and stained tissue alike.
PALETTE = (
    (255, 176, 0),
    (64, 190, 255),
    (0, 200, 140),
    (240, 110, 180),
    (240, 228, 66),
    (235, 95, 20),
    (70, 110, 255),
    (190, 190, 190),
)
CROWD_COLOUR = (150, 150, 150)
# A dark line under the coloured one keeps it visible on bright images.
SHADOW = 0.35
FILL = 0.10
# Objects thinner than this on the screen get lines of one pixel.
THIN = 8
# cv2 takes coordinates as whole sixteenths of a pixel.
FRACTION_BITS = 4


def class_colour(class_index: int) -> tuple[int, int, int]:
    """Return the RGB colour of a class; after eight classes they repeat."""
    return PALETTE[class_index % len(PALETTE)]


def draw_objects(
    picture: np.ndarray,
    rles: Sequence[Mapping[str, Any]],
    colours: Sequence[tuple[int, int, int]],
    scale: float,
    line_width: int = 2,
) -> np.ndarray:
    """Return `picture` (h, w, 3) uint8 with the contours of N objects and a breath of their colour inside.

    rles: masks at the size of the image that `picture` shows `scale` times enlarged. colours: RGB, one an object.
    line_width: in pixels of the picture; see `fitting_line_width`.
    """
    shapes = trace(rles, scale)
    colours = [colour for colour, shape in zip(colours, shapes, strict=True) if shape]
    shapes = [shape for shape in shapes if shape]
    result = picture.copy()
    if not shapes:
        return result
    for colour in sorted(set(colours)):
        lines = [line for own, shape in zip(colours, shapes, strict=True) if own == colour for line in shape]
        cv2.fillPoly(result, lines, colour, lineType=cv2.LINE_AA, shift=FRACTION_BITS)
    result = _blend(picture, result, FILL)
    shadow = result.copy()
    every_line = [line for shape in shapes for line in shape]
    _polylines(shadow, every_line, (0, 0, 0), line_width + 2)
    result = _blend(result, shadow, SHADOW)
    for colour, shape in zip(colours, shapes, strict=True):
        _polylines(result, shape, colour, line_width)
    return result


def _blend(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    return cv2.addWeighted(first, 1 - weight, second, weight, 0)


def _polylines(picture: np.ndarray, lines: Sequence[np.ndarray], colour: tuple[int, int, int], width: int) -> None:
    cv2.polylines(picture, list(lines), True, colour, width, lineType=cv2.LINE_AA, shift=FRACTION_BITS)


def typical_thickness(rles: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the median, in pixels of the image, of area by diagonal of the box; None without an object.

    About half the diameter of a disc, and the thickness of a rod.
    """
    boxes = rle_codec.bounding_boxes(rles)
    diagonals = np.hypot(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    filled = diagonals > 0
    return float(np.median(rle_codec.area(rles)[filled] / diagonals[filled])) if filled.any() else None


def fitting_line_width(thickness: float | None, scale: float) -> int:
    """Return 2 pixels, or 1 where objects of this `typical_thickness` would be hidden under their lines."""
    return 1 if thickness is not None and thickness * scale < THIN else 2


def trace(rles: Sequence[Mapping[str, Any]], scale: float) -> list[list[np.ndarray]]:
    """Return for each of N masks its closed lines, (P, 1, 2) int32 x, y in sixteenths of a pixel of the picture.

    Outer borders and those of holes; an empty mask has none.
    """
    shapes = []
    # Doubled pixels let the line run a quarter of a pixel inside the border instead of half a pixel.
    doubled = scale > 1
    for crop, x0, y0 in rle_codec.decode_crops(rles):
        mask = crop.astype(np.uint8)
        if doubled:
            mask = mask.repeat(2, axis=0).repeat(2, axis=1)
        found, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE) if mask.size else ((), None)
        shapes.append([_to_picture(line[:, 0, :], x0, y0, scale, doubled) for line in found])
    return shapes


def _to_picture(points: np.ndarray, x0: int, y0: int, scale: float, doubled: bool) -> np.ndarray:
    """Smooth the stairs of a traced line (P, 2) and move it to the picture."""
    line = _smooth(points.astype(np.float64), 3 if doubled else 1)
    in_image = (line + 0.5) / (2 if doubled else 1) + (x0, y0)
    in_picture = in_image * scale - 0.5
    return np.round(in_picture * (1 << FRACTION_BITS)).astype(np.int32)[:, None, :]


def _smooth(line: np.ndarray, times: int) -> np.ndarray:
    if len(line) < 8:
        return line
    for _ in range(times):
        line = 0.25 * np.roll(line, 1, axis=0) + 0.5 * line + 0.25 * np.roll(line, -1, axis=0)
    return line
