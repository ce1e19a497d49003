"""Combine several predictors, of any architectures, into one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from detseg.errors import ConfigError, DataError
from detseg.fusion.options import check_weights
from detseg.inference.detector import Detector
from detseg.inference.predictor import Predictor
from detseg.inference.tta import TestTimeAugmentation
from detseg.inference.views import View


def combine(
    predictors: Sequence[Predictor],
    *,
    settings: TestTimeAugmentation | None = None,
    weights: Sequence[float] = (),
    boxes_of: Collection[int] = (),
    masks_of: Collection[int] = (),
) -> Predictor:
    """Return a predictor that combines models of any architectures and their views; for one model, its views.

    Classes, postprocess and provenance are those of the first predictor.

    Args:
        predictors: with the same class names; the first one gives their order in the result.
        settings: views, mode and fusion; None takes those of the first predictor.
        weights: one per predictor, for its boxes and masks; empty for 1 each.
        boxes_of, masks_of: indices of the predictors that provide boxes, and masks; empty for all.

    Raises:
        ConfigError: different classes, a wrong number of weights, invalid indices, no boxes or no masks, or a mode that
            the models do not support.
    """
    first, count = predictors[0], len(predictors)
    weights = _checked_weights(predictors, weights, [*boxes_of, *masks_of])
    models = [
        dataclasses.replace(
            one.detector.models[0],
            weight=weight,
            gives_boxes=not boxes_of or number in boxes_of,
            gives_masks=not masks_of or number in masks_of,
            places=None if one.classes == first.classes else np.array(list(map(first.classes.index, one.classes))),
        )
        for number, (one, weight) in enumerate(zip(predictors, weights, strict=True))
    ]
    combined = copy.copy(first)
    combined.detector = Detector(models, settings or first.tta)
    combined.trained_images = tuple(images for one in predictors for images in one.trained_images)
    if count > 1:
        roles = [
            {**one.provenance, "weight": model.weight, "boxes": model.gives_boxes, "masks": model.gives_masks}
            for one, model in zip(predictors, models, strict=True)
        ]
        combined.provenance = {**first.provenance, "models": roles}
    return combined


def _checked_weights(
    predictors: Sequence[Predictor], weights: Sequence[float], positions: Sequence[int]
) -> Sequence[float]:
    """Return one weight per predictor. Raises ConfigError if the predictors cannot be combined; see `combine`."""
    first, count = predictors[0], len(predictors)
    for number, predictor in enumerate(predictors, start=1):
        if sorted(predictor.classes) != sorted(first.classes):
            raise ConfigError(
                f"the first model has the classes {', '.join(first.classes)}, model {number} "
                f"{', '.join(predictor.classes)}; combine models of the same classes"
            )
    for position in positions:
        if not 0 <= position < count:
            raise ConfigError(f"there is no model {position}; they are numbered from 0 to {count - 1}")
    weights = weights or [1.0] * count
    if len(weights) != count:
        raise ConfigError(f"{len(weights)} weights were given for {count} models; give one per model")
    try:
        return check_weights(weights, "the models")
    except DataError as error:
        raise ConfigError(str(error)) from None


def with_views(predictor: Predictor, views: Sequence[View]) -> Predictor:
    """Return a predictor of one model with these views; if fewer remain than must agree, all must agree."""
    fusion = predictor.tta.fusion.of_members(len(views))
    return combine([predictor], settings=predictor.tta.replace(views=tuple(views), fusion=fusion))
