"""Hits of disjoint predictions at every IoU threshold, for all images of a data set at once, and scores made of them.

A prediction of disjoint ones hits an object when its IoU is greater than a threshold t >= 0.5; no other can hit the
same object then (`detseg.evaluation.matching`). So the largest IoU of a prediction says at how many of the thresholds
it is a hit: its level.

Symbols: I images, K classes, N predictions, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detseg.evaluation.ground_truth import ImageTruth
from detseg.evaluation.matching import IOU_THRESHOLDS
from detseg.evaluation.object_ap import ObjectCounts

# Scores that are a sum over images divided by another.
OBJECT_METRICS = ("object_ap", "object_ap50", "object_ap75", "mean_f1", "precision", "recall")


def level_of(values: np.ndarray) -> np.ndarray:
    """Return how many of the IoU thresholds every value (N,) is greater than, (N,) int64 from 0 to T."""
    return np.searchsorted(IOU_THRESHOLDS, values, side="left")


@dataclass(frozen=True)
class Hits:
    """N disjoint predictions that a setting leaves, of all images: image, classes (N,) int64, scores (N,) float32.

    level, level_in_class: (N,) int64, the number of thresholds at which it hits any object, or one of its class.
    crowd_level: (N,) int64, the number of thresholds at which it lies in a crowd region.
    """

    image: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    level: np.ndarray
    level_in_class: np.ndarray
    crowd_level: np.ndarray


@dataclass(frozen=True)
class CountTable:
    """`ObjectCounts` of I images in arrays: (I, 1 + K, T) int64, objects and predictions (I, 1 + K) int64."""

    hits: np.ndarray
    false_alarms: np.ndarray
    misses: np.ndarray
    objects: np.ndarray
    predictions: np.ndarray

    @classmethod
    def of_images(cls, counts: Sequence[ObjectCounts], num_classes: int) -> CountTable:
        """Put the counts of single images together."""
        rows, number = 1 + num_classes, len(IOU_THRESHOLDS)
        shapes = {"hits": (rows, number), "false_alarms": (rows, number), "misses": (rows, number)}
        shapes |= {"objects": (rows,), "predictions": (rows,)}
        return cls(
            **{
                name: np.array([getattr(image, name) for image in counts], dtype=np.int64).reshape(-1, *shape)
                for name, shape in shapes.items()
            }
        )

    def parts(self, metric: str, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (I,) float64 twice; the score of a set of images is the sum of the first / the sum of the second.

        metric: one of `OBJECT_METRICS`. row: 0 for all objects, 1 + k for class k.
        """
        hits, alarms, misses = (part[:, row] for part in (self.hits, self.false_alarms, self.misses))
        if metric in ("precision", "recall"):
            other = alarms if metric == "precision" else misses
            return hits[:, 0].astype(float), (hits + other)[:, 0].astype(float)
        used = (self.objects[:, row] > 0) | (self.predictions[:, row] > 0) | (row == 0)
        times = 2 if metric == "mean_f1" else 1
        whole = times * hits + alarms + misses
        values = np.divide(times * hits, whole, out=np.ones(hits.shape), where=whole > 0)
        column = {"object_ap50": values[:, 0], "object_ap75": values[:, 5]}.get(metric)
        return (values.mean(axis=1) if column is None else column) * used, used.astype(float)


def object_numbers(truths: Sequence[ImageTruth], num_classes: int) -> np.ndarray:
    """Return the numbers of objects (I, 1 + K) int64 of all and of every class; crowd regions are none."""
    numbers = np.zeros((len(truths), 1 + num_classes), dtype=np.int64)
    for index, truth in enumerate(truths):
        numbers[index, 1:] = np.bincount(truth.classes[~truth.crowd], minlength=num_classes)
    numbers[:, 0] = numbers[:, 1:].sum(axis=1)
    return numbers


def count_hits(hits: Hits, objects: np.ndarray) -> CountTable:
    """Count the hits, false alarms and misses of all images; objects (I, 1 + K) from `object_numbers`."""
    images, rows = objects.shape
    everything = np.zeros(len(hits.image), dtype=np.int64)
    row = np.concatenate([everything, 1 + hits.classes])
    image = np.concatenate([hits.image, hits.image])
    level = np.concatenate([hits.level, hits.level_in_class])
    found = _at_thresholds(image, row, level, images, rows)
    no_alarm = np.maximum(level, np.concatenate([hits.crowd_level, hits.crowd_level]))
    predictions = np.bincount(image * rows + row, minlength=images * rows).reshape(images, rows)
    alarms = predictions[..., None] - _at_thresholds(image, row, no_alarm, images, rows)
    return CountTable(found, alarms, objects[..., None] - found, objects, predictions)


def _at_thresholds(image: np.ndarray, row: np.ndarray, level: np.ndarray, images: int, rows: int) -> np.ndarray:
    """Return how many levels (N,) reach each threshold, (images, rows, T) int64."""
    number = len(IOU_THRESHOLDS)
    flat = np.bincount((image * rows + row) * (number + 1) + level, minlength=images * rows * (number + 1))
    return flat.reshape(images, rows, number + 1)[..., :0:-1].cumsum(axis=-1)[..., ::-1]
