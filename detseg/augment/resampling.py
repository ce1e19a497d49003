"""Resampling of images and label images by a factor along each axis, at pixel centres."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

# Shrinking further than this, the label at the centre is a poor witness: the area decides.
MAJORITY_BELOW = 0.7
# Points looked at along each axis of an output pixel when the area decides.
_LEAST_POINTS, _MOST_POINTS = 3, 16

Window = tuple[float, float, float, float]


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image (H, W, C) uint8, uint16 or float32 to (height, width, C) of the same dtype.

    Bilinear; where it shrinks, the filter grows with the factor (antialiased), as Pillow does, which Detectron2 uses
    for images of 8 bits. Same size: the image itself.
    """
    return resize_box(image, (0.0, 0.0, float(image.shape[0]), float(image.shape[1])), height, width)


def resize_box(image: np.ndarray, window: Window, height: int, width: int) -> np.ndarray:
    """Resize the window (y0, x0, y1, x1), continuous, of an image (H, W, C) to (height, width, C).

    A window of whole pixels and the wanted size is cut out, exactly. Else the result is that part of the resized image:
    along the window's edges, the filter sees the pixels outside.
    """
    y0, x0, y1, x1 = window
    exact = (y1 - y0, x1 - x0) == (height, width) and float(y0).is_integer() and float(x0).is_integer()
    # How far the filter reaches beyond a pixel's centre, in input pixels.
    reach_y, reach_x = (0, 0) if exact else (math.ceil((y1 - y0) / height) + 1, math.ceil((x1 - x0) / width) + 1)
    top, left = max(math.floor(y0) - reach_y, 0), max(math.floor(x0) - reach_x, 0)
    image = image[top : math.ceil(y1) + reach_y, left : math.ceil(x1) + reach_x]
    if exact:
        return image
    box = (x0 - left, y0 - top, x1 - left, y1 - top)
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(_resize_plane(image, box, height, width))
    planes = [_resize_plane(image[:, :, channel], box, height, width) for channel in range(image.shape[2])]
    return np.stack(planes, axis=2)


def _resize_plane(plane: np.ndarray, box: tuple[float, ...], height: int, width: int) -> np.ndarray:
    """Resize (H, W), or RGB of 8 bits."""
    dtype = plane.dtype
    if dtype != np.uint8:
        plane = plane.astype(np.float32)
    resized = Image.fromarray(np.ascontiguousarray(plane)).resize(
        (width, height), Image.Resampling.BILINEAR, box=tuple(box)
    )
    result = np.asarray(resized)
    return np.rint(result).astype(dtype) if dtype == np.uint16 else result


def resize_labels(labels: np.ndarray, window: Window, height: int, width: int) -> np.ndarray:
    """Resize the window (y0, x0, y1, x1), continuous, of label images (L, H, W), integers or bool, to height x width.

    An output pixel takes the label at its centre; when shrinking below 0.7 along an axis, the label (background
    included) that covers most of it, the object with the highest label where several cover as much.
    """
    y0, x0, y1, x1 = window
    step_y, step_x = (y1 - y0) / height, (x1 - x0) / width
    if step_y == step_x == 1 and float(y0).is_integer() and float(x0).is_integer():
        return labels[:, int(y0) : int(y0) + height, int(x0) : int(x0) + width]
    if max(step_y, step_x) <= 1 / MAJORITY_BELOW:
        return _sample(labels, window, height, width, 1, 1)
    return _area_majority(labels, window, height, width)


def _sample(labels: np.ndarray, window: Window, height: int, width: int, points_y: int, points_x: int) -> np.ndarray:
    """Return (L, height * points_y, width * points_x): the labels at evenly spaced points of every output pixel."""
    y0, x0, y1, x1 = window
    rows = _positions(y0, y1, height * points_y, labels.shape[1])
    columns = _positions(x0, x1, width * points_x, labels.shape[2])
    # Rows first: whole rows are copied fast, and only those that are seen are looked through for columns.
    return labels.take(rows, axis=1).take(columns, axis=2)


def _positions(start: float, end: float, count: int, length: int) -> np.ndarray:
    """Return the indices (count,) of the pixels at the centres of `count` equal parts of start..end."""
    positions = start + (np.arange(count) + 0.5) * ((end - start) / count)
    return np.clip(np.floor(positions).astype(np.int64), 0, length - 1)


def _area_majority(labels: np.ndarray, window: Window, height: int, width: int) -> np.ndarray:
    """The label that most of a fine grid of points in every output pixel has.

    The grid has twice as many points as input pixels along each axis.
    """
    y0, x0, y1, x1 = window
    points_y, points_x = _points((y1 - y0) / height), _points((x1 - x0) / width)
    fine = _sample(labels, window, height, width, points_y, points_x)
    return majority([fine[:, row::points_y, column::points_x] for row in range(points_y) for column in range(points_x)])


def majority(planes: Sequence[np.ndarray]) -> np.ndarray:
    """Return for every pixel the label that most planes, arrays of one shape, have there.

    The highest label where several are as frequent.
    """
    # Nearly all pixels see one label, nearly all others two; the few with more are counted by sorting.
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


def _points(step: float) -> int:
    """Return how many points of an output pixel are looked at along an axis on which it covers `step` input pixels."""
    return min(max(math.ceil(2 * step), _LEAST_POINTS), _MOST_POINTS)


def _most_frequent(votes: np.ndarray) -> np.ndarray:
    """Return the most frequent value of every row (M, K), the highest of several as frequent."""
    votes = np.sort(votes, axis=1)
    columns = np.arange(votes.shape[1])
    # The length of the run of equal values that ends at each place; the last longest one wins.
    starts = np.zeros(votes.shape, dtype=np.int64)
    starts[:, 1:] = np.where(votes[:, 1:] != votes[:, :-1], columns[1:], 0)
    lengths = columns - np.maximum.accumulate(starts, axis=1)
    last_longest = votes.shape[1] - 1 - np.argmax(lengths[:, ::-1], axis=1)
    return votes[np.arange(len(votes)), last_longest]
