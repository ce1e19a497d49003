"""The class of a whole image, for images that hold one kind of cell."""

from __future__ import annotations

import numpy as np

from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.boxes import box_area


def image_class(predictions: Predictions, by: str = "score") -> int:
    """Return the class with the largest sum of "score", of "area" x score, or "count"; the lowest class of a tie.

    There must be at least one prediction.
    """
    votes = np.ones(len(predictions)) if by == "count" else predictions.scores.astype(np.float64)
    if by == "area":
        has_masks = predictions.rles is not None
        votes = votes * (rle_codec.area(predictions.rles) if has_masks else box_area(predictions.boxes))
    return int(np.argmax(np.bincount(predictions.classes, votes)))
