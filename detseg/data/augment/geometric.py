"""One map from output to input for all geometry of a sample; image and labels are each resampled once.

Coordinates are continuous: pixel (row i, column j) covers i <= y < i + 1 and j <= x < j + 1, its centre is at +0.5. A
crop is then a shift, a flip is x -> width - x, a resize is a factor, and none of them needs half-pixel corrections.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from detseg.data.augment.resampling import Points, background_value, filled, warp_image, warp_labels
from detseg.data.augment.transforms import EXACT, AxisAligned, Displacement
from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

# A box (x0, y0, x1, y1), continuous.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class GeometricMap:
    """A map from every output pixel to the input.

    matrix: (3, 3) float64, from (x, y, 1) of the output to (x, y, 1) of the input, in continuous coordinates; with a
    `displacement`, to its frame. height, width: of the output, pixels. input_height, input_width: of the input.
    displacement: at most one elastic deformation. before: the matrix from the displaced frame to the input.

    Maps that keep or swap the axes (crop, resize, flip, rotation by 90 degrees) are exact if possible, and filter like
    Pillow; all others sample at pixel centres.
    """

    matrix: np.ndarray
    height: int
    width: int
    input_height: int
    input_width: int
    displacement: Displacement | None = None
    before: np.ndarray | None = None

    @classmethod
    def identity(cls, height: int, width: int) -> GeometricMap:
        """Return the identity."""
        return cls(np.eye(3), height, width, height, width)

    def window(self, y0: int, x0: int, height: int, width: int) -> GeometricMap:
        """Then crop rows y0 to y0 + height and columns x0 to x0 + width, with padding beyond the image."""
        return self._then([[1, 0, x0], [0, 1, y0], [0, 0, 1]], height, width)

    def resize(self, height: int, width: int) -> GeometricMap:
        """Then resize to height x width pixels."""
        scale_y, scale_x = self.height / height, self.width / width
        return self._then([[scale_x, 0, 0], [0, scale_y, 0], [0, 0, 1]], height, width)

    def flip_horizontal(self) -> GeometricMap:
        """Then flip left and right."""
        return self._then([[-1, 0, self.width], [0, 1, 0], [0, 0, 1]], self.height, self.width)

    def flip_vertical(self) -> GeometricMap:
        """Then flip top and bottom."""
        return self._then([[1, 0, 0], [0, -1, self.height], [0, 0, 1]], self.height, self.width)

    def rotate90(self, turns: int) -> GeometricMap:
        """Then rotate counter-clockwise by 90 degrees `turns` times, like np.rot90."""
        result = self
        for _ in range(turns % 4):
            # Output (x, y) is input (width - y, x).
            result = result._then([[0, -1, result.width], [1, 0, 0], [0, 0, 1]], result.width, result.height)
        return result

    def affine(self, step: np.ndarray) -> GeometricMap:
        """Then apply an affine step (3, 3), from output to input; the size is unchanged."""
        return self._then(step, self.height, self.width)

    def _then(self, step: np.ndarray | list[list[float]], height: int, width: int) -> GeometricMap:
        matrix = self.matrix @ np.asarray(step, dtype=np.float64)
        return dataclasses.replace(self, matrix=matrix, height=height, width=width)

    def moved_inside(self, keep: Box | None = None) -> GeometricMap:
        """Shift the map so that as little as possible is beyond the image.

        Along an axis on which more than the image is visible, the whole image is visible. keep: a box of the output
        that must stay in it and limits the shift.
        """
        x, y = _through(self.matrix, *_corners(self.height, self.width))
        shift = np.zeros(2)
        for axis, (seen, length) in enumerate(((x, self.input_width), (y, self.input_height))):
            # The shortest shift that moves the visible range into the image, or over all of it if the image is shorter.
            least, most = sorted((0.0, length - (seen.max() - seen.min())))
            shift[axis] = min(max(seen.min(), least), most) - seen.min()
        if keep is not None and shift.any():
            # The content moves in the output in the opposite direction.
            moves = -np.linalg.solve(self.matrix[:2, :2], shift)
            for axis, (start, end, length) in enumerate(
                ((keep[0], keep[2], self.width), (keep[1], keep[3], self.height))
            ):
                if abs(moves[axis]) > EXACT:
                    possible = length - end if moves[axis] > 0 else start
                    moves[axis] *= min(max(possible / abs(moves[axis]), 0.0), 1.0)
            shift = -self.matrix[:2, :2] @ moves
        step = np.eye(3)
        step[:2, 2] = shift
        return dataclasses.replace(self, matrix=step @ self.matrix)

    def elastic(self, displacement: Displacement) -> GeometricMap:
        """Then apply an elastic deformation made for this map's height and width. Only one is possible."""
        if self.displacement is not None:
            raise ValueError("this map has a displacement already")
        if (displacement.height, displacement.width) != (self.height, self.width):
            raise DataError(
                f"a displacement of {displacement.height} x {displacement.width} pixels does not fit an image of "
                f"{self.height} x {self.width}"
            )
        return dataclasses.replace(self, matrix=np.eye(3), displacement=displacement, before=self.matrix)

    @property
    def whole_matrix(self) -> np.ndarray:
        """The matrix (3, 3) from output to input, without the displacement."""
        return self.matrix if self.before is None else self.before @ self.matrix

    def seen_from(self, other: GeometricMap) -> GeometricMap:
        """Return the map from this one's output to the output of another map of the same input: between two views.

        other: without a displacement, whose inverse is not of this form.
        """
        if other.displacement is not None:
            raise ValueError("a view with a displacement cannot be the input of another")
        self._check((other.input_height, other.input_width))
        back = np.linalg.inv(other.matrix)
        # Values that are integers up to the rounding of the inverse are meant to be integers, and then mapped exactly.
        if self.displacement is None:
            matrices = {"matrix": _snapped(back @ self.matrix)}
        else:
            matrices = {"before": _snapped(back @ self.before)}
        return dataclasses.replace(self, input_height=other.height, input_width=other.width, **matrices)

    @property
    def area_factor(self) -> float:
        """Number of input pixels that an output pixel covers, without the displacement."""
        return float(abs(np.linalg.det(self.whole_matrix[:2, :2])))

    def apply_image(self, image: np.ndarray, border: str = "constant") -> np.ndarray:
        """Map an image (H, W, C) of any dtype of Sample; bilinear, antialiased when downscaling.

        border: values beyond the image, one of `resampling.BORDERS`.
        """
        self._check(image.shape[:2])
        if self._exact is not None:
            return self._exact.image(image, border)
        if border == "reflect":
            return warp_image(image, self.points().mirrored())
        rows, columns, points = self._visible
        if points is None:
            return filled(image, self.height, self.width)
        result = warp_image(image, points)
        if points.outside is not None:
            result[points.outside] = background_value(image)
        if result.shape[:2] == (self.height, self.width):
            return result
        canvas = filled(image, self.height, self.width)
        canvas[rows, columns] = result
        return canvas

    def apply_labels(self, labels: np.ndarray) -> np.ndarray:
        """Map label images (L, H, W) of integers or bool: see `resampling.resize_labels`. 0 beyond the image."""
        self._check(labels.shape[1:])
        if self._exact is not None:
            return self._exact.labels(labels)
        rows, columns, points = self._visible
        seen = None if points is None else warp_labels(labels, points)
        if seen is not None and seen.shape[1:] == (self.height, self.width):
            return seen
        canvas = np.zeros((labels.shape[0], self.height, self.width), dtype=labels.dtype)
        if seen is not None:
            canvas[:, rows, columns] = seen
        return canvas

    def _check(self, shape: tuple[int, ...]) -> None:
        if tuple(shape) != (self.input_height, self.input_width):
            raise DataError(f"this map is for images of {self.input_height} x {self.input_width}, not {tuple(shape)}")

    def outside(self) -> np.ndarray | None:
        """Return which output pixels (H, W) bool have their centres beyond the image; None if none has."""
        if self._exact is not None and not self._exact.is_padded:
            return None
        return self.points().outside

    def input_window(self) -> tuple[slice, slice]:
        """Return the rows and columns of the input that are visible."""
        if self._exact is not None:
            y0, x0, y1, x1 = self._exact.window
            return slice(int(y0), math.ceil(y1)), slice(int(x0), math.ceil(x1))
        points = self._visible[2]
        if points is None:
            return slice(0), slice(0)
        # One more on each side: when downscaling, points around the centres are sampled.
        reach = np.abs(points.linear).sum(axis=1) + 1
        (x0, x1), (y0, y1) = points.spans
        return (
            slice(max(int(y0 - reach[1]), 0), max(math.ceil(y1 + reach[1]), 0)),
            slice(max(int(x0 - reach[0]), 0), max(math.ceil(x1 + reach[0]), 0)),
        )

    @cached_property
    def _exact(self) -> AxisAligned | None:
        """The map as an AxisAligned one, None if it is not."""
        if self.displacement is not None:
            return None
        return AxisAligned.from_matrix(self.matrix, self.height, self.width, (self.input_height, self.input_width))

    @cached_property
    def _visible(self) -> tuple[slice, slice, Points | None]:
        """Rows and columns of the output that show the image, and their points, if any."""
        rows, columns = self.output_window((0, 0, self.input_width, self.input_height))
        is_empty = rows.start >= rows.stop or columns.start >= columns.stop
        return rows, columns, None if is_empty else self.points(rows, columns)

    def output_window(self, box: Box) -> tuple[slice, slice]:
        """Return the rows and columns of the output that can show a box of the input; may be empty."""
        left, top, right, bottom = box
        corners = np.array([left, right, left, right], dtype=np.float64), np.array([top, top, bottom, bottom])
        x, y = _through(np.linalg.inv(self.whole_matrix), *corners)
        reach = 1 + self._reach(np.linalg.inv(self.matrix))
        rows, columns = (
            slice(min(max(int(places.min() - reach), 0), length), max(min(int(places.max() + reach) + 1, length), 0))
            for places, length in ((y, self.height), (x, self.width))
        )
        return rows, columns

    def _reach(self, matrix: np.ndarray) -> float:
        """Return the largest displacement, in the pixels of the matrix's target."""
        if self.displacement is None:
            return 0.0
        return self.displacement.largest * float(np.linalg.norm(matrix[:2, :2], 2))

    def points(self, rows: slice | None = None, columns: slice | None = None) -> Points:
        """Return the positions in the input of the centres of output pixels, or of some rows and columns."""
        rows, columns = rows or slice(0, self.height), columns or slice(0, self.width)
        x, y = np.arange(columns.start, columns.stop) + 0.5, np.arange(rows.start, rows.stop) + 0.5
        whole = self.whole_matrix
        # The origin of the points is the same for all parts of the output, and so are their rounded values.
        corners = _through(whole, *_corners(self.height, self.width))
        reach = math.ceil(self._reach(np.eye(3) if self.before is None else self.before))
        left, top = (math.floor(corner.min()) - reach for corner in corners)
        (xx, xy, x0), (yx, yy, y0), _ = whole
        points_x = np.add((xx * x + (x0 - left))[None], (xy * y)[:, None], dtype=np.float32)
        points_y = np.add((yx * x + (y0 - top))[None], (yy * y)[:, None], dtype=np.float32)
        if self.displacement is not None:
            dx, dy = self._displaced(self.displacement, x, y)
            linear = self.before[:2, :2].astype(np.float32)
            shift_x, shift_y = linear[0, 0] * dx, linear[1, 1] * dy
            if linear[0, 1] or linear[1, 0]:
                shift_x, shift_y = shift_x + linear[0, 1] * dy, shift_y + linear[1, 0] * dx
            points_x += shift_x
            points_y += shift_y
        return Points(points_x, points_y, left, top, self.input_height, self.input_width, whole[:2, :2])

    def _displaced(self, displacement: Displacement, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the displacements along x and y, in their frame, at columns x (W,) and rows y (H,) of the output."""
        (xx, xy, x0), (yx, yy, y0), _ = self.matrix
        # On a grid, if only crops, flips and rotations by 90 degrees came after, all at once.
        if abs(xy) < EXACT and abs(yx) < EXACT:
            return displacement.on_grid(xx * x + x0, yy * y + y0)
        if abs(xx) < EXACT and abs(yy) < EXACT:
            dx, dy = displacement.on_grid(xy * y + x0, yx * x + y0)
            return dx.T, dy.T
        return displacement.at(*_through(self.matrix, x[None], y[:, None]))


def _corners(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array([0, width, 0, width], dtype=np.float64), np.array([0, 0, height, height], dtype=np.float64)


def _snapped(matrix: np.ndarray) -> np.ndarray:
    whole = np.rint(matrix)
    return np.where(np.abs(matrix - whole) < EXACT, whole, matrix)


def _through(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Apply a matrix (3, 3) to points x, y of any broadcastable shapes."""
    (xx, xy, x0), (yx, yy, y0), _ = matrix
    return (xx * x + x0) + xy * y, yx * x + (yy * y + y0)


def map_sample(sample: Sample, geometry: GeometricMap, *, border: str = "constant", min_visible: float = 0.0) -> Sample:
    """Return the sample after the map; objects that lose all their pixels are dropped, with their classes.

    border: see `GeometricMap.apply_image`; reflected parts show objects without a mask and are ignored. min_visible:
    objects with a smaller remaining fraction of their area are dropped too, and their remaining pixels are ignored.
    """
    layers, keep = sample.layers, np.ones(len(sample.classes), dtype=bool)
    ignored = [] if sample.ignore is None else [geometry.apply_labels(sample.ignore[None])[0]]
    if layers is not None:
        window = geometry.input_window()
        # Layers without visible objects are not resampled, except the first, since there is always one.
        used = [number == 0 or layer[window].any() for number, layer in enumerate(layers.layers)]
        before = layers.layers if all(used) else layers.layers[used]
        mapped = LabelLayers(geometry.apply_labels(before), layers.num_instances)
        areas = mapped.areas()
        keep = areas > 0
        if min_visible > 0:
            is_cut = keep & (areas * geometry.area_factor < min_visible * layers.areas())
            if is_cut.any():
                ignored.append(np.concatenate([[False], is_cut]).take(mapped.layers).any(axis=0))
                keep &= ~is_cut
        layers = mapped.select(keep)
    outside = geometry.outside() if border == "reflect" else None
    if outside is not None:
        ignored.append(outside)
    image = geometry.apply_image(sample.image, border)
    ignore = np.logical_or.reduce(ignored) if ignored else None
    certainty = None
    if sample.certainty is not None:
        # Beyond the image certainty is full.
        certainty = 255 - geometry.apply_labels(255 - sample.certainty[None])[0]
    return sample.with_objects(layers, keep, image=image, ignore=ignore, certainty=certainty)
