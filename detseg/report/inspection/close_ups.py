"""Pictures inside the page: examples of images, and close-ups of single objects among their neighbours."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from detseg.data.coco import CocoDataset
from detseg.errors import DataError
from detseg.report.contours import class_colour, draw_objects, fitting_line_width, typical_thickness
from detseg.report.display import resize_display, to_display
from detseg.structures import rle as rle_codec

# Sides in pixels of a close-up, and the least part of the image that it shows; of an example.
CLOSE_UP, LEAST_WINDOW, EXAMPLE = 220, 32, 460
FOUND, OTHERS = (255, 176, 0), (64, 190, 255)
_QUALITY = 86


def data_url(picture: np.ndarray) -> str:
    """Return a picture (h, w, 3) uint8 as a data: address of a JPEG."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="JPEG", quality=_QUALITY)
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

    def of_object(self, index: int, number: int) -> np.ndarray | None:
        """Return annotation `number` of image `index` in yellow with its neighbours in blue, `CLOSE_UP` pixels wide."""
        picture = self.picture(index)
        if picture is None:
            return None
        record = self.dataset.images[index]
        rles, _ = self.dataset.table.rles(index, record.height, record.width)
        left, top, side = _window(rle_codec.bounding_boxes(rles[number : number + 1])[0], record.height, record.width)
        scale = CLOSE_UP / side
        part = np.ascontiguousarray(picture[top : top + side, left : left + side])
        crops, colours = _cut(rles, number, left, top, *part.shape[:2])
        shown = draw_objects(resize_display(part, scale), crops, colours, scale, 1)
        canvas = np.full((CLOSE_UP, CLOSE_UP, 3), 128, dtype=np.uint8)
        canvas[: shown.shape[0], : shown.shape[1]] = shown[:CLOSE_UP, :CLOSE_UP]
        return canvas


def _window(box: np.ndarray, height: int, width: int) -> tuple[int, int, int]:
    """Return x0, y0 and the side of a square around a box, moved into the image where it can be."""
    x0, y0, x1, y1 = (float(value) for value in box)
    side = int(max(1.5 * (x1 - x0), 1.5 * (y1 - y0), LEAST_WINDOW))
    left = int(np.clip((x0 + x1 - side) / 2, 0, max(width - side, 0)))
    top = int(np.clip((y0 + y1 - side) / 2, 0, max(height - side, 0)))
    return left, top, side


def _cut(
    rles: Sequence[dict], number: int, left: int, top: int, high: int, wide: int
) -> tuple[list[dict], list[tuple[int, int, int]]]:
    """Return what a window shows of masks, that of `number` last, and their colours."""
    boxes = rle_codec.bounding_boxes(rles)
    near = (boxes[:, 0] < left + wide) & (boxes[:, 2] > left) & (boxes[:, 1] < top + high) & (boxes[:, 3] > top)
    chosen = [index for index in np.flatnonzero(near).tolist() if index != number] + [number]
    cut, colours = [], []
    for index, (mask, x0, y0) in zip(chosen, rle_codec.decode_crops([rles[index] for index in chosen]), strict=True):
        part = mask[max(top - y0, 0) : max(top + high - y0, 0), max(left - x0, 0) : max(left + wide - x0, 0)]
        if part.any():
            cut.append((part, max(x0 - left, 0), max(y0 - top, 0)))
            colours.append(FOUND if index == number else OTHERS)
    return rle_codec.encode_crops(cut, high, wide), colours
