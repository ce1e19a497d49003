"""Pasting of small masks into the image, directly as run-lengths, without full-size masks.

The probability of an image pixel is the bilinear interpolation, at the pixel's centre, of the mask stretched over its
box, with zeros outside the mask, as in Detectron2's paste_masks_in_image. The axes are independent, so rows and columns
are interpolated one after the other.

Symbols: D masks of s x s, h and w the whole pixels that a box touches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from detseg.data.augment.geometric import GeometricMap
from detseg.structures.rle import encode_crops


def paste_masks(
    probabilities: np.ndarray,
    boxes: np.ndarray,
    height: int,
    width: int,
    *,
    soft_masks: bool = False,
    threshold: float = 0.5,
) -> tuple[list[dict[str, Any]], list[np.ndarray] | None]:
    """Return D RLEs of size [height, width], the pixels with at least `threshold` probability. Masks are interpolated
    once.

    probabilities: (D, s, s) float32. boxes: (D, 4) float32 XYXY in pixels of the image; an empty box gives an empty
    mask. With soft_masks also D crops (h, w) uint8 of 255 x probability, for `predictions.soft_mask_window` of each
    box, else None.
    """
    crops: Any = paste_crops(probabilities, boxes, height, width)
    crops = list(crops) if soft_masks else crops
    rles = encode_crops([(crop >= threshold, x0, y0) for crop, x0, y0 in crops], height, width)
    return rles, [quantise(crop) for crop, _, _ in crops] if soft_masks else None


def quantise(crop: np.ndarray) -> np.ndarray:
    """Return probabilities as a crop of `Predictions.soft_masks`: uint8, 255 x probability."""
    return np.rint(crop * 255).astype(np.uint8)


def paste_crops(
    probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield for each mask the probabilities (h, w) float32 of the pixels that its box touches, and their x0 and y0.

    Outside the box probabilities are less than half of the mask's, so a threshold of 0.5 loses no pixels.
    """
    size = probabilities.shape[-1]
    # A border of zeros represents the surroundings of the mask.
    padded = np.pad(probabilities.astype(np.float32, copy=False), ((0, 0), (1, 1), (1, 1)))
    columns = _Axis(boxes[:, 0], boxes[:, 2], width, size)
    rows = _Axis(boxes[:, 1], boxes[:, 3], height, size)
    for index, mask in enumerate(padded):
        cell, weight = rows.of(index)
        bands = mask[cell]
        bands = bands + (mask[cell + 1] - bands) * weight[:, None]
        cell, weight = columns.of(index)
        crop = bands[:, cell]
        crop = crop + (bands[:, cell + 1] - crop) * weight
        yield crop, int(columns.first[index]), int(rows.first[index])


def paste_through(
    probabilities: np.ndarray, boxes: np.ndarray, geometry: GeometricMap
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield the same as `paste_crops`, in the output of a map whose input is the image with the boxes.

    Every pixel of the map's output reads the mask at its exact position: masks are interpolated once, to a 32nd of one
    of their cells, for any map.
    """
    size = probabilities.shape[-1]
    padded = np.pad(probabilities.astype(np.float32, copy=False), ((0, 0), (1, 1), (1, 1)))
    points = geometry.points()
    for mask, (x0, y0, x1, y1) in zip(padded, boxes.tolist(), strict=True):
        rows, columns = geometry.output_window((x0, y0, x1, y1))
        if x1 <= x0 or y1 <= y0 or rows.start >= rows.stop or columns.start >= columns.stop:
            yield np.zeros((0, 0), dtype=np.float32), 0, 0
            continue
        # The centre of the first cell is at 0.5 of `size` cells along the box; with the border it is cell number 1.
        x = (points.x[rows, columns] + np.float32(points.left - x0)) * np.float32(size / (x1 - x0)) + np.float32(0.5)
        y = (points.y[rows, columns] + np.float32(points.top - y0)) * np.float32(size / (y1 - y0)) + np.float32(0.5)
        yield cv2.remap(mask, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT), columns.start, rows.start


class _Axis:
    """The positions along one axis at which the pixels of every box read its mask, concatenated.

    first: (D,) the first pixel of each box.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, length: int, size: int) -> None:
        low, high = low.astype(np.float32), high.astype(np.float32)
        self.first = np.clip(np.floor(low), 0, length).astype(np.int64)
        last = np.maximum(np.clip(np.ceil(high), 0, length).astype(np.int64), self.first)
        counts = np.where(high > low, last - self.first, 0)
        self._bounds = np.concatenate([[0], np.cumsum(counts)])
        owner = np.repeat(np.arange(len(low)), counts)
        pixel = np.arange(len(owner)) - (self._bounds[:-1] - self.first)[owner]
        # In float32 and in this order, as grid_sample does: [low, high] -> [-1, 1] -> [-0.5, size - 0.5].
        scaled = (pixel.astype(np.float32) + np.float32(0.5) - low[owner]) / (high - low)[owner] * 2 - 1
        place = np.clip(((scaled + 1) * size - 1) / 2, -1, size)
        below = np.clip(np.floor(place), -1, size - 1)
        self._cell = below.astype(np.int64) + 1
        self._weight = (place - below).astype(np.float32)

    def of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the cell of the padded mask before each pixel of box `index`, and the weight of the cell after it."""
        inside = slice(self._bounds[index], self._bounds[index + 1])
        return self._cell[inside], self._weight[inside]
