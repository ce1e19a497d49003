"""The class of an image by vote, where images hold one kind of cell."""

from __future__ import annotations

import dataclasses

import numpy as np

from detseg.fusion.options import FusionOptions
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.boxes import box_area


def apply_image_class(predictions: Predictions, options: FusionOptions) -> Predictions:
    """Drop the detections of all classes but the image's, or give them that class, or leave them (`image_class`)."""
    if options.image_class == "keep" or not len(predictions):
        return predictions
    chosen = vote(predictions, options.image_class_by)
    if options.image_class == "drop":
        return predictions.select(predictions.classes == chosen)
    return dataclasses.replace(predictions, classes=np.full(len(predictions), chosen, dtype=np.int64))


def vote(predictions: Predictions, by: str) -> int:
    """Return the class with the largest sum of "score", of "area" x score, or "count"; of equal ones, the lowest."""
    if by == "count":
        votes = np.ones(len(predictions))
    else:
        votes = predictions.scores.astype(np.float64)
    if by == "area":
        has_masks = predictions.rles is not None
        votes = votes * (rle_codec.area(predictions.rles) if has_masks else box_area(predictions.boxes))
    return int(np.argmax(np.bincount(predictions.classes, votes)))
