"""Uses of mask probabilities: mask thresholds, and scores multiplied by the certainty of the mask."""

from __future__ import annotations

import dataclasses

import numpy as np

from detseg.errors import DataError
from detseg.fusion.overlaps import replace_masks
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import move_window, soft_mask_windows


def threshold_masks(predictions: Predictions, thresholds: np.ndarray) -> Predictions:
    """Recompute masks from soft masks: the pixels with probability >= thresholds (N,) float64; infinity keeps a mask.

    A mask that changes gets its tight box; one without pixels is kept, empty. Raises DataError without soft masks.
    """
    chosen = np.flatnonzero(np.isfinite(thresholds))
    if not len(chosen):
        return predictions
    soft_masks = _soft_masks_of(predictions, "a threshold for mask probabilities")
    windows = soft_mask_windows(predictions.boxes, predictions.height, predictions.width).tolist()
    crops = [(soft_masks[index] >= thresholds[index] * 255, *windows[index][:2]) for index in chosen]
    made = rle_codec.encode_crops(crops, predictions.height, predictions.width)
    changed = {}
    for index, rle in zip(chosen.tolist(), made, strict=True):
        before = predictions.rles[index]["counts"]
        if rle["counts"] != (before.encode("ascii") if isinstance(before, str) else before):
            changed[index] = rle
    return replace_masks(predictions, changed) if changed else predictions


def mask_quality(predictions: Predictions) -> np.ndarray:
    """Return the mean probability (N,) float64 over the pixels of every mask, 0 for an empty one.

    It measures how certain a model is of the outline ("maskness", Wang et al., SOLOv2, NeurIPS 2020). Pixels outside
    the soft mask have probability 0. Raises DataError without soft masks.
    """
    if not len(predictions):
        return np.zeros(0)
    soft_masks = _soft_masks_of(predictions, "rescoring by mask probability")
    windows = soft_mask_windows(predictions.boxes, predictions.height, predictions.width).tolist()
    quality = np.zeros(len(predictions))
    for index, crop in enumerate(rle_codec.decode_crops(predictions.rles)):
        if crop.mask.size:
            quality[index] = move_window(soft_masks[index], windows[index], crop.box)[crop.mask].mean() / 255
    return quality


def rescore(predictions: Predictions, power: float) -> Predictions:
    """Multiply scores by mask quality to a power, which never raises them; 0 changes nothing. The order is kept."""
    if power == 0 or not len(predictions):
        return predictions
    scores = predictions.scores * mask_quality(predictions) ** power
    return dataclasses.replace(predictions, scores=scores)


def _soft_masks_of(predictions: Predictions, purpose: str) -> list[np.ndarray]:
    if predictions.rles is None or predictions.soft_masks is None:
        raise DataError(
            f"predictions of image {predictions.file_name or predictions.image_id} have no mask probabilities, which "
            f"{purpose} needs; make them with predict --soft-masks"
        )
    return predictions.soft_masks
