"""An evaluation as tables: images from the worst on, classes, groups, curves, confusion matrix. No PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detseg.evaluation.evaluate import align, count_all, image_table
from detseg.evaluation.ground_truth import GroundTruth
from detseg.evaluation.matches import confusion, match_image
from detseg.fusion.postprocess import Postprocess
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import paint
from detseg.tuning.score_curves import score_curves
from detseg.tuning.thresholds import choose_score_threshold

# Maximum number of points of a curve, evenly chosen among all distinct scores.
MOST_POINTS = 400
ALL = "all"
BACKGROUND = "background"

Rows = list[dict[str, Any]]


def image_rows(truth: GroundTruth, predictions: Sequence[Predictions], postprocess: Postprocess) -> Rows:
    """The scores of every image after the postprocess, worst object AP first; see `image_table`."""
    aligned = [postprocess.apply(image) for image in align(truth, predictions)]
    rows = image_table(truth, aligned, count_all(truth, aligned) or [])
    return sorted(rows, key=lambda row: row["object_ap"])


def named_rows(metrics: Mapping[str, Any], what: str) -> Rows:
    """The scores of every class ("per_class") or group ("per_group") of an evaluation, by name."""
    return [{"name": name, **scores} for name, scores in metrics.get(what, {}).items()]


def precision_recall_rows(truth: GroundTruth, predictions: Sequence[Predictions], postprocess: Postprocess) -> Rows:
    """Precision, recall and F1 at IoU > 0.5 by score threshold, of all objects and of every class: a line each."""
    curves = {one.name: one.by_iou[0.5] for one in score_curves(truth, align(truth, predictions), postprocess, (0.5,))}
    return [
        {"class": name, "threshold": t, "precision": p, "recall": r, "f1": f}
        for name, curve in curves.items()
        for t, p, r, f in _thinned(np.stack([curve.thresholds, curve.precision, curve.recall, curve.f1], axis=1))
    ]


def threshold_rows(truth: GroundTruth, predictions: Sequence[Predictions], postprocess: Postprocess) -> Rows:
    """Object AP by score threshold, with the other settings of the postprocess."""
    curve = choose_score_threshold(truth, predictions, postprocess=postprocess).curve
    return [{"class": ALL, "threshold": t, "object_ap": ap} for t, ap in _thinned(curve)]


def confusion_rows(truth: GroundTruth, predictions: Sequence[Predictions], postprocess: Postprocess) -> Rows:
    """Confusion matrix: number of objects of each class found as which class (IoU > 0.5), false positives, missed."""
    kept = [postprocess.apply(image) for image in align(truth, predictions)]
    matches = [match_image(own, image) for own, image in zip(truth.images, kept, strict=True)]
    names = [*truth.class_names, BACKGROUND]
    counts = confusion(matches, len(truth.class_names)).tolist()
    return [
        {"true": true, "predicted": predicted, "number": number}
        for true, row in zip(names, counts, strict=True)
        for predicted, number in zip(names, row, strict=True)
        if not true == predicted == BACKGROUND
    ]


def class_mask(rles: Sequence[Mapping[str, Any]], classes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (H, W) uint8: 0 background, 1 + k for objects of class k, later ones on top."""
    labels, _ = paint(rle_codec.decode_crops(rles), range(len(rles))[::-1], height, width)
    return np.append(0, classes + 1).astype(np.uint8)[labels]


def _thinned(points: np.ndarray) -> list[list[float]]:
    """Return at most MOST_POINTS of the rows, including first and last."""
    chosen = np.unique(np.linspace(0, len(points) - 1, min(len(points), MOST_POINTS)).round().astype(int))
    return points[chosen].tolist() if len(points) else []
