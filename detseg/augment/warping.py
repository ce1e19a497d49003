"""Resampling of images and label images along points that differ for every output pixel."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from detseg.augment.resampling import MAJORITY_BELOW, majority

# cv2's remap takes images of at most so many pixels along each axis.
_LONGEST_EDGE = 32766
_MOST_POINTS = 16


@dataclass(frozen=True)
class Points:
    """Where the centres of H x W output pixels lie in an input image.

    x, y: (H, W) float32, continuous coordinates (a pixel's centre is at +0.5) measured from the upper left corner of
    input pixel (row top, column left), all >= 0: so are they exact to a thousandth of a pixel in large images, too.
    height, width: of the input; points may lie outside it. linear: (2, 2), how far a step of one output pixel goes.
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
        """The least and the greatest x, and y, of the input."""
        return (
            (float(self.x.min()) + self.left, float(self.x.max()) + self.left),
            (float(self.y.min()) + self.top, float(self.y.max()) + self.top),
        )

    @cached_property
    def outside(self) -> np.ndarray | None:
        """Which points (H, W) bool lie outside the input; None where none does."""
        (x0, x1), (y0, y1) = self.spans
        if x0 >= 0 and y0 >= 0 and x1 < self.width and y1 < self.height:
            return None
        result = (self.x < -self.left) | (self.x >= self.width - self.left)
        result |= self.y < -self.top
        result |= self.y >= self.height - self.top
        return result

    def moved(self, x: float, y: float) -> Points:
        """Return the points shifted by part of an input pixel."""
        return dataclasses.replace(self, x=self.x + np.float32(x), y=self.y + np.float32(y))

    def mirrored(self) -> Points:
        """Return the points with those outside thrown back into the input, as often as it takes."""
        if self.outside is None:
            return self
        x, y = _mirror(self.x + self.left, self.width), _mirror(self.y + self.top, self.height)
        return dataclasses.replace(self, x=x, y=y, left=0, top=0)

    def halves(self) -> tuple[Points, Points, int]:
        """Return the points of the two halves of the output's longer axis, and that axis."""
        axis = int(np.argmax(self.x.shape))
        (x0, x1), (y0, y1) = np.array_split(self.x, 2, axis), np.array_split(self.y, 2, axis)
        return dataclasses.replace(self, x=x0, y=y0), dataclasses.replace(self, x=x1, y=y1), axis


def _mirror(places: np.ndarray, length: int) -> np.ndarray:
    return np.float32(length) - np.abs(np.float32(length) - np.mod(places, np.float32(2 * length)))


def warp_image(image: np.ndarray, points: Points) -> np.ndarray:
    """Return an image (H, W, C) seen at the points; of the same dtype (uint8, uint16 or float32).

    Bilinear. Where it shrinks, it is smoothed first, as far as the growing filter of `resize_image` smooths. Points
    outside see the edge.
    """
    sigma = _smoothing(points.linear)
    reach = math.ceil(4 * max(sigma)) + 2
    left, right = _seen(points.spans[0], reach, image.shape[1])
    top, bottom = _seen(points.spans[1], reach, image.shape[0])
    if max(bottom - top, right - left) > _LONGEST_EDGE:
        first, second, axis = points.halves()
        return np.concatenate([warp_image(image, first), warp_image(image, second)], axis)
    window = np.ascontiguousarray(image[top:bottom, left:right])
    if max(sigma) > 0:
        # Of two directions the one that does not shrink gets a kernel of one pixel.
        sizes = [2 * math.ceil(4 * each) + 1 for each in sigma]
        window = cv2.GaussianBlur(window, sizes, sigmaX=sigma[0], sigmaY=sigma[1], borderType=cv2.BORDER_REFLECT)
    # cv2's whole coordinates are pixel centres.
    map_x, map_y = points.x + np.float32(points.left - left - 0.5), points.y + np.float32(points.top - top - 0.5)
    result = cv2.remap(window, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return result.reshape(*map_x.shape, image.shape[2])


def _smoothing(linear: np.ndarray) -> tuple[float, float]:
    """Return the standard deviations along x and y, input pixels, of what bilinear sampling lacks when shrinking.

    A triangle of half width s has the variance s^2 / 6; bilinear sampling is one of half width 1.
    """
    variances = ((linear**2).sum(axis=1) - 1) / 6
    # What turns without shrinking is not smoothed at all, whatever the last digits say.
    x, y = (math.sqrt(variance) if variance > 1e-3 else 0.0 for variance in variances.tolist())
    return x, y


def _seen(span: tuple[float, float], reach: int, length: int) -> tuple[int, int]:
    """Return first and last + 1 of the pixels of one axis that are seen; at least one."""
    first = min(max(math.floor(span[0]) - reach, 0), length - 1)
    return first, max(min(math.ceil(span[1]) + reach, length), first + 1)


def warp_labels(labels: np.ndarray, points: Points) -> np.ndarray:
    """Return label images (L, H, W), integers or bool, seen at the points; 0 outside.

    The label at the pixel's centre; when shrinking below 0.7 along an axis, the label that most of a grid of points in
    every output pixel has, background included, as `resize_labels`.
    """
    steps = np.hypot(points.linear[0], points.linear[1])
    if steps.max() <= 1 / MAJORITY_BELOW:
        return _take(labels, points)
    count_x, count_y = (min(math.ceil(step) + 1, _MOST_POINTS) for step in steps)
    # An elastic displacement is, within an output pixel, that of its centre.
    parts_x, parts_y = ((np.arange(count) + 0.5) / count - 0.5 for count in (count_x, count_y))
    shifts = [points.linear @ (part_x, part_y) for part_y in parts_y for part_x in parts_x]
    return majority([_take(labels, points.moved(*shift)) for shift in shifts])


def _take(labels: np.ndarray, points: Points) -> np.ndarray:
    """Return the labels (L, H, W) of the pixels in which the points lie; 0 outside."""
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
