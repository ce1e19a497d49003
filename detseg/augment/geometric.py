"""One map from output to input for all geometry of a sample; image and labels are each resampled once.

Coordinates are continuous: pixel (row i, column j) covers i <= y < i + 1 and j <= x < j + 1, its centre is at +0.5. A
crop is then a shift, a flip is x -> width - x, a resize is a factor, and none of them needs a half pixel of care.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from detseg.augment.resampling import resize_box, resize_image, resize_labels
from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

__all__ = ["GeometricMap", "map_sample", "resize_image"]

# Coordinates closer than this to a whole number are meant to be it.
_EXACT = 1e-6


@dataclass(frozen=True)
class GeometricMap:
    """Where every output pixel comes from.

    matrix: (3, 3) float64, takes (x, y, 1) of the output to (x, y, 1) of the input, in continuous coordinates. Only
    the maps that keep the axes (or swap them) can be made here: crop, resize, flip, turn by 90 degrees.
    height, width: of the output, pixels. input_height, input_width: of the input.
    """

    matrix: np.ndarray
    height: int
    width: int
    input_height: int
    input_width: int

    @classmethod
    def identity(cls, height: int, width: int) -> GeometricMap:
        """Return the map that changes nothing."""
        return cls(np.eye(3), height, width, height, width)

    def crop(self, y0: int, x0: int, height: int, width: int) -> GeometricMap:
        """Then cut out rows y0 to y0 + height and columns x0 to x0 + width."""
        if min(y0, x0) < 0 or not (y0 + height <= self.height and x0 + width <= self.width):
            raise DataError(
                f"a crop of {height} x {width} at row {y0}, column {x0} leaves the image ({self.height} x {self.width})"
            )
        return self._then([[1, 0, x0], [0, 1, y0], [0, 0, 1]], height, width)

    def resize(self, height: int, width: int) -> GeometricMap:
        """Then stretch to height x width pixels."""
        scale_y, scale_x = self.height / height, self.width / width
        return self._then([[scale_x, 0, 0], [0, scale_y, 0], [0, 0, 1]], height, width)

    def flip_horizontal(self) -> GeometricMap:
        """Then swap left and right."""
        return self._then([[-1, 0, self.width], [0, 1, 0], [0, 0, 1]], self.height, self.width)

    def flip_vertical(self) -> GeometricMap:
        """Then swap top and bottom."""
        return self._then([[1, 0, 0], [0, -1, self.height], [0, 0, 1]], self.height, self.width)

    def rotate90(self, turns: int) -> GeometricMap:
        """Then turn counter-clockwise by 90 degrees `turns` times, as np.rot90."""
        result = self
        for _ in range(turns % 4):
            # Output (x, y) shows input (width - y, x).
            result = result._then([[0, -1, result.width], [1, 0, 0], [0, 0, 1]], result.width, result.height)
        return result

    def _then(self, step: list[list[float]], height: int, width: int) -> GeometricMap:
        matrix = self.matrix @ np.array(step, dtype=np.float64)
        return dataclasses.replace(self, matrix=matrix, height=height, width=width)

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """Map an image (H, W, C) of any of Sample's dtypes; bilinear, antialiased where it shrinks."""
        window, height, width = self._check(image.shape[:2])
        return np.ascontiguousarray(self._orient(resize_box(image, window, height, width)))

    def apply_labels(self, labels: np.ndarray) -> np.ndarray:
        """Map label images (L, H, W) of integers or bool: see `resampling.resize_labels`."""
        window, height, width = self._check(labels.shape[1:])
        turned = self._orient(resize_labels(labels, window, height, width).transpose(1, 2, 0))
        return np.ascontiguousarray(turned.transpose(2, 0, 1))

    def _check(self, shape: tuple[int, ...]) -> tuple[tuple[float, float, float, float], int, int]:
        """Return the input window (y0, x0, y1, x1), and height and width of the output before it is turned."""
        if tuple(shape) != (self.input_height, self.input_width):
            raise DataError(f"this map is for images of {self.input_height} x {self.input_width}, not {tuple(shape)}")
        corners = self.matrix @ np.array([[0, self.width], [0, self.height], [1, 1]], dtype=np.float64)
        (x0, x1), (y0, y1) = np.sort(corners[0]), np.sort(corners[1])
        height, width = (self.width, self.height) if self._swaps_axes else (self.height, self.width)
        limits = (self.input_height, self.input_width) * 2
        window = [min(max(_snap(value), 0), limit) for value, limit in zip((y0, x0, y1, x1), limits, strict=True)]
        return (window[0], window[1], window[2], window[3]), height, width

    @property
    def _swaps_axes(self) -> bool:
        return abs(self.matrix[0, 0]) < _EXACT

    def _orient(self, array: np.ndarray) -> np.ndarray:
        """Turn and flip (H, W, C), exactly."""
        if self._swaps_axes:
            # Output row i runs along input x: transpose, then flip what runs backwards.
            array = array.transpose(1, 0, 2)
            flip_rows, flip_columns = self.matrix[0, 1] < 0, self.matrix[1, 0] < 0
        else:
            flip_rows, flip_columns = self.matrix[1, 1] < 0, self.matrix[0, 0] < 0
        return array[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _snap(value: float) -> float:
    nearest = round(value)
    return float(nearest) if abs(value - nearest) < _EXACT else float(value)


def map_sample(sample: Sample, geometry: GeometricMap) -> Sample:
    """Return the sample seen through the map; objects that lose all their pixels are dropped, with their classes."""
    layers, classes, ignore = sample.layers, sample.classes, sample.ignore
    if layers is not None:
        mapped = LabelLayers(geometry.apply_labels(layers.layers), layers.num_instances)
        layers, kept = mapped.drop_empty()
        classes = classes[kept]
    if ignore is not None:
        ignore = geometry.apply_labels(ignore[None])[0]
    return dataclasses.replace(
        sample, image=geometry.apply_image(sample.image), layers=layers, classes=classes, ignore=ignore
    )
