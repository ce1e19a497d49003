"""The eight symmetries of the square, exact on images, vectors, boxes, masks and RLEs, each with its inverse.

A symmetry optionally transposes, and then flips x, y, both or none. Continuous coordinates: x in an image of width W
becomes W - x, so pixel i (from i to i + 1) becomes pixel W - 1 - i.

    none        h (left and right)      v (top and bottom)      hv (half a turn)
    transpose   rot90 (a quarter turn counterclockwise, np.rot90)   rot270 (clockwise)   antitranspose
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from detseg.structures.predictions import Predictions, fit_windows, soft_mask_windows
from detseg.structures.rle import mirror_rles, transpose_rles


@dataclass(frozen=True)
class Symmetry:
    """transpose: exchange x and y, first; then flip_x flips left and right, flip_y top and bottom."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def inverse(self) -> Symmetry:
        """The inverse symmetry."""
        if not self.transpose:
            return self
        return Symmetry(True, flip_x=self.flip_y, flip_y=self.flip_x)

    @property
    def is_identity(self) -> bool:
        return not (self.transpose or self.flip_x or self.flip_y)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the transformed image, given those of the original."""
        return (width, height) if self.transpose else (height, width)

    def array(self, image: np.ndarray) -> np.ndarray:
        """Return the transformed image (H, W, ...) as a view."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]

    def vectors(self, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the transformed components (y, x) of vectors; arrays of any shape, whose elements are not moved."""
        if self.transpose:
            y, x = x, y
        return -y if self.flip_y else y, -x if self.flip_x else x

    def boxes(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """Return the transformed boxes (N, 4) float32 XYXY of an image height x width."""
        x0, y0, x1, y1 = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T
        if self.transpose:
            x0, y0, x1, y1 = y0, x0, y1, x1
        height, width = self.size(height, width)
        if self.flip_x:
            x0, x1 = width - x1, width - x0
        if self.flip_y:
            y0, y1 = height - y1, height - y0
        return np.stack([x0, y0, x1, y1], axis=1).astype(np.float32)

    def rles(self, rles: list[dict], height: int, width: int) -> list[dict]:
        """Return the transformed RLEs of masks of an image height x width."""
        if self.transpose:
            rles = transpose_rles(rles, height, width)
        height, width = self.size(height, width)
        if self.flip_x or self.flip_y:
            rles = mirror_rles(rles, height, width, flip_x=self.flip_x, flip_y=self.flip_y)
        return rles

    def predictions(self, predictions: Predictions) -> Predictions:
        """Return the transformed predictions of an image; only coordinates change."""
        if self.is_identity:
            return predictions
        size = predictions.height, predictions.width
        boxes = self.boxes(predictions.boxes, *size)
        soft = predictions.soft_masks
        height, width = self.size(*size)
        if soft is not None:
            old = self.boxes(soft_mask_windows(predictions.boxes, *size), *size).astype(np.int64)
            soft = fit_windows([self.array(crop) for crop in soft], old, soft_mask_windows(boxes, height, width))
        pixel_size = predictions.pixel_size
        return dataclasses.replace(
            predictions,
            height=height,
            width=width,
            boxes=boxes,
            rles=None if predictions.rles is None else self.rles(predictions.rles, *size),
            soft_masks=soft,
            pixel_size=pixel_size[::-1] if pixel_size is not None and self.transpose else pixel_size,
        )


SYMMETRIES = {
    "none": Symmetry(),
    "h": Symmetry(flip_x=True),
    "v": Symmetry(flip_y=True),
    "hv": Symmetry(flip_x=True, flip_y=True),
    "transpose": Symmetry(True),
    "rot90": Symmetry(True, flip_y=True),
    "rot270": Symmetry(True, flip_x=True),
    "antitranspose": Symmetry(True, flip_x=True, flip_y=True),
}
