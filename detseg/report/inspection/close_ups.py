"""Pictures inside the page: examples of images, and close-ups of single objects among their neighbours."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.report.drawing import (
    class_colour,
    draw_objects,
    fitting_line_width,
    resize_display,
    to_display,
    typical_thickness,
)
from detseg.structures import rle as rle_codec

# Sides in pixels of a close-up, and the least part of the image that it shows; of an example.
CLOSE_UP, LEAST_WINDOW, EXAMPLE = 220, 32, 460
FOUND, OTHERS, DEFECT = (255, 176, 0), (64, 190, 255), (235, 30, 60)
# A large object is cut so that a small defect can be seen: so many times its length, or so many pixels, are shown.
DETAIL, LEAST_DETAIL = 6, 96
_QUALITY = 86


def data_url(picture: np.ndarray) -> str:
    """Return a picture (h, w, 3) uint8 as a data: address of a JPEG."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="JPEG", quality=_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


class CloseUps:
    """Draws from the images of a data set; what cannot be read gives None. The last image is kept."""

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset
        self._kept: tuple[int, np.ndarray | None] = (-1, None)

    def picture(self, index: int) -> np.ndarray | None:
        """Return image number `index` as (H, W, 3) uint8, or None."""
        if self._kept[0] != index:
            try:
                shown = to_display(self.dataset.read_image(index))
            except DataError:
                shown = None
            self._kept = (index, shown)
        return self._kept[1]

    def example(self, index: int, *, with_masks: bool) -> np.ndarray | None:
        """Return a whole image, its longer side `EXAMPLE`, with or without the contours of its objects."""
        picture = self.picture(index)
        if picture is None:
            return None
        scale = EXAMPLE / max(picture.shape[:2])
        base = resize_display(picture, scale)
        if not with_masks:
            return base
        rles, classes, crowd = self.dataset.annotations(index)
        own = [rle for rle, is_crowd in zip(rles, crowd, strict=True) if not is_crowd]
        width = fitting_line_width(typical_thickness(own), scale)
        return draw_objects(base, own, [class_colour(c) for c in classes[~crowd]], scale, width)

    def of_object(self, index: int, number: int, defect: Mapping[str, Any] | None = None) -> np.ndarray | None:
        """Return annotation `number` of image `index` in yellow with its neighbours in blue, `CLOSE_UP` pixels wide.

        defect: RLE of the pixels that the picture is about, painted red.
        """
        picture = self.picture(index)
        if picture is None:
            return None
        record = self.dataset.images[index]
        rles, _ = self.dataset.table.rles(index, record.height, record.width)
        about = [rles[number], *([_largest_part(defect)] if defect else [])]
        left, top, side = _window(about, record.height, record.width)
        scale = CLOSE_UP / side
        part = np.ascontiguousarray(picture[top : top + side, left : left + side])
        window = (left, top, *part.shape[:2])
        shown = resize_display(part, scale)
        others = [rle for n, rle in enumerate(rles) if n != number]
        shown = _drawn(shown, others, window, OTHERS, scale, 1)
        shown = _drawn(shown, [rles[number]], window, FOUND, scale, 2)
        if defect:
            shown = _painted(shown, defect, window, scale)
        canvas = np.full((CLOSE_UP, CLOSE_UP, 3), 128, dtype=np.uint8)
        canvas[: shown.shape[0], : shown.shape[1]] = shown[:CLOSE_UP, :CLOSE_UP]
        return canvas


def _window(rles: Sequence[Mapping[str, Any]], height: int, width: int) -> tuple[int, int, int]:
    """Return x0, y0 and the side of a square that shows an object, or what is about it where that is much smaller.

    The square is moved into the image where it can be. rles: the object, and what the picture is about.
    """
    boxes = rle_codec.bounding_boxes(rles).astype(np.float64)
    lengths = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    side = int(min(max(1.5 * lengths[0], 1.5 * lengths[-1], LEAST_WINDOW), max(DETAIL * lengths[-1], LEAST_DETAIL)))
    # An object that fits is shown whole, with its own centre.
    x0, y0, x1, y1 = boxes[0 if side >= lengths[0] else -1]
    left = int(np.clip((x0 + x1 - side) / 2, 0, max(width - side, 0)))
    top = int(np.clip((y0 + y1 - side) / 2, 0, max(height - side, 0)))
    return left, top, side


def _largest_part(rle: Mapping[str, Any]) -> dict[str, Any]:
    """Return the largest 8-connected part of a mask: where to look."""
    mask, x0, y0 = rle_codec.decode_crop(rle)
    mask = np.ascontiguousarray(mask).view(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    largest = 1 + int(stats[1:count, cv2.CC_STAT_AREA].argmax())
    return rle_codec.encode_crop(labels == largest, x0, y0, *rle["size"])


def _cut(rles: Sequence[Mapping[str, Any]], window: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    """Return what a window (x0, y0, height, width) shows of masks."""
    left, top, high, wide = window
    boxes = rle_codec.bounding_boxes(rles).reshape(-1, 4)
    near = (boxes[:, 0] < left + wide) & (boxes[:, 2] > left) & (boxes[:, 1] < top + high) & (boxes[:, 3] > top)
    cut = []
    for mask, x0, y0 in rle_codec.decode_crops([rles[index] for index in np.flatnonzero(near)]):
        part = mask[max(top - y0, 0) : max(top + high - y0, 0), max(left - x0, 0) : max(left + wide - x0, 0)]
        if part.any():
            cut.append((part, max(x0 - left, 0), max(y0 - top, 0)))
    return rle_codec.encode_crops(cut, high, wide)


def _drawn(
    shown: np.ndarray,
    rles: Sequence[Mapping[str, Any]],
    window: tuple[int, int, int, int],
    shade: tuple[int, int, int],
    scale: float,
    line_width: int,
) -> np.ndarray:
    own = _cut(rles, window)
    return draw_objects(shown, own, [shade] * len(own), scale, line_width)


def _painted(
    shown: np.ndarray, defect: Mapping[str, Any], window: tuple[int, int, int, int], scale: float
) -> np.ndarray:
    """Paint the pixels of a mask half over."""
    parts = _cut([defect], window)
    if not parts:
        return shown
    mask = rle_codec.decode(parts[0])
    rows = np.minimum((np.arange(shown.shape[0]) / scale).astype(np.int64), mask.shape[0] - 1)
    columns = np.minimum((np.arange(shown.shape[1]) / scale).astype(np.int64), mask.shape[1] - 1)
    where = mask[rows][:, columns]
    result = shown.copy()
    result[where] = shown[where] // 3 + np.array(DEFECT, dtype=np.uint8) // 3 * 2
    return result
