"""One map from output to input for all geometry of a sample; image and labels are each resampled once.

Coordinates are continuous: pixel (row i, column j) covers i <= y < i + 1 and j <= x < j + 1, its centre is at +0.5. A
crop is then a shift, a flip is x -> width - x, a resize is a factor, and none of them needs a half pixel of care.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from detseg.augment.axis_aligned import EXACT, AxisAligned
from detseg.augment.border import BORDERS, background_value, filled
from detseg.augment.displacement import Displacement
from detseg.augment.resampling import resize_image
from detseg.augment.warping import is_outside, warp_image, warp_labels
from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

__all__ = ["BORDERS", "GeometricMap", "map_sample", "resize_image"]


@dataclass(frozen=True)
class GeometricMap:
    """Where every output pixel comes from.

    matrix: (3, 3) float64, takes (x, y, 1) of the output to (x, y, 1) of the input, in continuous coordinates; where
    there are `bends`, to the frame of the last of them. height, width: of the output, pixels. input_height,
    input_width: of the input. bends: elastic displacements, each with the matrix that takes its frame, displaced, to
    the frame of the one before it, the first one to the input.

    Maps that keep or swap the axes (crop, resize, flip, turn by 90 degrees) are exact where they can be, and filter as
    Pillow does; all others sample at the pixels' centres.
    """

    matrix: np.ndarray
    height: int
    width: int
    input_height: int
    input_width: int
    bends: tuple[tuple[np.ndarray, Displacement], ...] = ()

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
        return self.window(y0, x0, height, width)

    def window(self, y0: int, x0: int, height: int, width: int) -> GeometricMap:
        """Then cut out as `crop`, or pad: the window may reach beyond the image."""
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

    def affine(self, step: np.ndarray) -> GeometricMap:
        """Then see through any affine step (3, 3), which takes output to where it comes from; the size stays."""
        return self._then(step, self.height, self.width)

    def moved_inside(self) -> GeometricMap:
        """Shift what is seen so that as little of it as possible lies beyond the image.

        Along an axis on which more is seen than the image has, the image is seen from end to end.
        """
        x, y = _through(self.matrix, *np.array([[0, self.width] * 2, [0, 0, self.height, self.height]], dtype=float))
        shift = np.eye(3)
        shift[:2, 2] = _shift_into(x.min(), x.max(), self.input_width), _shift_into(y.min(), y.max(), self.input_height)
        return dataclasses.replace(self, matrix=shift @ self.matrix)

    def elastic(self, displacement: Displacement) -> GeometricMap:
        """Then bend; the displacement was made for this map's height and width."""
        if (displacement.height, displacement.width) != (self.height, self.width):
            raise DataError(
                f"a displacement of {displacement.height} x {displacement.width} pixels does not fit an image of "
                f"{self.height} x {self.width}"
            )
        return dataclasses.replace(self, matrix=np.eye(3), bends=(*self.bends, (self.matrix, displacement)))

    def _then(self, step: np.ndarray | list[list[float]], height: int, width: int) -> GeometricMap:
        matrix = self.matrix @ np.asarray(step, dtype=np.float64)
        return dataclasses.replace(self, matrix=matrix, height=height, width=width)

    @property
    def whole_matrix(self) -> np.ndarray:
        """The matrix (3, 3) from output to input, displacements left out."""
        matrix = self.matrix
        for before, _ in reversed(self.bends):
            matrix = before @ matrix
        return matrix

    @property
    def area_factor(self) -> float:
        """How many input pixels an output pixel covers, displacements left out."""
        return float(abs(np.linalg.det(self.whole_matrix[:2, :2])))

    def apply_image(self, image: np.ndarray, border: str = "constant") -> np.ndarray:
        """Map an image (H, W, C) of any of Sample's dtypes; bilinear, antialiased where it shrinks.

        border: what is seen beyond the image, one of `BORDERS`: the median of each channel, or the image mirrored.
        """
        self._check(image.shape[:2])
        exact = self._axis_aligned()
        if exact is not None:
            return exact.image(image, border)
        linear = self.whole_matrix[:2, :2]
        if border == "reflect":
            return warp_image(image, *self.coordinates(), linear, mirrored=True)
        rows, columns = self._sight()
        if not (rows and columns):
            return filled(image, self.height, self.width)
        x, y = self.coordinates(rows, columns)
        result = warp_image(image, x, y, linear, mirrored=False)
        outside = is_outside(x, y, self.input_height, self.input_width)
        if outside is not None:
            result[outside] = background_value(image)
        if result.shape[:2] == (self.height, self.width):
            return result
        canvas = filled(image, self.height, self.width)
        canvas[rows.start : rows.stop, columns.start : columns.stop] = result
        return canvas

    def apply_labels(self, labels: np.ndarray) -> np.ndarray:
        """Map label images (L, H, W) of integers or bool: see `resampling.resize_labels`. 0 beyond the image."""
        self._check(labels.shape[1:])
        exact = self._axis_aligned()
        if exact is not None:
            return exact.labels(labels)
        rows, columns = self._sight()
        canvas = np.zeros((labels.shape[0], self.height, self.width), dtype=labels.dtype)
        if rows and columns:
            seen = warp_labels(labels, *self.coordinates(rows, columns), self.whole_matrix[:2, :2])
            if seen.shape == canvas.shape:
                return seen
            canvas[:, rows.start : rows.stop, columns.start : columns.stop] = seen
        return canvas

    def outside(self) -> np.ndarray | None:
        """Return which output pixels (H, W) bool have their centres beyond the image; None where none has."""
        exact = self._axis_aligned()
        if exact is not None and not exact.is_padded:
            return None
        return is_outside(*self.coordinates(), self.input_height, self.input_width)

    def coordinates(self, rows: range | None = None, columns: range | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y, each (rows, columns) float64, of where output pixels' centres lie in the input."""
        columns, rows = columns or range(self.width), rows or range(self.height)
        x, y = np.arange(columns.start, columns.stop) + 0.5, np.arange(rows.start, rows.stop) + 0.5
        points = _through(self.matrix, x[None], y[:, None])
        for number, (before, displacement) in enumerate(reversed(self.bends)):
            shifts = self._shifts(displacement, x, y) if number == 0 else None
            shifts = displacement.at(*points) if shifts is None else shifts
            points = _through(before, points[0] + shifts[..., 0], points[1] + shifts[..., 1])
        return points

    def _shifts(self, displacement: Displacement, x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
        """The displacements on the output's grid, fast, where only crops, flips and turns came after."""
        (xx, xy, x0), (yx, yy, y0), _ = self.matrix
        if abs(xy) < EXACT and abs(yx) < EXACT:
            return displacement.on_grid(xx * x + x0, yy * y + y0)
        if abs(xx) < EXACT and abs(yy) < EXACT:
            return displacement.on_grid(xy * y + x0, yx * x + y0).transpose(1, 0, 2)
        return None

    def _sight(self) -> tuple[range, range]:
        """Return rows and columns of the output outside which nothing of the image is seen."""
        inverse = np.linalg.inv(self.whole_matrix)
        corners = np.array([[0, 1, 0, 1], [0, 0, 1, 1]]) * [[self.input_width], [self.input_height]]
        x, y = _through(inverse, corners[0], corners[1])
        reach, matrix = 1.0, self.matrix
        for before, displacement in reversed(self.bends):
            # How far a displacement carries, seen in the output.
            reach += displacement.largest * np.linalg.norm(np.linalg.inv(matrix)[:2, :2], 2)
            matrix = before @ matrix
        spans = [
            range(min(max(int(places.min() - reach), 0), length), max(min(int(places.max() + reach) + 1, length), 0))
            for places, length in ((y, self.height), (x, self.width))
        ]
        return spans[0], spans[1]

    def _axis_aligned(self) -> AxisAligned | None:
        if self.bends:
            return None
        return AxisAligned.of(self.matrix, self.height, self.width, (self.input_height, self.input_width))

    def _check(self, shape: tuple[int, ...]) -> None:
        if tuple(shape) != (self.input_height, self.input_width):
            raise DataError(f"this map is for images of {self.input_height} x {self.input_width}, not {tuple(shape)}")


def _through(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points that a matrix (3, 3) makes of points x, y of any shapes that fit."""
    (xx, xy, x0), (yx, yy, y0), _ = matrix
    return (xx * x + x0) + xy * y, yx * x + (yy * y + y0)


def _shift_into(start: float, end: float, length: float) -> float:
    """Return the shortest shift that brings start..end into 0..length, or over all of it where that is shorter."""
    least, most = sorted((0.0, length - (end - start)))
    return min(max(start, least), most) - start


def map_sample(sample: Sample, geometry: GeometricMap, *, border: str = "constant", min_visible: float = 0.0) -> Sample:
    """Return the sample seen through the map; objects that lose all their pixels are dropped, with their classes.

    border: see `GeometricMap.apply_image`; what is mirrored shows objects that have no mask, and is ignored.
    min_visible: objects of which a smaller share of the area is left (they reach beyond the output) are dropped too,
    and what is left of them is ignored.
    """
    layers, classes, ignore = sample.layers, sample.classes, sample.ignore
    if ignore is not None:
        ignore = geometry.apply_labels(ignore[None])[0]
    if layers is not None:
        mapped = LabelLayers(geometry.apply_labels(layers.layers), layers.num_instances)
        if min_visible > 0:
            mapped, cut = _without_cut_objects(layers, mapped, min_visible / geometry.area_factor)
            ignore = _joined(ignore, cut)
        layers, kept = mapped.drop_empty()
        classes = classes[kept]
    if border == "reflect":
        ignore = _joined(ignore, geometry.outside())
    image = geometry.apply_image(sample.image, border)
    return dataclasses.replace(sample, image=image, layers=layers, classes=classes, ignore=ignore)


def _without_cut_objects(
    before: LabelLayers, after: LabelLayers, least: float
) -> tuple[LabelLayers, np.ndarray | None]:
    """Take objects whose area is below `least` times what it was out of the labels; return where they were, or None."""
    cut = after.areas() < least * before.areas()
    cut &= after.areas() > 0
    if not cut.any():
        return after, None
    is_cut = np.concatenate([[False], cut])[after.layers]
    return LabelLayers(np.where(is_cut, np.int32(0), after.layers), after.num_instances), is_cut.any(axis=0)


def _joined(ignore: np.ndarray | None, more: np.ndarray | None) -> np.ndarray | None:
    if ignore is None or more is None:
        return more if ignore is None else ignore
    return ignore | more
