"""Box methods by the package ensemble-boxes, the authors' own weighted boxes fusion.

detseg's own methods give the same and are the default: they know which detections became one box, which masks need, do
not grow with the square of the number of boxes, and load nothing. This is here to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detseg.errors import DataError
from detseg.fusion.options import FusionOptions
from detseg.structures import Predictions
from detseg.structures.boxes import clip_boxes


def fuse_boxes(members: Sequence[Predictions], options: FusionOptions, weights: np.ndarray) -> Predictions:
    """Fuse members that are boxes alone; what options cannot be followed is refused by FusionOptions.

    Returns boxes by descending score. Raises DataError for members with masks, or where the package is missing.
    """
    first = members[0]
    if any(member.rles is not None and len(member) for member in members):
        raise DataError(
            f"{options.source}: the package ensemble-boxes does not tell which detections became one, which masks "
            "need; use backend: detseg, which gives the same boxes and scores"
        )
    nothing = Predictions.empty(first.image_id, first.file_name, first.height, first.width, masks=False)
    chosen = [member.select(_usable(member, options)) for member in members]
    if not any(map(len, chosen)):
        return nothing
    size = np.array([first.width, first.height] * 2, dtype=np.float64)
    boxes = [clip_boxes(member.boxes, first.height, first.width) / size for member in chosen]
    scores = [member.scores.astype(np.float64) for member in chosen]
    classes = [member.classes for member in chosen]
    boxes_found, scores_found, classes_found = _call(boxes, scores, classes, weights, options)
    order = np.argsort(-scores_found, kind="stable")
    found = np.clip(scores_found[order], 0, 1)
    return Predictions(
        first.image_id,
        first.file_name,
        first.height,
        first.width,
        boxes_found[order] * size,
        found,
        classes_found[order],
    )


def _usable(member: Predictions, options: FusionOptions) -> np.ndarray:
    boxes = clip_boxes(member.boxes, member.height, member.width)
    solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return solid & (member.scores >= options.values("min_score", member.classes))


def _call(
    boxes: list[np.ndarray],
    scores: list[np.ndarray],
    classes: list[np.ndarray],
    weights: np.ndarray,
    options: FusionOptions,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        import ensemble_boxes
    except ImportError:
        raise DataError(
            f"{options.source}: backend ensemble_boxes needs the package ensemble-boxes (pip install ensemble-boxes); "
            "backend: detseg gives the same"
        ) from None
    threshold = float(options.threshold)
    if options.method == "wbf":
        return ensemble_boxes.weighted_boxes_fusion(
            boxes, scores, classes, weights=weights, iou_thr=threshold, conf_type=options.score_rule
        )
    # It divides scores by the sum of weights; here the largest weight leaves scores as they are.
    scaled = [score * (weight / weights.max()) for score, weight in zip(scores, weights, strict=True)]
    return ensemble_boxes.nms(boxes, scaled, classes, iou_thr=threshold)
