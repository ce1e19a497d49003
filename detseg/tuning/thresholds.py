"""The score threshold at which object AP is highest.

After overlaps are resolved by score, what is left of a prediction depends only on predictions of higher score
(`detseg.fusion.overlaps`), so one resolution serves all thresholds: the predictions at a threshold are the first ones
of each image in order of score. Their masks are disjoint, so no object is hit twice, and whether a prediction is a hit
does not depend on the threshold either. Object AP at every distinct score is then one cumulative sum, exact, without a
grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detseg.evaluation.coco_ap import ALL
from detseg.evaluation.evaluate import align, count_all, metrics_of
from detseg.evaluation.ground_truth import GroundTruth, as_ground_truth
from detseg.evaluation.object_ap import IOU_THRESHOLDS
from detseg.fusion.postprocess import Postprocess
from detseg.structures import Predictions
from detseg.tuning.candidates import CandidateTable, Hits, is_fast, object_numbers

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset


# The threshold if there are no predictions.
DEFAULT_THRESHOLD = 0.5


class ThresholdChoice(NamedTuple):
    """threshold: keep predictions with score >= it. object_ap: at it. curve: (S, 2) float64, threshold and object AP.

    The curve runs from the highest score to the lowest; without images object_ap is None and the curve empty.
    """

    threshold: float
    object_ap: float | None
    curve: np.ndarray


def choose_score_threshold(
    ground_truth: GroundTruth | CocoDataset,
    predictions: Iterable[Predictions],
    *,
    postprocess: Postprocess | None = None,
) -> ThresholdChoice:
    """Choose the score threshold, the same for all classes, that maximizes object AP over all objects without overlaps.

    postprocess: further settings (sizes, holes); its score threshold is ignored, and overlaps are resolved by score.
    The result is exact: applying the postprocess with the threshold and evaluating gives `object_ap`. Of equally good
    thresholds the highest is taken. The choice is fitted to these images; if they are few, report the score on others.
    """
    truth = as_ground_truth(ground_truth)
    hits_of = hits_without_threshold(truth, align(truth, predictions), postprocess)
    objects = object_numbers(truth.images, len(truth.class_names))
    return best_threshold(hits_of(None), objects[:, 0])


def hits_without_threshold(
    truth: GroundTruth, aligned: Sequence[Predictions], postprocess: Postprocess | None
) -> Callable[[int | None], Hits]:
    """Return a function from class index (None for all) to the hits after everything but the score threshold."""
    settings = dataclasses.replace(
        (postprocess or Postprocess()).without_score_threshold(), resolve_overlaps=True, overlap_policy="score"
    )
    if is_fast(settings):
        limits = settings.nms_iou.values() if isinstance(settings.nms_iou, Mapping) else [settings.nms_iou]
        duplicates = any(limit is not None for limit in limits)
        shaped = [settings.shaped(image) for image in aligned]
        classes = settings.image_classes(aligned)
        table = CandidateTable(truth.images, shaped, image_classes=classes, duplicates=duplicates)
        return lambda only_class: table.hits(settings, only_class)

    def applied(only_class: int | None) -> Hits:
        processed = [
            own.apply(image if only_class is None else image.select(image.classes == only_class))
            for own, image in map(settings.of_image, aligned)
        ]
        return CandidateTable(truth.images, processed, duplicates=False).hits(Postprocess())

    return applied


def best_threshold(hits: Hits, objects: np.ndarray, only_occurring: bool = False) -> ThresholdChoice:
    """Return the best threshold for disjoint predictions; an image's score is a step function of the threshold.

    objects: (I,) int64, the number of objects per image. only_occurring: leave out images with neither an object nor a
    prediction above the threshold.
    """
    bounds = np.searchsorted(hits.image, np.arange(len(objects) + 1))
    gains, enters = np.zeros(len(hits.scores)), np.zeros(len(hits.scores))
    start_sum, start_images = 0.0, 0
    for number, begin, end in zip(objects, bounds[:-1], bounds[1:], strict=True):
        precision = _precision_of_heads(hits.level[begin:end], hits.crowd_level[begin:end], int(number))
        empty = only_occurring and number == 0
        # Above its highest score, an image without objects scores 1, or is not counted.
        start_sum += 0.0 if empty else precision[0]
        start_images += 0 if empty else 1
        gains[begin:end] = np.diff(precision)
        if empty and end > begin:
            gains[begin], enters[begin] = precision[1], 1
    if not len(objects):
        return ThresholdChoice(DEFAULT_THRESHOLD, None, np.zeros((0, 2)))
    return _best_of_steps(hits.scores.astype(np.float64), gains, enters, start_sum, start_images)


def _best_of_steps(
    scores: np.ndarray, gains: np.ndarray, enters: np.ndarray, start_sum: float, start_images: int
) -> ThresholdChoice:
    """Cumulate the steps (S,) of all images by descending score; equal scores enter together."""
    if not len(scores):
        object_ap = start_sum / start_images if start_images else None
        return ThresholdChoice(DEFAULT_THRESHOLD, object_ap, np.zeros((0, 2)))
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    sums, images = start_sum + np.cumsum(gains[order]), start_images + np.cumsum(enters[order])
    last_of_equal = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    distinct = scores[last_of_equal]
    object_ap = sums[last_of_equal] / np.maximum(images[last_of_equal], 1)
    below = np.append(distinct[1:], 0.0)
    # Sums in another order differ in the last digits; scores that agree up to these are tied.
    best = int(np.flatnonzero(object_ap >= object_ap.max() - 1e-12)[0])
    curve = np.stack([distinct, object_ap], axis=1)
    return ThresholdChoice(short_number_between(below[best], distinct[best]), float(object_ap[best]), curve)


def _precision_of_heads(level: np.ndarray, crowd_level: np.ndarray, objects: int) -> np.ndarray:
    """Return an image's score (N + 1,) float64 if its first 0, 1, ..., N predictions are kept.

    level, crowd_level: (N,) of the predictions by descending score, see `Hits`.
    """
    number = np.arange(len(IOU_THRESHOLDS))
    is_hit = level[:, None] > number
    is_left_out = ~is_hit & (crowd_level[:, None] > number)
    nothing = np.zeros((1, len(number)))
    hits = np.concatenate([nothing, np.cumsum(is_hit, axis=0)])
    left_out = np.concatenate([nothing, np.cumsum(is_left_out, axis=0)])
    counted = np.arange(len(level) + 1)[:, None] - left_out
    union = counted + objects - hits
    return np.divide(hits, union, out=np.ones_like(hits), where=union > 0).mean(axis=1)


def short_number_between(low: float, high: float) -> float:
    """Return a number with few digits in (low, high], near the middle, for readable thresholds."""
    low, high = float(low), float(high)
    middle = (low + high) / 2
    for digits in range(2, 17):
        number = round(middle, digits)
        if low < number <= high:
            return number
    return high


# Scores as training reports them: COCO AP of all predictions, object AP after score threshold and overlaps.

COCO_KEYS = [f"coco_{kind}_{name}" for kind in ("bbox", "segm") for name in ("ap", "ap50", "ap75")]


def evaluate_tuned(
    ground_truth: GroundTruth | CocoDataset,
    predictions: Iterable[Predictions],
    *,
    postprocess: Postprocess | None = None,
    score_threshold: float | None = None,
    max_detections: int = ALL,
    group_by: str | None = None,
    coco: bool = True,
) -> tuple[dict[str, Any], Postprocess]:
    """Compute COCO AP of all predictions, and object AP of those that the postprocess keeps.

    score_threshold: None chooses the one with the highest object AP on these images. postprocess: further settings; its
    score threshold is replaced.

    Returns the metrics of `detseg.evaluation.evaluate.evaluate` with the additional keys `score_threshold` and
    `predictions_above_floor` (number before the postprocess), and the postprocess that was applied.
    """
    truth = as_ground_truth(ground_truth)
    aligned = align(truth, predictions)
    settings = dataclasses.replace(postprocess or Postprocess(), resolve_overlaps=True)
    if not settings.classes:
        settings = dataclasses.replace(settings, classes=tuple(truth.class_names))
    has_masks = all(image.rles is not None for image in aligned)
    if score_threshold is None:
        chosen = choose_score_threshold(truth, aligned, postprocess=settings).threshold if has_masks else 0.0
    else:
        chosen = float(score_threshold)
    settings = dataclasses.replace(settings, score_threshold=chosen)

    processed = [settings.apply(image) for image in aligned]
    metrics = metrics_of(truth, processed, count_all(truth, processed), group_by=group_by, coco=False)
    if coco:
        raw = metrics_of(truth, aligned, None, max_detections=max_detections)
        metrics.update({key: raw[key] for key in COCO_KEYS})
        for name, scores in metrics["per_class"].items():
            scores.update({key: raw["per_class"][name][key] for key in COCO_KEYS})
    metrics["coco_max_detections"] = int(max_detections)
    metrics["score_threshold"] = settings.score_threshold
    metrics["predictions_above_floor"] = sum(len(image) for image in aligned)
    return metrics, settings
