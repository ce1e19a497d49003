"""Resampling of images and label images: by a factor along each axis, or at points that differ for every output pixel.

Coordinates are continuous, in pixels of the input: the centre of pixel (row i, column j) is at (i + 0.5, j + 0.5).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from PIL import Image

# (y0, x0, y1, x1): a part of the input, continuous.
Window = tuple[float, float, float, float]

# Values beyond the image: the median of each channel, or the reflected image.
BORDERS = ("constant", "reflect")
# Step along each axis of the pixels that the median is computed over.
_MEDIAN_STEP = 8
# When downscaling by a smaller factor, a pixel takes the label of most of its area instead of that at its centre.
_MAJORITY_BELOW = 0.7
# Range of sampling points per output pixel, along each axis, for that.
_LEAST_POINTS, _MOST_POINTS = 3, 16
# Maximum side of images for cv2.remap.
_LONGEST_EDGE = 32766


def background_value(image: np.ndarray) -> np.ndarray:
    """Return the median (C,) of each channel of an image (H, W, C), in its dtype: most of a micrograph is background.

    It is computed over a subset of the pixels, for speed.
    """
    step_y, step_x = (min(_MEDIAN_STEP, length) for length in image.shape[:2])
    pixels = image[::step_y, ::step_x].reshape(-1, image.shape[2])
    # For an even number of pixels, the one above the middle, so that the value occurs.
    return np.partition(pixels, len(pixels) // 2, axis=0)[len(pixels) // 2]


def filled(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (height, width, C) filled with an image's background value, in its dtype."""
    canvas = np.empty((height, width, image.shape[2]), dtype=image.dtype)
    canvas[:] = background_value(image)
    return canvas


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image (H, W, C) uint8, uint16 or float32 to (height, width, C) of the same dtype.

    Bilinear; when downscaling, the filter grows with the factor (antialiasing), as in Pillow, which Detectron2 uses for
    8-bit images. With the same size it returns the image itself.
    """
    return resize_box(image, (0.0, 0.0, float(image.shape[0]), float(image.shape[1])), height, width)


def resize_box(image: np.ndarray, window: Window, height: int, width: int) -> np.ndarray:
    """Resize a window of an image (H, W, C) to (height, width, C).

    A window of whole pixels with the output size is cropped exactly. Otherwise the result is that part of the resized
    image: along the window's edges, the filter uses pixels outside.
    """
    y0, x0, y1, x1 = window
    if (y1 - y0, x1 - x0) == (height, width) and float(y0).is_integer() and float(x0).is_integer():
        return image[int(y0) : int(y0) + height, int(x0) : int(x0) + width]
    # Radius of the filter around a pixel's centre, in input pixels.
    reach_y, reach_x = math.ceil((y1 - y0) / height) + 1, math.ceil((x1 - x0) / width) + 1
    top, left = max(math.floor(y0) - reach_y, 0), max(math.floor(x0) - reach_x, 0)
    image = image[top : math.ceil(y1) + reach_y, left : math.ceil(x1) + reach_x]
    box = (x0 - left, y0 - top, x1 - left, y1 - top)

    def resize(plane: np.ndarray) -> np.ndarray:
        pixels = np.ascontiguousarray(plane if plane.dtype == np.uint8 else plane.astype(np.float32))
        resized = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR, box=box))
        return np.rint(resized).astype(np.uint16) if plane.dtype == np.uint16 else resized

    if image.dtype == np.uint8 and image.shape[2] == 3:
        return resize(image)
    return np.stack([resize(image[:, :, channel]) for channel in range(image.shape[2])], axis=2)


def resize_labels(labels: np.ndarray, window: Window, height: int, width: int) -> np.ndarray:
    """Resize a window of label images (L, H, W), integers or bool, to (L, height, width).

    An output pixel takes the label at its centre; when downscaling below 0.7 along an axis, the label (including
    background) that covers most of it, and of a tie the highest label.
    """
    y0, x0, y1, x1 = window
    step_y, step_x = (y1 - y0) / height, (x1 - x0) / width
    if step_y == step_x == 1 and float(y0).is_integer() and float(x0).is_integer():
        return labels[:, int(y0) : int(y0) + height, int(x0) : int(x0) + width]
    points_y = points_x = 1
    shrinks = max(step_y, step_x) > 1 / _MAJORITY_BELOW
    if shrinks:  # two points per input pixel along each axis
        points_y, points_x = (min(max(math.ceil(2 * step), _LEAST_POINTS), _MOST_POINTS) for step in (step_y, step_x))
    rows = _pixels_at(y0, y1, height * points_y, labels.shape[1])
    columns = _pixels_at(x0, x1, width * points_x, labels.shape[2])
    # Rows first: whole rows are copied fast, and columns are selected only from those.
    fine = labels.take(rows, axis=1).take(columns, axis=2)
    if not shrinks:
        return fine
    return majority([fine[:, row::points_y, column::points_x] for row in range(points_y) for column in range(points_x)])


def _pixels_at(start: float, end: float, count: int, length: int) -> np.ndarray:
    """Return the indices (count,) of the pixels at the centres of `count` equal parts of start..end."""
    positions = start + (np.arange(count) + 0.5) * ((end - start) / count)
    return np.clip(np.floor(positions).astype(np.int64), 0, length - 1)


def majority(planes: Sequence[np.ndarray]) -> np.ndarray:
    """Return for every pixel the most frequent label among planes, arrays of one shape.

    Of a tie, the highest label.
    """
    # Nearly all pixels have one label, nearly all others two; the few with more are counted by sorting.
    lowest, highest = planes[0].copy(), planes[0].copy()
    for plane in planes[1:]:
        np.minimum(lowest, plane, out=lowest)
        np.maximum(highest, plane, out=highest)
    result = highest.copy()
    mixed = np.nonzero(lowest != highest)
    votes = np.stack([plane[mixed] for plane in planes], axis=1)
    for_lowest = (votes == lowest[mixed][:, None]).sum(axis=1)
    for_highest = (votes == highest[mixed][:, None]).sum(axis=1)
    winners = np.where(for_lowest > for_highest, lowest[mixed], highest[mixed])
    several = for_lowest + for_highest < len(planes)
    winners[several] = _most_frequent(votes[several])
    result[mixed] = winners
    return result


def _most_frequent(votes: np.ndarray) -> np.ndarray:
    """Return the most frequent value of every row (M, K), the highest of a tie."""
    votes = np.sort(votes, axis=1)
    columns = np.arange(votes.shape[1])
    # Length of the run of equal values that ends at each position; the last longest one wins.
    starts = np.zeros(votes.shape, dtype=np.int64)
    starts[:, 1:] = np.where(votes[:, 1:] != votes[:, :-1], columns[1:], 0)
    lengths = columns - np.maximum.accumulate(starts, axis=1)
    last_longest = votes.shape[1] - 1 - np.argmax(lengths[:, ::-1], axis=1)
    return votes[np.arange(len(votes)), last_longest]


@dataclass(frozen=True)
class Points:
    """Positions of the centres of H x W output pixels in an input image.

    x, y: (H, W) float32, coordinates relative to the upper left corner of input pixel (row top, column left), all >= 0,
    which makes them accurate to a thousandth of a pixel in large images too. height, width: of the input; points may be
    outside it. linear: (2, 2), displacement per step of one output pixel.
    """

    x: np.ndarray
    y: np.ndarray
    left: int
    top: int
    height: int
    width: int
    linear: np.ndarray

    @cached_property
    def spans(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Minimum and maximum of x, and of y, in the input."""
        return (
            (float(self.x.min()) + self.left, float(self.x.max()) + self.left),
            (float(self.y.min()) + self.top, float(self.y.max()) + self.top),
        )

    @cached_property
    def outside(self) -> np.ndarray | None:
        """Which points (H, W) bool are outside the input; None if none is."""
        (x0, x1), (y0, y1) = self.spans
        if x0 >= 0 and y0 >= 0 and x1 < self.width and y1 < self.height:
            return None
        result = (self.x < -self.left) | (self.x >= self.width - self.left)
        result |= self.y < -self.top
        result |= self.y >= self.height - self.top
        return result

    def mirrored(self) -> Points:
        """Return the points with those outside reflected into the input, repeatedly if needed."""
        if self.outside is None:
            return self

        def mirror(places: np.ndarray, length: int) -> np.ndarray:
            return np.float32(length) - np.abs(np.float32(length) - np.mod(places, np.float32(2 * length)))

        x, y = mirror(self.x + self.left, self.width), mirror(self.y + self.top, self.height)
        return dataclasses.replace(self, x=x, y=y, left=0, top=0)


def warp_image(image: np.ndarray, points: Points) -> np.ndarray:
    """Sample an image (H, W, C) at the points; the result has the same dtype (uint8, uint16 or float32).

    Bilinear. When downscaling, it is smoothed first, by as much as the filter of `resize_image`. Points outside take
    the value at the edge.
    """
    # Additional smoothing for downscaling: bilinear sampling is a triangle filter of half width 1, and one of half
    # width s has the variance s^2 / 6. Rotation without downscaling is not smoothed at all, regardless of rounding.
    variances = ((points.linear**2).sum(axis=1) - 1) / 6
    sigma = [math.sqrt(variance) if variance > 1e-3 else 0.0 for variance in variances.tolist()]
    reach = math.ceil(4 * max(sigma)) + 2
    # First and last + 1 of the visible pixels, of columns and of rows; at least one.
    starts, ends = [], []
    for (least, most), length in zip(points.spans, (image.shape[1], image.shape[0]), strict=True):
        starts.append(min(max(math.floor(least) - reach, 0), length - 1))
        ends.append(max(min(math.ceil(most) + reach, length), starts[-1] + 1))
    (left, top), (right, bottom) = starts, ends
    if max(bottom - top, right - left) > _LONGEST_EDGE:
        axis = int(np.argmax(points.x.shape))
        halves = zip(np.array_split(points.x, 2, axis), np.array_split(points.y, 2, axis), strict=True)
        return np.concatenate([warp_image(image, dataclasses.replace(points, x=x, y=y)) for x, y in halves], axis)
    window = np.ascontiguousarray(image[top:bottom, left:right])
    if max(sigma) > 0:
        # A direction without downscaling gets a kernel of one pixel.
        sizes = [2 * math.ceil(4 * each) + 1 for each in sigma]
        window = cv2.GaussianBlur(window, sizes, sigmaX=sigma[0], sigmaY=sigma[1], borderType=cv2.BORDER_REFLECT)
    # In cv2, integer coordinates are pixel centres.
    map_x, map_y = points.x + np.float32(points.left - left - 0.5), points.y + np.float32(points.top - top - 0.5)
    result = cv2.remap(window, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return result.reshape(*map_x.shape, image.shape[2])


def warp_labels(labels: np.ndarray, points: Points) -> np.ndarray:
    """Sample label images (L, H, W), integers or bool, at the points; 0 outside.

    The label at the pixel's centre; when downscaling below 0.7 along an axis, the most frequent label, including
    background, on a grid of points in every output pixel, like `resize_labels`.
    """
    steps = np.hypot(points.linear[0], points.linear[1])
    if steps.max() <= 1 / _MAJORITY_BELOW:
        return _labels_at(labels, points)
    # Within an output pixel, an elastic displacement is that of its centre.
    parts_x, parts_y = (
        (np.arange(count) + 0.5) / count - 0.5 for count in (min(math.ceil(step) + 1, _MOST_POINTS) for step in steps)
    )
    planes = []
    for part_y in parts_y:
        for part_x in parts_x:
            x, y = points.linear @ (part_x, part_y)
            moved = dataclasses.replace(points, x=points.x + np.float32(x), y=points.y + np.float32(y))
            planes.append(_labels_at(labels, moved))
    return majority(planes)


def _labels_at(labels: np.ndarray, points: Points) -> np.ndarray:
    """Return the labels (L, H, W) of the pixels that contain the points; 0 outside."""
    height, width = labels.shape[1:]
    rows, columns = np.floor(points.y).astype(np.intp), np.floor(points.x).astype(np.intp)
    outside = points.outside
    if outside is not None:
        np.clip(rows, -points.top, height - 1 - points.top, out=rows)
        np.clip(columns, -points.left, width - 1 - points.left, out=columns)
    rows *= width
    rows += columns
    rows += points.top * width + points.left
    result = labels.reshape(len(labels), -1).take(rows, axis=1, mode="clip")
    if outside is not None:
        result[:, outside] = 0
    return result
