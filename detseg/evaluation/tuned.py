"""Scores as training reports them: COCO AP of everything, object AP after a score threshold and without overlaps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from detseg.evaluation.coco_ap import MAX_DETECTIONS
from detseg.evaluation.evaluate import align, count_all, metrics_of
from detseg.evaluation.ground_truth import GroundTruth, as_ground_truth
from detseg.fusion.postprocess import Postprocess
from detseg.fusion.thresholds import choose_score_threshold
from detseg.structures import Predictions

if TYPE_CHECKING:
    from detseg.data.coco import CocoDataset

COCO_KEYS = [f"coco_{kind}_{name}" for kind in ("bbox", "segm") for name in ("ap", "ap50", "ap75")]


def evaluate_tuned(
    ground_truth: GroundTruth | CocoDataset,
    predictions: Iterable[Predictions],
    *,
    postprocess: Postprocess | None = None,
    score_threshold: float | None = None,
    max_detections: int = MAX_DETECTIONS,
    group_by: str | None = None,
    coco: bool = True,
) -> tuple[dict[str, Any], Postprocess]:
    """Score everything a model found for COCO AP, and what is left after the postprocess for object AP.

    score_threshold: None chooses the one of highest object AP on these very images; else it is used as it is.
    postprocess: further settings; its score threshold gives way to the one chosen or given.

    Returns the metrics of `detseg.evaluation.evaluate.evaluate` with the further keys `score_threshold` and
    `predictions_above_floor` (how many there were before the postprocess), and the postprocess that was applied.
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
