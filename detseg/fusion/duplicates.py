"""Non-maximum suppression by mask IoU among the predictions of one image and class, as the postprocess does it."""

from __future__ import annotations

import numpy as np

from detseg.fusion.bit_masks import BitMasks, read_column_runs
from detseg.fusion.overlap_measure import OverlapMeasure, Pairs
from detseg.fusion.overlaps import score_order
from detseg.fusion.suppression import keep_best
from detseg.structures import Predictions


def suppress_duplicates(predictions: Predictions, thresholds: np.ndarray) -> Predictions:
    """Drop predictions whose mask IoU with a better one of their class is greater than thresholds (N,) float64.

    The threshold is that of the better one, which must itself be kept; infinity is none. The order stays.
    """
    if not len(predictions) or np.isinf(thresholds).all():
        return predictions
    order = score_order(predictions.scores)
    measure = mask_measure(predictions.select(order))
    limits = thresholds[order]
    pairs = measure.near(predictions.classes[order], limits)
    kept = np.empty(len(order), dtype=bool)
    kept[order] = keep_best(pairs, measure, limits)
    return predictions.select(kept)


def overlapping_pairs(predictions: Predictions) -> tuple[Pairs, np.ndarray]:
    """Return all pairs of one class whose masks share pixels, first < second, and their IoUs (P,) float64."""
    measure = mask_measure(predictions)
    pairs = measure.near(predictions.classes, np.zeros(len(predictions)))
    ious = measure(pairs)
    return pairs.select(ious > 0), ious[ious > 0]


def mask_measure(predictions: Predictions) -> OverlapMeasure:
    """Return the IoUs of the masks of one image's predictions."""
    masks = BitMasks(read_column_runs(predictions.rles))
    return OverlapMeasure("mask_iou", predictions.boxes, masks, np.arange(len(predictions)))
