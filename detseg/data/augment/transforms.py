"""Smooth random displacements: a uniform cubic B-spline through a coarse grid of control points.

The free-form deformation of Rueckert et al. 1999, randomly drawn as by Ronneberger et al. 2015 for U-Net. x, y are
continuous coordinates of the displaced frame, in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from detseg.data.augment.resampling import Window, filled, resize_box, resize_labels

# Control points that move less than this fraction of their spacing along each axis cannot fold the image: the bound is
# 1 / 2.0464 (Choi and Lee 2000), with a safety margin.
_LARGEST_STEP = 0.4
# Ratio of the standard deviation of the spline to that of independent control points: the mean over all positions of
# the root of the sum of its squared weights, along both axes.
_SPLINE_GAIN = 0.479


@dataclass(frozen=True)
class Displacement:
    """Displacements that are added to the coordinates of a frame of height x width pixels.

    control: (R, C, 2) float64, (x, y) displacements in pixels of the control points; point (r, c) is at
    ((c - 1) * spacing, (r - 1) * spacing). Beyond the frame, the displacement is that of its edge.
    """

    control: np.ndarray
    spacing: float
    height: int
    width: int

    @classmethod
    def draw(
        cls, height: int, width: int, *, spacing: float, magnitude: float, rng: np.random.Generator
    ) -> Displacement:
        """Draw displacements of standard deviation `magnitude` along each axis, in pixels; none folds the image."""
        shape = (int(height / spacing) + 4, int(width / spacing) + 4, 2)
        limit = _LARGEST_STEP * spacing
        control = np.clip(rng.normal(0.0, magnitude / _SPLINE_GAIN, shape), -limit, limit)
        return cls(control, spacing, height, width)

    @property
    def largest(self) -> float:
        """Upper bound on the length of displacements, pixels."""
        return float(np.hypot(self.control[..., 0], self.control[..., 1]).max())

    def on_grid(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the displacements along x and y, each (H, W) float32, at the grid of columns x (W,), rows y (H,)."""
        along_y = self._weights(y, self.height, self.control.shape[0])
        along_x = self._weights(x, self.width, self.control.shape[1])
        rows = np.einsum("hr,rca->ahc", along_y, self.control).astype(np.float32)
        columns = np.ascontiguousarray(along_x.T, dtype=np.float32)
        # Not by matrix products: their threads, one per core in every worker, would block each other.
        dx, dy = (np.einsum("hc,cw->hw", one, columns) for one in rows)
        return dx, dy

    def at(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the displacements along x and y, each (H, W) float32, at points x, y (H, W)."""
        from scipy.ndimage import map_coordinates

        places = np.stack([np.clip(y, 0, self.height), np.clip(x, 0, self.width)]) / self.spacing + 1
        dx, dy = (map_coordinates(self.control[..., axis], places, order=3, prefilter=False) for axis in (0, 1))
        return dx.astype(np.float32), dy.astype(np.float32)

    def _weights(self, places: np.ndarray, length: int, count: int) -> np.ndarray:
        """Return the weights (len(places), count) of the control points of one axis."""
        position = np.clip(places, 0, length) / self.spacing + 1
        distance = np.abs(position[:, None] - np.arange(count))
        near = 2 / 3 - distance**2 + distance**3 / 2
        far = (2 - distance) ** 3 / 6
        return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


# Maps that keep or swap the axes: a window of the image, resized, padded if needed, then flipped and rotated, exactly.

# Coordinates closer than this to an integer are meant to be that integer.
EXACT = 1e-6
_FOR_OPENCV = (np.uint8, np.uint16, np.int32, np.float32)


@dataclass(frozen=True)
class AxisAligned:
    """One such map.

    window: (y0, x0, y1, x1), the visible part of the input, continuous. height, width: of the output before rotation.
    rows, columns: position of the window in it; around it is padding. swaps: the output's axes are swapped. flips: of
    rows and of columns of the output, after that.
    """

    window: Window
    height: int
    width: int
    rows: slice
    columns: slice
    swaps: bool
    flips: tuple[bool, bool]

    @classmethod
    def from_matrix(
        cls, matrix: np.ndarray, height: int, width: int, input_size: tuple[int, int]
    ) -> AxisAligned | None:
        """Convert a matrix (3, 3) from an output of height x width to the input.

        Returns None if it rotates by other angles, or if the image ends within an output pixel.
        """
        swaps = abs(matrix[0, 0]) < EXACT and abs(matrix[1, 1]) < EXACT
        if not swaps and (abs(matrix[0, 1]) > EXACT or abs(matrix[1, 0]) > EXACT):
            return None
        corners = matrix @ np.array([[0, width], [0, height], [1, 1]], dtype=np.float64)
        (x0, x1), (y0, y1) = np.sort(corners[0]), np.sort(corners[1])
        if swaps:
            height, width = width, height
            flips = matrix[0, 1] < 0, matrix[1, 0] < 0
        else:
            flips = matrix[1, 1] < 0, matrix[0, 0] < 0
        along_y = _inside(_snap(y0), _snap(y1), height, input_size[0])
        along_x = _inside(_snap(x0), _snap(x1), width, input_size[1])
        if along_y is None or along_x is None:
            return None
        (top, bottom, rows), (left, right, columns) = along_y, along_x
        return cls((top, left, bottom, right), height, width, rows, columns, swaps, (bool(flips[0]), bool(flips[1])))

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width of the part of the output, before rotation, that shows the image."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def is_padded(self) -> bool:
        return self.shown != (self.height, self.width)

    def image(self, image: np.ndarray, border: str) -> np.ndarray:
        """Map an image (H, W, C); border: one of `resampling.BORDERS`."""
        if not all(self.shown):
            return self._orient(filled(image, self.height, self.width))
        seen = resize_box(image, self.window, *self.shown)
        if self.is_padded and border == "reflect":
            around = self.rows.start, self.height - self.rows.stop, self.columns.start, self.width - self.columns.stop
            padded = cv2.copyMakeBorder(seen, *around, cv2.BORDER_REFLECT)
            seen = padded.reshape(self.height, self.width, image.shape[2])
        elif self.is_padded:
            canvas = filled(image, self.height, self.width)
            canvas[self.rows, self.columns] = seen
            seen = canvas
        return self._orient(seen)

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """Map label images (L, H, W); 0 beyond the image."""
        if self.is_padded:
            seen = np.zeros((len(labels), self.height, self.width), dtype=labels.dtype)
            if all(self.shown):
                seen[:, self.rows, self.columns] = resize_labels(labels, self.window, *self.shown)
        else:
            seen = resize_labels(labels, self.window, *self.shown)
        if self.swaps:
            seen = np.stack([_transposed(layer) for layer in seen])
        return np.ascontiguousarray(seen[(slice(None), *self._flipped)])

    def _orient(self, image: np.ndarray) -> np.ndarray:
        """Rotate and flip (H, W, C), exactly."""
        image = _transposed(image) if self.swaps else image
        return np.ascontiguousarray(image[self._flipped])

    @property
    def _flipped(self) -> tuple[slice, slice]:
        flip_rows, flip_columns = self.flips
        return slice(None, None, -1 if flip_rows else 1), slice(None, None, -1 if flip_columns else 1)


def _transposed(array: np.ndarray) -> np.ndarray:
    """Swap the first two axes of (H, W) or (H, W, C)."""
    if array.dtype in _FOR_OPENCV and (array.ndim == 2 or array.shape[2] <= 4):  # five times as fast
        return cv2.transpose(np.ascontiguousarray(array)).reshape(array.shape[1::-1] + array.shape[2:])
    return np.ascontiguousarray(array.swapaxes(0, 1))


def _inside(start: float, end: float, count: int, length: int) -> tuple[float, float, slice] | None:
    """Return the part of start..end within 0..length, and which of `count` equal parts of start..end it covers.

    None if it does not cover whole parts.
    """
    step = (end - start) / count
    first, last = max(-start / step, 0.0), min((length - start) / step, float(count))
    if first >= last:
        return 0.0, 0.0, slice(0, 0)
    if not (_snap(first).is_integer() and _snap(last).is_integer()):
        return None
    return max(start, 0.0), min(end, float(length)), slice(round(first), round(last))


def _snap(value: float) -> float:
    nearest = round(value)
    return float(nearest) if abs(value - nearest) < EXACT else float(value)
