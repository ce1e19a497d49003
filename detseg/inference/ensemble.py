"""Several predictors, of any architectures, as one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from detseg.errors import ConfigError, DataError
from detseg.fusion.options import check_weights
from detseg.inference.combined import CombinedDetector, Member
from detseg.inference.predictor import Predictor
from detseg.inference.views import TestTimeAugmentation


def combine(
    predictors: Sequence[Predictor],
    *,
    settings: TestTimeAugmentation | None = None,
    weights: Sequence[float] = (),
    boxes_of: Collection[int] = (),
    masks_of: Collection[int] = (),
) -> Predictor:
    """Return a predictor that puts models, and the views of every one, together; with one predictor, its views alone.

    Classes, postprocess and what else is said about the answers are the first predictor's.

    Args:
        predictors: of the same classes.
        settings: views, mode and fusion; None takes those of the first predictor.
        weights: one a predictor, of its boxes and masks; empty for 1 each.
        boxes_of, masks_of: positions of the predictors that give boxes, and masks; empty for all.

    Raises:
        ConfigError: other classes, other numbers of weights, positions that do not exist, no boxes or no masks.
    """
    first = predictors[0]
    settings = settings or first.tta
    for number, predictor in enumerate(predictors):
        if predictor.classes != first.classes:
            raise ConfigError(
                f"the first model finds {', '.join(first.classes)}, model {number + 1} "
                f"{', '.join(predictor.classes)}; combine models of the same classes in the same order"
            )
    if len(predictors) == 1 and settings.changes_nothing:
        return first.with_detector(first.image_model)
    given = _weights(weights, len(predictors))
    members = [
        Member(
            predictor.image_model,
            weight=given[number],
            gives_boxes=_has_role(number, boxes_of, len(predictors)),
            gives_masks=_has_role(number, masks_of, len(predictors)),
        )
        for number, predictor in enumerate(predictors)
    ]
    return first.with_detector(CombinedDetector(members, settings), _provenance(predictors, members))


def _weights(weights: Sequence[float], count: int) -> Sequence[float]:
    if not weights:
        return [1.0] * count
    if len(weights) != count:
        raise ConfigError(f"{len(weights)} weights were given for {count} models; give one a model")
    try:
        return check_weights(weights, "the models")
    except DataError as error:
        raise ConfigError(str(error)) from None


def _has_role(number: int, chosen: Collection[int], count: int) -> bool:
    unknown = [position for position in chosen if not 0 <= position < count]
    if unknown:
        raise ConfigError(f"there is no model {unknown[0]}; they are numbered from 0 to {count - 1}")
    return not chosen or number in chosen


def _provenance(predictors: Sequence[Predictor], members: Sequence[Member]) -> dict[str, Any]:
    """What the answers say about the models; of one model nothing new."""
    if len(predictors) == 1:
        return {}
    about = [
        {**predictor.provenance, "weight": member.weight, "boxes": member.gives_boxes, "masks": member.gives_masks}
        for predictor, member in zip(predictors, members, strict=True)
    ]
    return {"models": about}
