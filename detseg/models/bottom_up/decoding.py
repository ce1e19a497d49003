"""From a label image to Predictions: scores, classes and the probability of every pixel of an object."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage

from detseg.models.paste import quantise
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions

_HALF = 128 / 255  # smallest uint8 probability of a soft mask that is at least 0.5


def predictions_of_labels(
    labels: np.ndarray,
    foreground: np.ndarray,
    quality: np.ndarray,
    *,
    class_maps: np.ndarray | None = None,
    threshold: float = 0.5,
    limit: int | None = None,
    soft_masks: bool = False,
) -> Predictions:
    """Return the objects of a label image, best first.

    labels: (H, W) int32, 1..N, none empty. foreground: (H, W) float32, the probability that a pixel belongs to an
    object. quality: (N,) in [0, 1], of the shapes: a score is the mean probability of an object times this.
    class_maps: (K, H, W) probabilities; the class of an object has the highest mean; None for one class. threshold: of
    the foreground. limit: maximum number of objects.
    """
    numbers = np.arange(1, len(quality) + 1)
    scores, classes, windows = quality, np.zeros(len(numbers), dtype=np.int64), []
    if len(numbers):  # SciPy cannot measure an empty list
        scores = ndimage.mean(foreground, labels, numbers) * quality
        windows = ndimage.find_objects(labels)
        if class_maps is not None:
            classes = np.stack([ndimage.mean(one, labels, numbers) for one in class_maps]).argmax(axis=0)
    order = np.argsort(-scores, kind="stable")[:limit]
    windows = [windows[index] for index in order]
    boxes = np.array([(x.start, y.start, x.stop, y.stop) for y, x in windows], dtype=np.float32)
    rles = rle_codec.encode_labels(labels, len(numbers))
    soft = None
    if soft_masks:
        soft = [
            _soft_mask(labels[window], foreground[window], index + 1, threshold)
            for index, window in zip(order.tolist(), windows, strict=True)
        ]
    return Predictions(
        0,
        "",
        *labels.shape,
        boxes,
        np.clip(scores[order], 0, 1),
        classes[order],
        [rles[index] for index in order],
        soft,
    )


def _soft_mask(labels: np.ndarray, foreground: np.ndarray, number: int, threshold: float) -> np.ndarray:
    """Return the crop (h, w) uint8 of one object: at least half exactly in its mask, 0 in other objects.

    Probabilities are rescaled so that the threshold becomes 0.5, as in the masks of other models.
    """
    above = 0.5 + 0.5 * (foreground - threshold) / max(1 - threshold, 1e-6)
    stretched = np.where(foreground < threshold, 0.5 * foreground / max(threshold, 1e-6), above)
    own = labels == number
    stretched = np.where(own, np.maximum(stretched, _HALF), np.minimum(stretched, 127 / 255))
    return quantise(np.where(own | (labels == 0), stretched, 0.0).clip(0, 1))


def solidity(labels: np.ndarray) -> np.ndarray:
    """Return the fraction (N,) of the convex hull that each object fills, which is low for two merged objects."""
    shares = []
    for number, window in enumerate(ndimage.find_objects(labels), start=1):
        mask = (labels[window] == number).astype(np.uint8)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        hull = cv2.convexHull(np.concatenate(outlines))
        # Pick's theorem: the pixels in a polygon through pixel centres
        pixels = cv2.contourArea(hull) + cv2.arcLength(hull, True) / 2 + 1
        shares.append(min(int(mask.sum()) / pixels, 1.0))
    return np.array(shares)
