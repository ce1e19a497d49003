"""Box fusion by the package ensemble-boxes, the reference implementation of weighted boxes fusion.

For comparison only. detseg's own methods give the same results and are the default: they also return which detections
were fused, which masks need, their time is not quadratic in the number of boxes, and they import nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detseg.errors import DataError
from detseg.fusion.options import FusionOptions
from detseg.structures import Predictions
from detseg.structures.boxes import clip_boxes


def fuse_boxes(members: Sequence[Predictions], options: FusionOptions, weights: np.ndarray) -> Predictions:
    """Fuse members without masks. FusionOptions has refused the options that the package lacks.

    Returns boxes by descending score. Raises DataError for members with masks, or if the package is not installed.
    """
    first = members[0]
    if any(member.rles is not None and len(member) for member in members):
        raise DataError(
            f"{options.source}: the package ensemble-boxes does not return which detections were fused, which masks "
            "need; use backend: detseg, which gives the same boxes and scores"
        )
    try:
        import ensemble_boxes
    except ImportError:
        raise DataError(
            f"{options.source}: backend ensemble_boxes needs the package ensemble-boxes (pip install ensemble-boxes), "
            "or use backend: detseg, which gives the same result"
        ) from None
    size = np.array([first.width, first.height] * 2, dtype=np.float64)
    columns: list[list[np.ndarray]] = [[], [], []]  # boxes in fractions of the image, scores, classes of each member
    for member in members:
        boxes = clip_boxes(member.boxes, first.height, first.width)
        keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        keep &= member.scores >= options.values("min_score", member.classes)
        for column, values in zip(
            columns, (boxes / size, member.scores.astype(np.float64), member.classes), strict=True
        ):
            column.append(values[keep])
    place = first.image_id, first.file_name, first.height, first.width
    if not any(map(len, columns[1])):
        return Predictions.empty(*place, masks=False)
    threshold = float(options.threshold)
    if options.method == "wbf":
        boxes, scores, classes = ensemble_boxes.weighted_boxes_fusion(
            *columns, weights=weights, iou_thr=threshold, conf_type=options.score_rule
        )
    else:
        # The package divides scores by the sum of weights; here the largest weight leaves scores unchanged.
        columns[1] = [score * (weight / weights.max()) for score, weight in zip(columns[1], weights, strict=True)]
        boxes, scores, classes = ensemble_boxes.nms(*columns, iou_thr=threshold)
    order = np.argsort(-scores, kind="stable")
    return Predictions(*place, boxes[order] * size, np.clip(scores[order], 0, 1), classes[order])
