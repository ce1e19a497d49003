"""Which predictions hit which objects: for figures, confusion matrices, and histograms of sizes and overlaps.

The matching is that of `detseg.evaluation.object_ap` at one IoU threshold, whatever the classes: a prediction of the
wrong class is a hit with a confusion, not a false positive and a miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detseg.evaluation.ground_truth import ImageTruth
from detseg.evaluation.object_ap import match_pairs, overlaps_with_truth, read_masks
from detseg.structures import Predictions


@dataclass(frozen=True)
class ImageMatches:
    """N predictions and M annotations of one image, matched one to one.

    object_of: (N,) int64, the annotation that a prediction hits, or -1. iou: (N,) float64, with it; 0 without a hit.
    left_out: (N,) bool, no hit but inside a crowd region: neither true nor false positive.
    predicted_of: (M,) int64, the prediction that hits an annotation, or -1. crowd: (M,) bool, crowd regions. classes,
    areas: of the predictions; object_classes, object_areas: of the annotations; int64, pixels.
    """

    object_of: np.ndarray
    iou: np.ndarray
    left_out: np.ndarray
    predicted_of: np.ndarray
    crowd: np.ndarray
    classes: np.ndarray
    areas: np.ndarray
    object_classes: np.ndarray
    object_areas: np.ndarray

    @property
    def is_hit(self) -> np.ndarray:
        """(N,) bool, predictions that are true positives."""
        return self.object_of >= 0

    @property
    def is_false(self) -> np.ndarray:
        """(N,) bool, predictions that are false positives."""
        return ~self.is_hit & ~self.left_out

    @property
    def is_missed(self) -> np.ndarray:
        """(M,) bool, annotated objects without a prediction."""
        return (self.predicted_of < 0) & ~self.crowd


def match_image(truth: ImageTruth, predictions: Predictions, threshold: float = 0.5) -> ImageMatches:
    """Match the masks of one imageat IoU > threshold, which is 0.5 or more.

    Raises DataError for predictions without masks.
    """
    crowds, pairs = overlaps_with_truth(truth, *read_masks(truth, predictions))
    object_of = match_pairs(pairs, threshold)
    hits = np.flatnonzero(object_of >= 0)
    predicted_of = np.full(len(truth.rles), -1, dtype=np.int64)
    predicted_of[object_of[hits]] = hits
    iou = np.zeros(len(predictions))
    matched = object_of[pairs.first] == pairs.second
    iou[pairs.first[matched]] = pairs.iou[matched]
    left_out = np.zeros(len(predictions), dtype=bool)
    left_out[crowds.first[crowds.of_first > threshold]] = True
    return ImageMatches(
        object_of=object_of,
        iou=iou,
        left_out=left_out & (object_of < 0),
        predicted_of=predicted_of,
        crowd=truth.crowd,
        classes=predictions.classes.astype(np.int64),
        areas=pairs.first_areas,
        object_classes=truth.classes,
        object_areas=pairs.second_areas,
    )


def confusion(matches: Sequence[ImageMatches], num_classes: int) -> np.ndarray:
    """Return counts (K + 1, K + 1) int64: rows are true classes, columns predicted classes.

    Row K counts false positives by predicted class, column K missed objects by true class.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for image in matches:
        hit = image.is_hit
        np.add.at(counts, (image.object_classes[image.object_of[hit]], image.classes[hit]), 1)
        np.add.at(counts[num_classes], image.classes[image.is_false], 1)
        np.add.at(counts[:, num_classes], image.object_classes[image.is_missed], 1)
    return counts
