"""Images for display, with contours of many objects: thin, smooth, one colour per class.

Every object is traced in its crop, never in a full-size mask, and its contour runs inside its border, so that touching
cells keep two lines with a gap between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.structures import rle as rle_codec

# Percentiles that become black and white.
STRETCH = (0.3, 99.7)
# Limits on the longer side of a panel: small images are enlarged to the first, huge ones reduced to the second.
MIN_SIDE = 640
MAX_SIDE = 2048
MAX_ENLARGEMENT = 8
# Thin objects are enlarged to this many pixels on the screen, as long as the longer side does not exceed the second.
VISIBLE = 9
ENLARGED_SIDE = 1536

# Colours that can be distinguished with any colour vision (Okabe and Ito 2008), starting with those that stand out from
# black, gray and stained tissue alike.
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
# cv2 takes coordinates in sixteenths of a pixel.
FRACTION_BITS = 4


def to_display(image: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Convert an image (H, W) or (H, W, C) of any dtype to (H, W, 3) uint8 RGB.

    limits: intensities that become black and white. None: 8-bit images that use their range are unchanged; all others
    are stretched between two percentiles, with the same factor for all channels to keep colours. Of two channels the
    first becomes red and the second green; of more than three the first three are shown. Non-finite values are black.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[:, :, None]
    channels = image.shape[2]
    if channels == 2:
        image = np.concatenate([image, np.zeros_like(image[:, :, :1])], axis=2)
    image = image[:, :, :1] if channels == 1 else image[:, :, :3]
    if limits is None and image.dtype == np.uint8:
        low, high = np.percentile(image, STRETCH) if image.size else (0, 255)
        limits = (0, 255) if high - low >= 100 else (low, high)
    if image.dtype != np.uint8 or limits != (0, 255):
        values = image.astype(np.float32)
        finite = np.isfinite(values)
        if limits is None:
            limits = np.percentile(values[finite], STRETCH) if finite.any() else (0.0, 1.0)
        low, high = limits
        values = np.where(finite, (values - low) / (high - low if high > low else 1), 0)
        image = (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(image, 3, axis=2) if channels == 1 else image)


def display_scale(height: int, width: int, thickness: float | None = None) -> float:
    """Return the scale at which an image is drawn: an integer for enlarging, a fraction for reducing.

    thickness: of the objects, in pixels of the image; for thin ones the picture is larger.
    """
    longest = max(height, width, 1)
    if longest > MAX_SIDE:
        return MAX_SIDE / longest
    scale = min(-(-MIN_SIDE // longest), MAX_ENLARGEMENT)
    while thickness is not None and thickness * scale < VISIBLE and longest * (scale + 1) <= ENLARGED_SIDE:
        scale += 1
    return float(scale)


def resize_display(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize an image (H, W, 3) uint8 by `scale`, with pixel centres at +0.5."""
    if scale == 1:
        return image.copy()
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)


def class_colour(class_index: int) -> tuple[int, int, int]:
    """Return the RGB colour of a class; colours repeat after eight classes."""
    return PALETTE[class_index % len(PALETTE)]


def object_colours(classes: np.ndarray, crowd: np.ndarray) -> list[tuple[int, int, int]]:
    """Return the RGB colour of each of N objects with class index (N,); crowd regions, (N,) bool, have their own."""
    return [CROWD_COLOUR if is_crowd else class_colour(index) for index, is_crowd in zip(classes, crowd, strict=True)]


def image_reader(dataset: CocoDataset, kept: int) -> Callable[[int], np.ndarray | None]:
    """Return a function that reads an image of a data set for display, or returns None if it cannot be read.

    kept: number of recent images that are cached.
    """

    @lru_cache(maxsize=kept)
    def read(index: int) -> np.ndarray | None:
        try:
            return to_display(dataset.read_image(index))
        except DataError:
            return None

    return read


def typical_thickness(rles: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the median over objects of area / diagonal of the box, in pixels of the image; None without objects.

    About half the diameter of a disk, and the thickness of a rod.
    """
    boxes = rle_codec.bounding_boxes(rles)
    diagonals = np.hypot(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    filled = diagonals > 0
    return float(np.median(rle_codec.area(rles)[filled] / diagonals[filled])) if filled.any() else None


def fitting_line_width(thickness: float | None, scale: float) -> int:
    """Return 2 pixels, or 1 if lines would hide objects with this `typical_thickness`."""
    return 1 if thickness is not None and thickness * scale < THIN else 2


def draw_objects(
    picture: np.ndarray,
    rles: Sequence[Mapping[str, Any]],
    colours: Sequence[tuple[int, int, int]],
    scale: float,
    line_width: int | None = None,
) -> np.ndarray:
    """Return `picture` (h, w, 3) uint8 with the contours of N objects, and a tint of their colour inside.

    rles: masks at the size of the image, which `picture` shows at `scale`. colours: RGB, one per object. line_width: in
    pixels of the picture; None: suitable for the objects, see `fitting_line_width`.
    """
    line_width = line_width or fitting_line_width(typical_thickness(rles), scale)
    objects = [(colour, lines) for colour, lines in zip(colours, trace(rles, scale), strict=True) if lines]
    if not objects:
        return picture.copy()
    options = {"lineType": cv2.LINE_AA, "shift": FRACTION_BITS}
    filled = picture.copy()
    for colour in sorted({colour for colour, _ in objects}):
        cv2.fillPoly(filled, [line for own, lines in objects if own == colour for line in lines], colour, **options)
    result = cv2.addWeighted(picture, 1 - FILL, filled, FILL, 0)
    shadow = result.copy()
    every_line = [line for _, lines in objects for line in lines]
    cv2.polylines(shadow, every_line, True, (0, 0, 0), line_width + 2, **options)
    result = cv2.addWeighted(result, 1 - SHADOW, shadow, SHADOW, 0)
    for colour, lines in objects:
        cv2.polylines(result, lines, True, colour, line_width, **options)
    return result


def trace(rles: Sequence[Mapping[str, Any]], scale: float) -> list[list[np.ndarray]]:
    """Return the contours of each of N masks, closed (P, 1, 2) int32 x, y in sixteenths of a pixel of the picture.

    Outer contours and those of holes; an empty mask has none.
    """
    # With doubled pixels the line runs a quarter of a pixel inside the border instead of half a pixel.
    factor = 2 if scale > 1 else 1
    shapes = []
    for crop, x0, y0 in rle_codec.decode_crops(rles):
        mask = crop.astype(np.uint8).repeat(factor, axis=0).repeat(factor, axis=1)
        found, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE) if mask.size else ((), None)
        lines = []
        for points in found:
            line = points[:, 0, :].astype(np.float64)
            for _ in range(2 * factor - 1 if len(line) >= 8 else 0):  # smooths the staircase of pixels
                line = 0.25 * np.roll(line, 1, axis=0) + 0.5 * line + 0.25 * np.roll(line, -1, axis=0)
            in_image = (line + 0.5) / factor + (x0, y0)
            in_picture = in_image * scale - 0.5
            lines.append(np.round(in_picture * (1 << FRACTION_BITS)).astype(np.int32)[:, None, :])
        shapes.append(lines)
    return shapes


# Close-ups: single objects with their neighbours, cropped and enlarged.

Rles = Sequence[Mapping[str, Any]]
Box = tuple[int, int, int, int]


def window_around(box: Sequence[float], side: int, height: int, width: int) -> Box:
    """Return a square XYXY of `side` pixels around the centre of a box, moved into the image if possible."""
    wide, high = min(side, width), min(side, height)
    left = int(np.clip((box[0] + box[2] - wide) / 2, 0, width - wide))
    top = int(np.clip((box[1] + box[3] - high) / 2, 0, height - high))
    return left, top, left + wide, top + high


def draw_close_up(
    picture: np.ndarray,
    window: Box,
    masks: Sequence[tuple[Rles, tuple[int, int, int], int]],
    *,
    side: int,
    painted: Mapping[str, Any] | None = None,
    paint: tuple[int, int, int] = (0, 0, 0),
    background: int = 255,
) -> np.ndarray:
    """Return the window XYXY of a picture (H, W, 3) uint8, enlarged to (side, side, 3).

    masks: (masks of the image, colour, line width), later ones on top. painted: a mask whose pixels get the colour
    `paint`.
    """
    x0, y0, x1, y1 = window
    scale = side / max(x1 - x0, y1 - y0)
    shown = resize_display(np.ascontiguousarray(picture[y0:y1, x0:x1]), scale)
    for rles, shade, line_width in masks:
        cut = _cut(rles, window)
        shown = draw_objects(shown, cut, [shade] * len(cut), scale, line_width)
    for rle in _cut([painted], window) if painted else []:
        mask = rle_codec.decode(rle)
        rows, columns = (
            np.minimum((np.arange(length) / scale).astype(np.int64), limit - 1)
            for length, limit in zip(shown.shape, mask.shape, strict=False)
        )
        where = mask[rows][:, columns]
        shown[where] = shown[where] // 3 + np.array(paint, dtype=np.uint8) // 3 * 2
    canvas = np.full((side, side, 3), background, dtype=np.uint8)
    canvas[: shown.shape[0], : shown.shape[1]] = shown[:side, :side]
    return canvas


def _cut(rles: Rles, window: Box) -> list[dict[str, Any]]:
    """Return masks cropped to a window, without those outside."""
    x0, y0, x1, y1 = window
    boxes = rle_codec.bounding_boxes(rles).reshape(-1, 4)
    near = (boxes[:, 0] < x1) & (boxes[:, 2] > x0) & (boxes[:, 1] < y1) & (boxes[:, 3] > y0)
    crops = rle_codec.decode_crops([rles[index] for index in np.flatnonzero(near)])
    cut = [part.moved(-x0, -y0) for crop in crops if (part := crop.within(window)).mask.any()]
    return rle_codec.encode_crops(cut, y1 - y0, x1 - x0)
