"""One map from output to input for all geometry of a sample; image and labels are each resampled once.

Coordinates are continuous: pixel (row i, column j) covers i <= y < i + 1 and j <= x < j + 1, its centre is at +0.5. A
crop is then a shift, a flip is x -> width - x, a resize is a factor, and none of them needs a half pixel of care.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from detseg.data.augment.resampling import (
    BORDERS,
    Points,
    background_value,
    filled,
    resize_image,
    warp_image,
    warp_labels,
)
from detseg.data.augment.transforms import EXACT, AxisAligned, Displacement
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

    def moved_inside(self, keep: tuple[float, float, float, float] | None = None) -> GeometricMap:
        """Shift what is seen so that as little of it as possible lies beyond the image.

        Along an axis on which more is seen than the image has, the image is seen from end to end. keep: a box (x0, y0,
        x1, y1) of the output that shall stay in it: no further than that.
        """
        x, y = _through(self.matrix, *np.array([[0, self.width] * 2, [0, 0, self.height, self.height]], dtype=float))
        shift = np.array(
            [_shift_into(x.min(), x.max(), self.input_width), _shift_into(y.min(), y.max(), self.input_height)]
        )
        if keep is not None and shift.any():
            # What is seen at a place of the output goes the other way there.
            moves = -np.linalg.solve(self.matrix[:2, :2], shift)
            moves[0] *= _share(keep[0], keep[2], moves[0], self.width)
            moves[1] *= _share(keep[1], keep[3], moves[1], self.height)
            shift = -self.matrix[:2, :2] @ moves
        step = np.eye(3)
        step[:2, 2] = shift
        return dataclasses.replace(self, matrix=step @ self.matrix)

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
        if self._exact is not None:
            return self._exact.image(image, border)
        if border == "reflect":
            return warp_image(image, self._points().mirrored())
        rows, columns, points = self._sight
        if points is None:
            return filled(image, self.height, self.width)
        result = warp_image(image, points)
        if points.outside is not None:
            result[points.outside] = background_value(image)
        if result.shape[:2] == (self.height, self.width):
            return result
        canvas = filled(image, self.height, self.width)
        canvas[rows.start : rows.stop, columns.start : columns.stop] = result
        return canvas

    def apply_labels(self, labels: np.ndarray) -> np.ndarray:
        """Map label images (L, H, W) of integers or bool: see `resampling.resize_labels`. 0 beyond the image."""
        self._check(labels.shape[1:])
        if self._exact is not None:
            return self._exact.labels(labels)
        rows, columns, points = self._sight
        canvas_shape = (labels.shape[0], self.height, self.width)
        if points is None:
            return np.zeros(canvas_shape, dtype=labels.dtype)
        seen = warp_labels(labels, points)
        if seen.shape == canvas_shape:
            return seen
        canvas = np.zeros(canvas_shape, dtype=labels.dtype)
        canvas[:, rows.start : rows.stop, columns.start : columns.stop] = seen
        return canvas

    def outside(self) -> np.ndarray | None:
        """Return which output pixels (H, W) bool have their centres beyond the image; None where none has."""
        if self._exact is not None and not self._exact.is_padded:
            return None
        return self._points().outside

    def coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y, each (height, width) float64, of where the output pixels' centres lie in the input."""
        points = self._points()
        return points.x.astype(np.float64) + points.left, points.y.astype(np.float64) + points.top

    def input_window(self) -> tuple[slice, slice]:
        """Return rows and columns of the input beyond which nothing is seen."""
        if self._exact is not None:
            y0, x0, y1, x1 = self._exact.window
            return slice(int(y0), math.ceil(y1)), slice(int(x0), math.ceil(x1))
        points = self._sight[2]
        if points is None:
            return slice(0), slice(0)
        # One more on each side: where it shrinks, points around the centres are looked at.
        reach = np.abs(points.linear).sum(axis=1) + 1
        (x0, x1), (y0, y1) = points.spans
        return (
            slice(max(int(y0 - reach[1]), 0), max(math.ceil(y1 + reach[1]), 0)),
            slice(max(int(x0 - reach[0]), 0), max(math.ceil(x1 + reach[0]), 0)),
        )

    def _points(self, rows: range | None = None, columns: range | None = None) -> Points:
        """Return where the centres of some rows and columns of the output lie in the input."""
        columns, rows = columns or range(self.width), rows or range(self.height)
        x, y = np.arange(columns.start, columns.stop) + 0.5, np.arange(rows.start, rows.stop) + 0.5
        whole = self.whole_matrix
        # The corner from which points are measured is the same for all parts of the output, and so are their digits.
        corners = _through(whole, *np.array([[0, self.width] * 2, [0, 0, self.height, self.height]], dtype=np.float64))
        left, top = (math.floor(corner.min()) - math.ceil(self._reach(to_input=True)) for corner in corners)
        (xx, xy, x0), (yx, yy, y0), _ = whole
        points_x = np.add((xx * x + (x0 - left))[None], (xy * y)[:, None], dtype=np.float32)
        points_y = np.add((yx * x + (y0 - top))[None], (yy * y)[:, None], dtype=np.float32)
        self._bend(points_x, points_y, x, y)
        return Points(points_x, points_y, left, top, self.input_height, self.input_width, whole[:2, :2])

    def _bend(self, points_x: np.ndarray, points_y: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
        """Add to the points what the displacements make of columns x (W,) and rows y (H,) of the output."""
        if not self.bends:
            return
        shifts: tuple[np.ndarray, np.ndarray] | None = None
        matrix = self.matrix
        for before, displacement in reversed(self.bends):
            dx, dy = _displaced(displacement, matrix, x, y, shifts)
            if shifts is not None:
                dx, dy = dx + shifts[0], dy + shifts[1]
            linear = before[:2, :2].astype(np.float32)
            shifts = linear[0, 0] * dx, linear[1, 1] * dy
            if linear[0, 1] or linear[1, 0]:
                shifts = shifts[0] + linear[0, 1] * dy, shifts[1] + linear[1, 0] * dx
            matrix = before @ matrix
        points_x += shifts[0]
        points_y += shifts[1]

    def _reach(self, to_input: bool) -> float:
        """How far the displacements carry at most, in pixels of the input or else of the output."""
        reach, after = 0.0, self.matrix
        before = [matrix for matrix, _ in self.bends]
        for number in reversed(range(len(self.bends))):
            way = np.linalg.multi_dot([np.eye(3), *before[: number + 1]]) if to_input else np.linalg.inv(after)
            reach += self.bends[number][1].largest * float(np.linalg.norm(way[:2, :2], 2))
            after = before[number] @ after
        return reach

    @cached_property
    def _sight(self) -> tuple[range, range, Points | None]:
        """Rows and columns of the output outside which nothing of the image is seen, and their points, if any."""
        corners = np.array([[0, 1, 0, 1], [0, 0, 1, 1]]) * [[self.input_width], [self.input_height]]
        x, y = _through(np.linalg.inv(self.whole_matrix), corners[0], corners[1])
        reach = 1 + self._reach(to_input=False)
        rows, columns = (
            range(min(max(int(places.min() - reach), 0), length), max(min(int(places.max() + reach) + 1, length), 0))
            for places, length in ((y, self.height), (x, self.width))
        )
        return rows, columns, self._points(rows, columns) if rows and columns else None

    @cached_property
    def _exact(self) -> AxisAligned | None:
        """The map as one that keeps or swaps the axes, where it does."""
        if self.bends:
            return None
        return AxisAligned.of(self.matrix, self.height, self.width, (self.input_height, self.input_width))

    def _check(self, shape: tuple[int, ...]) -> None:
        if tuple(shape) != (self.input_height, self.input_width):
            raise DataError(f"this map is for images of {self.input_height} x {self.input_width}, not {tuple(shape)}")


def _displaced(
    displacement: Displacement,
    matrix: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    shifts: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the displacements along x and y at the points that `matrix` makes of columns x and rows y, plus `shifts`.

    On a grid, that is where only crops, flips and turns came after, all at once.
    """
    (xx, xy, x0), (yx, yy, y0), _ = matrix
    if shifts is None and abs(xy) < EXACT and abs(yx) < EXACT:
        return displacement.on_grid(xx * x + x0, yy * y + y0)
    if shifts is None and abs(xx) < EXACT and abs(yy) < EXACT:
        dx, dy = displacement.on_grid(xy * y + x0, yx * x + y0)
        return dx.T, dy.T
    places = _through(matrix, x[None], y[:, None])
    if shifts is not None:
        places = places[0] + shifts[0], places[1] + shifts[1]
    return displacement.at(*places)


def _through(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points that a matrix (3, 3) makes of points x, y of any shapes that fit."""
    (xx, xy, x0), (yx, yy, y0), _ = matrix
    return (xx * x + x0) + xy * y, yx * x + (yy * y + y0)


def _shift_into(start: float, end: float, length: float) -> float:
    """Return the shortest shift that brings start..end into 0..length, or over all of it where that is shorter."""
    least, most = sorted((0.0, length - (end - start)))
    return min(max(start, least), most) - start


def _share(start: float, end: float, move: float, length: float) -> float:
    """Return the largest part of a move, 0 to 1, by which start..end stays within 0..length."""
    room = length - end if move > 0 else start
    return min(max(room / abs(move), 0.0), 1.0) if abs(move) > EXACT else 1.0


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
        layers, kept, cut = _map_layers(layers, geometry, min_visible)
        classes = classes[kept]
        ignore = _joined(ignore, cut)
    if border == "reflect":
        ignore = _joined(ignore, geometry.outside())
    image = geometry.apply_image(sample.image, border)
    return dataclasses.replace(sample, image=image, layers=layers, classes=classes, ignore=ignore)


def _map_layers(
    layers: LabelLayers, geometry: GeometricMap, min_visible: float
) -> tuple[LabelLayers, np.ndarray, np.ndarray | None]:
    """Return the objects seen through the map, which ones (M,) these are, and what is left of those cut too far.

    The latter is (H, W) bool, or None for nothing.
    """
    window = geometry.input_window()
    used = [number == 0 or layer[window].any() for number, layer in enumerate(layers.layers)]
    before = layers.layers if all(used) else layers.layers[used]
    mapped = LabelLayers(geometry.apply_labels(before), layers.num_instances)
    areas = mapped.areas()
    keep, region = areas > 0, None
    if min_visible > 0:
        is_cut = keep & (areas * geometry.area_factor < min_visible * layers.areas())
        if is_cut.any():
            region = np.concatenate([[False], is_cut]).take(mapped.layers).any(axis=0)
            keep &= ~is_cut
    return mapped.select(keep), np.flatnonzero(keep), region


def _joined(ignore: np.ndarray | None, more: np.ndarray | None) -> np.ndarray | None:
    if ignore is None or more is None:
        return more if ignore is None else ignore
    return ignore | more
