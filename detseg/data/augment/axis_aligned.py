"""Maps that keep or swap the axes: a window of the image, resized, perhaps padded, then flipped and turned, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from detseg.data.augment.resampling import Window, filled, resize_box, resize_labels

# Coordinates closer than this to a whole number are meant to be it.
EXACT = 1e-6
_FOR_OPENCV = (np.uint8, np.uint16, np.int32, np.float32)


@dataclass(frozen=True)
class AxisAligned:
    """One such map.

    window: (y0, x0, y1, x1), the part of the input that is seen, continuous. height, width: of the output before it is
    turned. rows, columns: where the window is in it; around it is what is beyond the image. swaps: the output runs
    along the input's other axis. flips: of rows and of columns of the output, after that.
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
        """Read the map off its matrix (3, 3) from an output of height x width to the input.

        None where it turns by other angles, or where the image ends within an output pixel.
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
        """Height and width of the part of the output, before it is turned, that shows the image."""
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
        """Turn and flip (H, W, C), exactly."""
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
    """Return the part of start..end within 0..length, and which of the `count` equal parts of start..end it is.

    None where it is not a whole number of parts.
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
