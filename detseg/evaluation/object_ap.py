"""Object AP and mean F1, the scores of the competitions, from hits, false positives and misses of every image.

The foreground IoU is computed too, as for semantic segmentation: of the pixels that belong to any object in the truth
and in the prediction, averaged over images.

Object AP (Data Science Bowl 2018, Sartorius Cell Instance Segmentation 2021): of one image at one IoU threshold t,

    TP / (TP + FP + FN),  a prediction being a hit (TP) when its IoU with an object is greater than t,

averaged over t = 0.50, 0.55, ..., 0.95, then over the images. It has no ranking by score: every prediction in the file
counts. Mean F1 (Caicedo et al., "Evaluation of Deep Learning Strategies for Nucleus Segmentation in Fluorescence
Images", Cytometry Part A 95, 2019) is the same with 2 TP / (2 TP + FP + FN).

If the masks of one side do not overlap, no object can be hit twice: two disjoint predictions would each have to cover
more than half of it. Files may contain overlapping masks; then hits are a maximum one-to-one matching of the pairs with
IoU > t. It depends neither on the order nor on the scores of the predictions, a duplicate counts as a false positive,
and it equals the competitions' count whenever that is unambiguous.

Images without objects are scored as in the competitions: 1 without predictions, else 0. For a single class, only images
in which the class occurs in the truth or in the predictions count; a class that occurs in none has no score (None).

Crowd regions of the truth are not objects; a prediction without a match is ignored if more than the fraction t of it
lies in one of them, as in COCO's evaluation.

Symbols: K classes, T IoU thresholds, N predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from detseg.errors import DataError
from detseg.evaluation.ground_truth import ImageTruth
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.overlaps import Overlaps, covered_pixels, shared_pixels
from detseg.structures.runs import Runs

# 0.50, 0.55, ..., 0.95, each correctly rounded: an IoU of exactly 11/20 is then equal to, not greater than, 0.55.
IOU_THRESHOLDS = np.arange(10, 20) / 20
IOU_THRESHOLDS.flags.writeable = False


@dataclass(frozen=True)
class ObjectCounts:
    """Hits and misses of one image; row 0 is all objects, of whatever class, row 1 + k is class k.

    hits, false_alarms, misses: (1 + K, T) int64. objects, predictions: (1 + K,) int64. foreground: (1 + K, 2) int64,
    intersection and union in pixels of the objects of truth and prediction, outside crowd regions.
    """

    hits: np.ndarray
    false_alarms: np.ndarray
    misses: np.ndarray
    objects: np.ndarray
    predictions: np.ndarray
    foreground: np.ndarray

    def average_precision(self) -> np.ndarray:
        """Return TP / (TP + FP + FN), (1 + K, T) float64; 1 with neither objects nor counted predictions."""
        return _ratio_or_one(self.hits, self.hits + self.false_alarms + self.misses)

    def f1(self) -> np.ndarray:
        """Return 2 TP / (2 TP + FP + FN), (1 + K, T) float64; 1 with neither objects nor counted predictions."""
        return _ratio_or_one(2 * self.hits, 2 * self.hits + self.false_alarms + self.misses)

    def foreground_iou(self) -> np.ndarray:
        """Return the IoU of the foregrounds (1 + K,) float64; 1 if both are empty."""
        return _ratio_or_one(self.foreground[:, 0], self.foreground[:, 1])

    def occurs(self) -> np.ndarray:
        """Return (1 + K,) bool: True for row 0, and for classes in the truth or the predictions."""
        occurs = (self.objects > 0) | (self.predictions > 0)
        occurs[0] = True
        return occurs


def _ratio_or_one(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.ones(numerator.shape), where=denominator > 0)


def read_masks(truth: ImageTruth, predictions: Predictions) -> tuple[Runs, Runs]:
    """Return the masks of the predictions and of the truth.

    Raises DataError for predictions without masks.
    """
    if predictions.rles is None:
        raise DataError(
            f"predictions of image {predictions.file_name or predictions.image_id} have no masks: object AP "
            "needs masks; only COCO box AP can be computed"
        )
    return rle_codec.read_runs(predictions.rles), rle_codec.read_runs(truth.rles)


def overlaps_with_truth(truth: ImageTruth, found: Runs, true: Runs) -> tuple[Overlaps, Overlaps]:
    """Return the overlapping pairs of predictions and crowd regions, and of predictions and objects.

    found, true: from `read_masks`.
    """
    overlaps = shared_pixels(found, true)
    of_crowd = truth.crowd[overlaps.second]
    return overlaps.select(of_crowd), overlaps.select(~of_crowd)


def count_objects(
    truth: ImageTruth, predictions: Predictions, num_classes: int, thresholds: np.ndarray = IOU_THRESHOLDS
) -> ObjectCounts:
    """Match the masks of one image, over all objects and within every class, at each IoU threshold (T,) >= 0.5.

    Raises DataError for predictions without masks.
    """
    found, true = read_masks(truth, predictions)
    crowds, pairs = overlaps_with_truth(truth, found, true)
    crowd_region = true.select(np.flatnonzero(truth.crowd))
    in_crowd = covered_pixels(crowd_region)
    crowd_cover = np.zeros(len(predictions))
    np.maximum.at(crowd_cover, crowds.first, crowds.of_first)

    shape = (1 + num_classes, len(thresholds))
    hits, alarms = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    object_counts, prediction_counts = np.zeros(shape[0], dtype=np.int64), np.zeros(shape[0], dtype=np.int64)
    foreground = np.zeros((shape[0], 2), dtype=np.int64)
    for row in range(1 + num_classes):
        of_row = (predictions.classes == row - 1) | (row == 0)
        true_of_row = ((truth.classes == row - 1) | (row == 0)) & ~truth.crowd
        object_counts[row], prediction_counts[row] = true_of_row.sum(), of_row.sum()
        pairs_of_row = pairs.select(of_row[pairs.first] & true_of_row[pairs.second])
        for column, threshold in enumerate(thresholds):
            matched = match_pairs(pairs_of_row, threshold) >= 0
            hits[row, column] = matched.sum()
            alarms[row, column] = (of_row & ~matched & ~(crowd_cover > threshold)).sum()
        ours, theirs = found.select(np.flatnonzero(of_row)), true.select(np.flatnonzero(true_of_row))
        one, other, either = (
            covered_pixels(crowd_region, *some) - in_crowd for some in ((ours,), (theirs,), (ours, theirs))
        )
        foreground[row] = one + other - either, either
    return ObjectCounts(hits, alarms, object_counts[:, None] - hits, object_counts, prediction_counts, foreground)


def match_pairs(pairs: Overlaps, threshold: float) -> np.ndarray:
    """Return the matched object, or -1, for every prediction (N,) int64: a maximum one-to-one matching.

    pairs: of predictions and objects. Only pairs with IoU strictly greater than `threshold` are matched.
    """
    matched = np.full(len(pairs.first_areas), -1, dtype=np.int64)
    pairs = pairs.select(pairs.iou > threshold)
    if not len(pairs):
        return matched
    if all(np.bincount(side).max() == 1 for side in (pairs.first, pairs.second)):
        matched[pairs.first] = pairs.second
        return matched
    shape = len(pairs.first_areas), len(pairs.second_areas)
    graph = csr_matrix((np.ones(len(pairs), dtype=np.int8), (pairs.first, pairs.second)), shape=shape)
    return maximum_bipartite_matching(graph, perm_type="column").astype(np.int64)


def summarize_objects(counts: Sequence[ObjectCounts], row: int = 0) -> dict[str, float | int | None]:
    """Return the object scores of a data set for one row of its counts (0: all objects, 1 + k: class k).

    Keys: object_ap, object_ap50, object_ap75, mean_f1, foreground_iou (means over images, None without any); precision,
    recall, true_positives, false_positives, false_negatives (over all images together, at IoU > 0.5); count_error, the
    mean over images of |predicted - true number of objects|; relative_count_error, the mean of that divided by the true
    number, over images with objects; images, objects, predictions.
    """
    used = [image for image in counts if image.occurs()[row]]
    hits, alarms, misses = (
        int(sum(getattr(image, name)[row, 0] for image in used)) for name in ("hits", "false_alarms", "misses")
    )
    names = (
        "object_ap",
        "object_ap50",
        "object_ap75",
        "mean_f1",
        "foreground_iou",
        "count_error",
        "relative_count_error",
    )
    scores: dict[str, float | int | None] = dict.fromkeys(names)
    if used:
        precision = np.array([image.average_precision()[row] for image in used])
        scores["object_ap"] = float(precision.mean())
        scores["object_ap50"] = float(precision[:, 0].mean())
        scores["object_ap75"] = float(precision[:, 5].mean())
        scores["mean_f1"] = float(np.mean([image.f1()[row].mean() for image in used]))
        scores["foreground_iou"] = float(np.mean([image.foreground_iou()[row] for image in used]))
        # False positives offset misses in the count. Predictions ignored in crowd regions do not count.
        wrong = np.array([abs(int(image.false_alarms[row, 0] - image.misses[row, 0])) for image in used])
        objects = np.array([image.objects[row] for image in used])
        scores["count_error"] = float(wrong.mean())
        if objects.any():
            scores["relative_count_error"] = float(np.mean(wrong[objects > 0] / objects[objects > 0]))
    return {
        **scores,
        "precision": hits / (hits + alarms) if hits + alarms else None,
        "recall": hits / (hits + misses) if hits + misses else None,
        "true_positives": hits,
        "false_positives": alarms,
        "false_negatives": misses,
        "images": len(used),
        "objects": int(sum(image.objects[row] for image in used)),
        "predictions": int(sum(image.predictions[row] for image in used)),
    }
