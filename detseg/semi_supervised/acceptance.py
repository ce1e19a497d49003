"""Whether a round helped: out-of-fold scores on the labelled images, and the interval of their difference.

Both sides are scored in the same way: every image by models that have not seen it, with the score threshold that is
best on the other folds. The interval is from a paired bootstrap over images (`evaluation.intervals`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_file import read_predictions
from detseg.errors import DataError
from detseg.evaluation.evaluate import align, count_all
from detseg.evaluation.ground_truth import GroundTruth
from detseg.evaluation.intervals import (
    ALL,
    NAMES,
    differences_with_intervals,
    image_scores,
    scores_with_intervals,
)
from detseg.evaluation.object_ap import ObjectCounts
from detseg.fusion.postprocess import Postprocess
from detseg.structures import Predictions
from detseg.tuning.thresholds import choose_score_threshold


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold results on the labelled images: counts per image, in the order of the data set, and class names."""

    counts: list[ObjectCounts]
    class_names: list[str]

    def scores(self, seed: int = 0) -> dict[str, Any]:
        """Return every score with its interval, for all objects and each class: name -> [value, low, high]."""
        return scores_with_intervals(self.counts, self.class_names, seed)


def score_out_of_fold(path: Path, dataset: CocoDataset, folds: np.ndarray) -> OutOfFold:
    """Read predictions of all labelled images and count hits and misses, with thresholds chosen on the other folds.

    folds: (I,) of the images. Raises DataError if an image has no predictions, or these have no masks.
    """
    truth = GroundTruth.from_coco(dataset)
    predictions = read_predictions(path, dataset)
    known = list(predictions)
    if len(known) < len(dataset):
        raise DataError(f"{path}: has predictions of {len(known)} of the {len(dataset)} labelled images")
    aligned = align(truth, known)
    processed: list[Predictions | None] = [None] * len(aligned)
    for fold in np.unique(folds):
        others, own = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        part = GroundTruth(truth.class_names, [truth.images[index] for index in others])
        threshold = choose_score_threshold(part, [aligned[index] for index in others]).threshold
        settings = Postprocess(classes=tuple(truth.class_names), score_threshold=threshold)
        for index in own.tolist():
            processed[index] = settings.apply(aligned[index])
    counts = count_all(truth, [one for one in processed if one is not None])
    if counts is None:
        raise DataError(f"{path}: its predictions have no masks; rounds are accepted by mask scores")
    return OutOfFold(counts, list(truth.class_names))


@dataclass(frozen=True)
class Decision:
    """gain: [value, low, high] of `metric`, or None if undefined. accepted: whether the round helped."""

    metric: str
    before: float | None
    after: float | None
    gain: list[float] | None
    least_gain: float
    accepted: bool
    of_classes: dict[str, list[float | None]]

    def __str__(self) -> str:
        if self.gain is None:
            return f"{self.metric} is not defined on these images: the teacher is kept"
        value, low, high = self.gain
        said = f"{self.metric} {self.before:.4f} -> {self.after:.4f}, {value:+.4f} ({low:+.4f} to {high:+.4f})"
        if self.accepted:
            return f"{said}: accepted"
        return f"{said}: not significant, so the teacher is kept"


def decide(before: OutOfFold, after: OutOfFold, metric: str, least_gain: float = 0.0, seed: int = 0) -> Decision:
    """Accept a round if the lower end of the paired interval of its gain is above `least_gain`."""
    differences = differences_with_intervals(before.counts, after.counts, before.class_names, seed)
    gains = {name: scores[metric] for name, scores in differences.items()}
    gain = gains.pop(ALL)
    known = None if None in gain else gain
    first, second = (image_scores(side.counts).values[NAMES.index(metric)].item() for side in (before, after))
    first, second = (None if np.isnan(value) else value for value in (first, second))
    accepted = known is not None and known[1] > least_gain
    return Decision(metric, first, second, known, least_gain, accepted, gains)
