"""Fuse the predictions of several members about one image into one list."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from detseg.errors import DataError
from detseg.fusion.options import FusionOptions, check_weights
from detseg.structures import Predictions
from detseg.structures.boxes import box_iou


def fuse(members: Sequence[Predictions], options: FusionOptions, weights: Sequence[float] | None = None) -> Predictions:
    """Fuse what the members say about one image; at least one member.

    weights: one a member; None takes `options.weights`, and 1 each where these are empty.

    Returns predictions by descending score. Raises DataError where members are of different images or sizes, or scores
    are not finite.
    """
    weights = _weights(members, options, weights)
    boxes = np.concatenate([member.boxes for member in members])
    scores = np.concatenate(
        [member.scores * np.float32(weight) for member, weight in zip(members, weights, strict=True)]
    )
    classes = np.concatenate([member.classes for member in members])
    order = np.argsort(-scores, kind="stable")
    boxes, scores, classes = boxes[order], scores[order], classes[order]
    overlaps = box_iou(boxes, boxes)
    if not options.across_classes:
        overlaps *= classes[:, None] == classes[None]
    leader = np.full(len(scores), -1)
    for index in range(len(scores)):
        if leader[index] < 0:
            free = (leader < 0) & (overlaps[index] > options.values("threshold", classes[index : index + 1]))
            leader[free] = index
            leader[index] = index
    kept = np.flatnonzero(leader == np.arange(len(scores)))
    if options.method == "wbf":
        for index in kept:
            group = leader == index
            boxes[index] = np.average(boxes[group], axis=0, weights=np.maximum(scores[group], 1e-12))
    merged = _joined(members)
    result = merged.select(order[kept])
    result.boxes, result.scores = boxes[kept], np.clip(scores[kept] / max(weights), 0, 1)
    return result


def _joined(members: Sequence[Predictions]) -> Predictions:
    first = members[0]
    has_masks = all(member.rles is not None or not len(member) for member in members)
    return dataclasses.replace(
        first,
        boxes=np.concatenate([member.boxes for member in members]),
        scores=np.concatenate([member.scores for member in members]),
        classes=np.concatenate([member.classes for member in members]),
        rles=[rle for member in members for rle in member.rles or ()] if has_masks else None,
        soft_masks=None,
    )


def _weights(
    members: Sequence[Predictions], options: FusionOptions, weights: Sequence[float] | None
) -> tuple[float, ...]:
    if not members:
        raise DataError("there is nothing to fuse: give the predictions of at least one member")
    chosen = check_weights(options.weights if weights is None else weights, options.source) or (1.0,) * len(members)
    if len(chosen) != len(members):
        raise DataError(f"{options.source}: {len(chosen)} weights for {len(members)} members; give one a member")
    return chosen
