"""Scores as a function of the score threshold, for all objects and for every class, exact at every distinct score."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detseg.evaluation.curves import ScoreCurve, score_curve
from detseg.evaluation.ground_truth import GroundTruth
from detseg.evaluation.object_ap import IOU_THRESHOLDS
from detseg.fusion.postprocess import Postprocess
from detseg.structures import Predictions
from detseg.tuning.candidates import object_numbers
from detseg.tuning.thresholds import best_threshold, hits_without_threshold


class ClassCurves(NamedTuple):
    """name: the class, or "all". object_ap: (S, 2) float64, threshold and object AP by descending threshold.

    by_iou: IoU threshold (one of IOU_THRESHOLDS) -> precision and recall by score.
    """

    name: str
    object_ap: np.ndarray
    by_iou: dict[float, ScoreCurve]


def score_curves(
    truth: GroundTruth,
    aligned: Sequence[Predictions],
    postprocess: Postprocess | None = None,
    ious: Sequence[float] = (0.5, 0.75),
) -> list[ClassCurves]:
    """Return the curves over all objects and, if there are several classes, for each.

    aligned: from `detseg.evaluation.evaluate.align`, with masks. postprocess: further settings that are applied;
    overlaps are resolved by score. Each class is scored as if there were no predictions of others.
    """
    hits_of = hits_without_threshold(truth, aligned, postprocess)
    objects = object_numbers(truth.images, len(truth.class_names))
    classes = range(len(truth.class_names)) if len(truth.class_names) > 1 else ()
    curves = []
    for index in (None, *classes):
        hits, row = hits_of(index), 0 if index is None else 1 + index
        if index is not None:
            hits = dataclasses.replace(hits, level=hits.level_in_class)
        by_iou = {}
        for iou in ious:
            place = int(np.argmin(np.abs(IOU_THRESHOLDS - iou)))
            is_hit, left_out = hits.level > place, hits.crowd_level > place
            by_iou[iou] = score_curve(hits.scores, is_hit, int(objects[:, row].sum()), left_out)
        best = best_threshold(hits, objects[:, row], only_occurring=index is not None)
        curves.append(ClassCurves("all" if index is None else truth.class_names[index], best.curve, by_iou))
    return curves
