"""The score threshold at which object AP is highest.

After overlaps are resolved by score, what a prediction looks like depends on predictions of higher score alone
(`detseg.fusion.overlaps`), so one resolution serves all thresholds: the predictions at a threshold are a head of each
image's list by score. Their masks are disjoint, so no object is hit twice, and whether a prediction is a hit does not
depend on the threshold either. Object AP at every distinct score is then one cumulated sum, exact, without a grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from detseg.evaluation.evaluate import align
from detseg.evaluation.ground_truth import GroundTruth, ImageTruth, as_ground_truth
from detseg.evaluation.matching import IOU_THRESHOLDS, largest_cover, pair_ious
from detseg.fusion.overlaps import score_order
from detseg.fusion.postprocess import Postprocess
from detseg.structures import Predictions

if TYPE_CHECKING:
    from detseg.data.coco import CocoDataset

# Chosen where there is no prediction to choose from.
DEFAULT_THRESHOLD = 0.5


class ThresholdChoice(NamedTuple):
    """threshold: keep predictions with score >= it. object_ap: then. curve: (S, 2) float64, threshold and object AP.

    The curve falls from the highest score to the lowest; object_ap is None, and the curve empty, without any image.
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
    """Choose the one score threshold for all classes that maximizes object AP over all objects, overlaps resolved.

    postprocess: what else is done to the predictions (sizes, holes); its score threshold is ignored, and overlaps are
    resolved by score. The result is exact: applying the postprocess with the threshold and evaluating gives
    `object_ap`. Of thresholds equally good the highest is taken. The choice fits the images that it was made on; on few
    images report it for others.
    """
    truth, resolved = _resolve(ground_truth, predictions, postprocess)
    return _best(truth.images, resolved)


def choose_class_thresholds(
    ground_truth: GroundTruth | CocoDataset,
    predictions: Iterable[Predictions],
    *,
    postprocess: Postprocess | None = None,
) -> dict[str, ThresholdChoice]:
    """Choose a score threshold for every class by its own object AP; returns name -> choice.

    Every class is looked at alone, so overlaps between classes do not enter: a good start for a finer search, exact
    where classes do not overlap. A class without a prediction gets 0.5.
    """
    truth = as_ground_truth(ground_truth)
    aligned = align(truth, predictions)
    choices = {}
    for index, name in enumerate(truth.class_names):
        images = [_of_class(image, index) for image in truth.images]
        found = [image.select(image.classes == index) for image in aligned]
        # A class's AP averages over the images where it occurs; which these are may depend on the threshold.
        _, resolved = _resolve(truth, found, postprocess)
        choices[name] = _best(images, resolved, only_occurring=True)
    return choices


def _of_class(image: ImageTruth, class_index: int) -> ImageTruth:
    keep = image.crowd | (image.classes == class_index)
    indices = np.flatnonzero(keep)
    return dataclasses.replace(
        image, rles=[image.rles[i] for i in indices], classes=image.classes[indices], crowd=image.crowd[indices]
    )


def _resolve(
    ground_truth: GroundTruth | CocoDataset, predictions: Iterable[Predictions], postprocess: Postprocess | None
) -> tuple[GroundTruth, list[Predictions]]:
    """Align the predictions with the truth and apply everything but the score threshold."""
    truth = as_ground_truth(ground_truth)
    settings = dataclasses.replace(
        (postprocess or Postprocess()).without_score_threshold(), resolve_overlaps=True, overlap_policy="score"
    )
    return truth, [settings.apply(image) for image in align(truth, predictions)]


def _best(
    truths: Sequence[ImageTruth], resolved: Sequence[Predictions], only_occurring: bool = False
) -> ThresholdChoice:
    """Return the best threshold of predictions without overlaps; an image's score is a step function of the threshold.

    only_occurring: leave out images in which neither an object nor a prediction above the threshold is.
    """
    scores, gains, enters = [], [], []
    start_sum, start_images = 0.0, 0
    for truth, image in zip(truths, resolved, strict=True):
        order = score_order(image.scores)
        precision = _precision_of_heads(truth, image, order)
        empty = only_occurring and truth.num_objects == 0
        # Before its first prediction, an image without objects scores 1, or is not counted at all.
        start_sum += 0.0 if empty else precision[0]
        start_images += 0 if empty else 1
        gain, enter = np.diff(precision), np.zeros(len(order))
        if empty and len(order):
            gain[0], enter[0] = precision[1], 1
        scores.append(image.scores[order].astype(np.float64))
        gains.append(gain)
        enters.append(enter)
    if not truths:
        return ThresholdChoice(DEFAULT_THRESHOLD, None, np.zeros((0, 2)))
    return _best_of_steps(*(np.concatenate(part) for part in (scores, gains, enters)), start_sum, start_images)


def _best_of_steps(
    scores: np.ndarray, gains: np.ndarray, enters: np.ndarray, start_sum: float, start_images: int
) -> ThresholdChoice:
    """Cumulate the steps (S,) of all images by falling score; equal scores come in together."""
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
    # Sums in another order differ in the last digits: what is equal up to these is equally good.
    best = int(np.flatnonzero(object_ap >= object_ap.max() - 1e-12)[0])
    curve = np.stack([distinct, object_ap], axis=1)
    return ThresholdChoice(_short_number_between(below[best], distinct[best]), float(object_ap[best]), curve)


def _precision_of_heads(truth: ImageTruth, image: Predictions, order: np.ndarray) -> np.ndarray:
    """Return the image's score (N + 1,) float64 when its 0, 1, ..., N first predictions by `order` are kept."""
    crowd = truth.crowd
    objects = [rle for rle, is_crowd in zip(truth.rles, crowd, strict=True) if not is_crowd]
    crowds = [rle for rle, is_crowd in zip(truth.rles, crowd, strict=True) if is_crowd]
    pairs = pair_ious(image.rles, objects, above=IOU_THRESHOLDS[0])
    best_iou = np.zeros(len(image))
    np.maximum.at(best_iou, pairs.prediction, pairs.iou)
    is_hit = best_iou[order, None] > IOU_THRESHOLDS
    is_left_out = ~is_hit & (largest_cover(image.rles, crowds)[order, None] > IOU_THRESHOLDS)
    hits = np.concatenate([np.zeros((1, len(IOU_THRESHOLDS))), np.cumsum(is_hit, axis=0)])
    left_out = np.concatenate([np.zeros((1, len(IOU_THRESHOLDS))), np.cumsum(is_left_out, axis=0)])
    counted = np.arange(len(order) + 1)[:, None] - left_out
    union = counted + len(objects) - hits
    return np.divide(hits, union, out=np.ones_like(hits), where=union > 0).mean(axis=1)


def _short_number_between(low: float, high: float) -> float:
    """Return a number with few digits in (low, high], near the middle: thresholds are read by people."""
    low, high = float(low), float(high)
    middle = (low + high) / 2
    for digits in range(2, 17):
        number = round(middle, digits)
        if low < number <= high:
            return number
    return high
