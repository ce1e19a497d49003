"""Agreement of several members (models, folds, views) on an object: the IoU with what each has found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detseg.errors import DataError
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.overlaps import shared_pixels


def agreement_with(members: Sequence[Predictions], predictions: Predictions) -> np.ndarray:
    """Return for each object (N,) float64 the mean over members of its largest IoU with their objects of its class.

    A member that has not found the object, or gives it another class, counts as 0. members: one or more, for the same
    image. Time and memory grow with the objects' pixels and the number of overlapping pairs.

    Raises DataError if one has no masks.
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
            f"predictions of image {predictions.file_name or predictions.image_id} have no masks, which the agreement "
            "of members needs"
        )
    return rle_codec.read_runs(predictions.rles or [])
