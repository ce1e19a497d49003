"""Object AP and mean F1: what the competitions score, from hits, false alarms and misses of every image.

Object AP (Data Science Bowl 2018, Sartorius Cell Instance Segmentation 2021): of one image at one IoU threshold t,

    TP / (TP + FP + FN),  a prediction being a hit (TP) when its IoU with an object is greater than t,

averaged over t = 0.50, 0.55, ..., 0.95, then over the images. It has no ranking by score: every prediction in the file
counts. Mean F1 (Caicedo et al., "Evaluation of Deep Learning Strategies for Nucleus Segmentation in Fluorescence
Images", Cytometry Part A 95, 2019) puts 2 TP / (2 TP + FP + FN) in its place, over the same thresholds and images.

Images without objects, as the competitions' scorers treat them: any prediction there makes its score 0, for there can
be no hit; no prediction makes it 1, for nothing was missed and nothing invented. Of a single class, only the images
count in which the class occurs in the truth or in the predictions; a class that occurs in none has no score (None).

Crowd regions of the truth are no objects; a prediction without a match that lies inside one by more than the fraction t
is left out of the count, as in COCO's evaluation.

Symbols: K classes, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from detseg.errors import DataError
from detseg.evaluation.ground_truth import ImageTruth
from detseg.structures import Predictions

# Which prediction is which object: IoUs of the pairs that touch, and a one-to-one matching above a threshold.
#
# Symbols: N predictions, M objects of the truth, P pairs, T IoU thresholds.
#
# The competitions' metrics (Data Science Bowl 2018, Sartorius) call a prediction a hit when its IoU with an object is
# greater than a threshold t >= 0.5. Where the masks of one side do not overlap, no object can be hit twice: two
# disjoint
# predictions would each have to cover more than half of it. Files as they come may overlap; then the matching here is a
# maximum one-to-one matching of the pairs with IoU > t. It depends neither on the order nor on the scores of the
# predictions, a doubled object counts as one hit and one false alarm, and it equals the competitions' count whenever
# that
# is unambiguous.

# 0.50, 0.55, ..., 0.95, each correctly rounded: an IoU of exactly 11/20 is then equal to, not greater than, 0.55.
IOU_THRESHOLDS = np.arange(10, 20) / 20
IOU_THRESHOLDS.flags.writeable = False

# IoUs are computed in tables of at most this many entries (8 bytes each) and kept as pairs.
TABLE_ENTRIES = 4_000_000


@dataclass(frozen=True)
class PairIous:
    """The P pairs of a prediction and an object that touch.

    prediction, truth: (P,) int64, 0-based, sorted by prediction, then truth. iou: (P,) float64 in (0, 1].
    """

    prediction: np.ndarray
    truth: np.ndarray
    iou: np.ndarray
    num_predictions: int
    num_truths: int

    def restricted(self, predictions: np.ndarray, truths: np.ndarray) -> PairIous:
        """Return the pairs among the chosen predictions (N,) bool and objects (M,) bool; indices stay as they are."""
        keep = predictions[self.prediction] & truths[self.truth]
        return PairIous(self.prediction[keep], self.truth[keep], self.iou[keep], self.num_predictions, self.num_truths)


def pair_ious(
    predictions: Sequence[Mapping[str, Any]], truths: Sequence[Mapping[str, Any]], above: float = 0.0
) -> PairIous:
    """Return the mask IoUs greater than `above` of all pairs of N predicted and M true masks, given as COCO RLEs.

    No mask is decoded: pycocotools intersects the run-lengths of those pairs alone whose boxes meet. The RLEs have one
    image size and have been checked (detseg's readers do): pycocotools' C code trusts what it is given.
    """
    count = len(truths)
    rows_each = max(1, TABLE_ENTRIES // max(count, 1))
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start in range(0, len(predictions) if count else 0, rows_each):
        # The table is Fortran-ordered; its transpose is searched in memory order, which is several times faster.
        table = coco_mask.iou(list(predictions[start : start + rows_each]), list(truths), [0] * count).T
        truth, prediction = np.nonzero(table > above)
        found.append((prediction + start, truth, table[truth, prediction]))
    if not found:
        nothing = np.zeros(0, dtype=np.int64)
        return PairIous(nothing, nothing.copy(), np.zeros(0), len(predictions), count)
    prediction, truth, iou = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((truth, prediction))
    return PairIous(prediction[order], truth[order], iou[order], len(predictions), count)


def largest_cover(predictions: Sequence[Mapping[str, Any]], regions: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the largest fraction (N,) float64 in [0, 1] of every predicted mask that lies inside one of `regions`."""
    if not len(predictions) or not len(regions):
        return np.zeros(len(predictions))
    return coco_mask.iou(list(predictions), list(regions), [1] * len(regions)).max(axis=1)


def match_pairs(pairs: PairIous, threshold: float) -> np.ndarray:
    """Return for every prediction (N,) int64 the object it is matched with, or -1: a maximum one-to-one matching.

    Only pairs with IoU strictly greater than `threshold` are matched.
    """
    matched = np.full(pairs.num_predictions, -1, dtype=np.int64)
    keep = pairs.iou > threshold
    prediction, truth = pairs.prediction[keep], pairs.truth[keep]
    if not len(prediction):
        return matched
    if _all_different(prediction) and _all_different(truth):
        matched[prediction] = truth
        return matched
    graph = csr_matrix(
        (np.ones(len(prediction), dtype=np.int8), (prediction, truth)), shape=(pairs.num_predictions, pairs.num_truths)
    )
    return maximum_bipartite_matching(graph, perm_type="column").astype(np.int64)


def _all_different(values: np.ndarray) -> bool:
    return bool(np.bincount(values).max() == 1)


@dataclass(frozen=True)
class ObjectCounts:
    """Hits and misses of one image; row 0 is over all objects whatever their class, row 1 + k is class k.

    hits, false_alarms, misses: (1 + K, T) int64. objects, predictions: (1 + K,) int64.
    """

    hits: np.ndarray
    false_alarms: np.ndarray
    misses: np.ndarray
    objects: np.ndarray
    predictions: np.ndarray

    def average_precision(self) -> np.ndarray:
        """Return TP / (TP + FP + FN), (1 + K, T) float64; 1 where there is neither object nor counted prediction."""
        return _ratio_or_one(self.hits, self.hits + self.false_alarms + self.misses)

    def f1(self) -> np.ndarray:
        """Return 2 TP / (2 TP + FP + FN), (1 + K, T) float64; 1 where there is neither object nor prediction."""
        return _ratio_or_one(2 * self.hits, 2 * self.hits + self.false_alarms + self.misses)

    def occurs(self) -> np.ndarray:
        """Return (1 + K,) bool: True for all objects together, and for the classes in the truth or the predictions."""
        occurs = (self.objects > 0) | (self.predictions > 0)
        occurs[0] = True
        return occurs


def _ratio_or_one(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.ones(numerator.shape), where=denominator > 0)


def count_objects(
    truth: ImageTruth, predictions: Predictions, num_classes: int, thresholds: np.ndarray = IOU_THRESHOLDS
) -> ObjectCounts:
    """Match the masks of one image, over all objects and within every class, at each IoU threshold (T,) >= 0.5.

    Raises DataError for predictions that are boxes alone.
    """
    if predictions.rles is None:
        raise DataError(
            f"predictions of image {predictions.file_name or predictions.image_id} are boxes without masks: object AP "
            "needs masks; only COCO box AP can be computed"
        )
    real = ~truth.crowd
    objects = [rle for rle, is_real in zip(truth.rles, real, strict=True) if is_real]
    crowds = [rle for rle, is_real in zip(truth.rles, real, strict=True) if not is_real]
    object_classes = truth.classes[real]
    pairs = pair_ious(predictions.rles, objects, above=float(np.min(thresholds)))
    crowd_cover = largest_cover(predictions.rles, crowds)

    shape = (1 + num_classes, len(thresholds))
    hits, alarms = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    object_counts, prediction_counts = np.zeros(shape[0], dtype=np.int64), np.zeros(shape[0], dtype=np.int64)
    for row in range(1 + num_classes):
        of_row = np.ones(len(predictions), dtype=bool) if row == 0 else predictions.classes == row - 1
        true_of_row = np.ones(len(objects), dtype=bool) if row == 0 else object_classes == row - 1
        object_counts[row], prediction_counts[row] = true_of_row.sum(), of_row.sum()
        pairs_of_row = pairs if row == 0 else pairs.restricted(of_row, true_of_row)
        for column, threshold in enumerate(thresholds):
            matched = match_pairs(pairs_of_row, threshold) >= 0
            hits[row, column] = matched.sum()
            alarms[row, column] = (of_row & ~matched & ~(crowd_cover > threshold)).sum()
    return ObjectCounts(hits, alarms, object_counts[:, None] - hits, object_counts, prediction_counts)


def summarize_objects(counts: Sequence[ObjectCounts], row: int = 0) -> dict[str, float | int | None]:
    """Return the object scores of a data set for one row of its counts (0: all objects, 1 + k: class k).

    Keys: object_ap, object_ap50, object_ap75, mean_f1 (means over images, None without any); precision, recall,
    true_positives, false_positives, false_negatives (of all images together, at IoU > 0.5); images, objects,
    predictions.
    """
    used = [image for image in counts if image.occurs()[row]]
    hits, alarms, misses = (
        int(sum(getattr(image, name)[row, 0] for image in used)) for name in ("hits", "false_alarms", "misses")
    )
    scores: dict[str, float | int | None] = dict.fromkeys(("object_ap", "object_ap50", "object_ap75", "mean_f1"))
    if used:
        precision = np.array([image.average_precision()[row] for image in used])
        scores["object_ap"] = float(precision.mean())
        scores["object_ap50"] = float(precision[:, 0].mean())
        scores["object_ap75"] = float(precision[:, 5].mean())
        scores["mean_f1"] = float(np.mean([image.f1()[row].mean() for image in used]))
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
