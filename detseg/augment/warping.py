"""Resampling of images and label images along coordinates that differ for every output pixel.

x, y: (H, W) float64, where every output pixel's centre lies in the input, in continuous coordinates (a pixel's centre
is at +0.5). Points outside the input see the border.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from detseg.augment.resampling import MAJORITY_BELOW, majority

# cv2's remap takes images of at most so many pixels along each axis.
_LONGEST_EDGE = 32766
_MOST_POINTS = 16


def is_outside(x: np.ndarray, y: np.ndarray, height: int, width: int) -> np.ndarray | None:
    """Return which points (H, W) bool lie outside an input of height x width pixels, or None where none does."""
    if x.min() >= 0 and x.max() < width and y.min() >= 0 and y.max() < height:
        return None
    return (x < 0) | (x >= width) | (y < 0) | (y >= height)


def warp_image(image: np.ndarray, x: np.ndarray, y: np.ndarray, linear: np.ndarray, *, mirrored: bool) -> np.ndarray:
    """Return an image (H, W, C) seen at the points; of the same dtype (uint8, uint16 or float32).

    Bilinear. Where it shrinks, it is smoothed first, as far as the growing filter of `resize_image` smooths. linear:
    (2, 2), how far a step of one output pixel goes in the input. Points outside see the image mirrored, or else its
    edge.
    """
    if mirrored:
        x, y = _mirror(x, image.shape[1]), _mirror(y, image.shape[0])
    sigma = _smoothing(linear)
    reach = math.ceil(4 * max(sigma)) + 2
    top, bottom = _span(y, reach, image.shape[0])
    left, right = _span(x, reach, image.shape[1])
    if max(bottom - top, right - left) > _LONGEST_EDGE:
        return _in_halves(image, x, y, linear)
    window = np.ascontiguousarray(image[top:bottom, left:right])
    if max(sigma) > 0:
        # Of two directions the one that does not shrink gets a kernel of one pixel.
        sizes = [2 * math.ceil(4 * each) + 1 for each in sigma]
        window = cv2.GaussianBlur(window, sizes, sigmaX=sigma[0], sigmaY=sigma[1], borderType=cv2.BORDER_REFLECT)
    # cv2's whole coordinates are pixel centres.
    map_x, map_y = (x - (left + 0.5)).astype(np.float32), (y - (top + 0.5)).astype(np.float32)
    result = cv2.remap(window, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return result.reshape(*x.shape, image.shape[2])


def _mirror(places: np.ndarray, length: int) -> np.ndarray:
    """Return coordinates beyond 0..length thrown back into it, as often as it takes."""
    if places.min() >= 0 and places.max() < length:
        return places
    return length - np.abs(length - np.mod(places, 2 * length))


def _smoothing(linear: np.ndarray) -> tuple[float, float]:
    """Return the standard deviations along x and y, input pixels, of what bilinear sampling lacks when shrinking.

    A triangle of half width s has the variance s^2 / 6; bilinear sampling is one of half width 1.
    """
    variances = ((linear**2).sum(axis=1) - 1) / 6
    # What turns without shrinking is not smoothed at all, whatever the last digits say.
    return tuple(float(math.sqrt(variance)) if variance > 1e-3 else 0.0 for variance in variances)


def _span(places: np.ndarray, reach: int, length: int) -> tuple[int, int]:
    """Return first and last + 1 of the pixels of one axis that are seen; at least one."""
    first = min(max(math.floor(places.min()) - reach, 0), length - 1)
    last = max(min(math.ceil(places.max()) + reach, length), first + 1)
    return first, last


def _in_halves(image: np.ndarray, x: np.ndarray, y: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """See more of the image than cv2 takes, one half of the output's longer axis after the other."""
    axis = int(np.argmax(x.shape))
    parts = zip(np.array_split(x, 2, axis), np.array_split(y, 2, axis), strict=True)
    return np.concatenate([warp_image(image, *part, linear, mirrored=False) for part in parts], axis)


def warp_labels(labels: np.ndarray, x: np.ndarray, y: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Return label images (L, H, W), integers or bool, seen at the points; 0 outside.

    The label at the pixel's centre; when shrinking below 0.7 along an axis, the label that most of a grid of points in
    every output pixel has, background included, as `resize_labels`. linear: as for `warp_image`.
    """
    steps = np.hypot(linear[0], linear[1])
    if steps.max() <= 1 / MAJORITY_BELOW:
        return _take(labels, x, y)
    count_x, count_y = (min(math.ceil(step) + 1, _MOST_POINTS) for step in steps)
    planes = []
    for part_y in (np.arange(count_y) + 0.5) / count_y - 0.5:
        for part_x in (np.arange(count_x) + 0.5) / count_x - 0.5:
            shift = linear @ (part_x, part_y)
            planes.append(_take(labels, x + shift[0], y + shift[1]))
    return majority(planes)


def _take(labels: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the labels (L, H, W) of the pixels in which the points lie; 0 outside."""
    height, width = labels.shape[1:]
    top, bottom = _span(y, 1, height)
    left, right = _span(x, 1, width)
    # A frame of zeros around what is seen, onto which all points outside are put.
    framed = np.zeros((labels.shape[0], bottom - top + 2, right - left + 2), dtype=labels.dtype)
    framed[:, 1:-1, 1:-1] = labels[:, top:bottom, left:right]
    rows = np.clip(np.floor(y) - (top - 1), 0, bottom - top + 1).astype(np.intp)
    columns = np.clip(np.floor(x) - (left - 1), 0, right - left + 1).astype(np.intp)
    rows *= framed.shape[2]
    rows += columns
    return framed.reshape(labels.shape[0], -1).take(rows, axis=1)
