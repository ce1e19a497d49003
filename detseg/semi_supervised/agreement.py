"""How far several members (models, folds, views) agree on an object: the IoU of what each has found of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detseg.errors import DataError
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.overlaps import shared_pixels


def agreement_with(members: Sequence[Predictions], predictions: Predictions) -> np.ndarray:
    """Return the mean over members of the largest IoU (N,) float64 of each object with one of theirs of its class.

    A member that has not found it, or calls it another class, counts 0. members: one or more, of the same image.
    Time and memory grow with the objects' pixels and the pairs that meet.

    Raises DataError where one has no masks.
    """
    total = np.zeros(len(predictions))
    masks = _runs(predictions)
    for member in members:
        pairs = shared_pixels(masks, _runs(member))
        pairs = pairs.select(predictions.classes[pairs.first] == member.classes[pairs.second])
        best = np.zeros(len(predictions))
        np.maximum.at(best, pairs.first, pairs.iou)
        total += best
    return total / len(members)


def _runs(predictions: Predictions) -> rle_codec.Runs:
    if predictions.rles is None and len(predictions):
        raise DataError(
            f"predictions of image {predictions.file_name or predictions.image_id} are boxes without masks: the "
            "agreement of members is that of their masks"
        )
    return rle_codec.read_runs(predictions.rles or [])
