"""Fuse the predictions of several members about one image into one list. No model, no PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.fusion.masks import attach_masks
from detseg.fusion.options import FusionOptions, check_weights
from detseg.fusion.pairs import OverlapMeasure
from detseg.fusion.pool import (
    Groups,
    Pool,
    apply_image_class,
    best_of_members,
    check_members,
    found_by,
    gather,
    group_classes,
    group_scores,
)
from detseg.fusion.soft_masks import rescore
from detseg.fusion.suppression import decay_scores, group_boxes, join_best, keep_best, mean_boxes
from detseg.structures import Predictions
from detseg.structures.overlaps import BitMasks, Pairs


def fuse(members: Sequence[Predictions], options: FusionOptions, weights: Sequence[float] | None = None) -> Predictions:
    """Fuse what the members say about one image; at least one member, all of one image id and size.

    weights: one a member; None takes `options.weights`, and 1 each where these are empty too.

    Returns predictions by descending score, with masks where any member has them. nms and soft_nms keep the box of the
    best detection, wbf takes the mean box; a box is widened where a mask put together from several reaches out of it.
    Time and memory grow with the objects' pixels and the pairs of detections that meet. The order of the members does
    not matter, unless detections of one box have equal scores and different masks.

    Raises DataError where members are of different images or sizes, or have impossible scores or boxes.
    """
    check_members(members)
    given = np.array(_weights(members, options, weights))
    if options.mask_quality:
        members = [member if member.rles is None else rescore(member, options.mask_quality) for member in members]
    if options.backend == "ensemble_boxes":
        from detseg.fusion.ensemble_boxes_backend import fuse_boxes

        fused = fuse_boxes(members, options, given)
    else:
        fused = _fuse(members, options, given)
    fused = apply_image_class(fused.select(np.argsort(-fused.scores, kind="stable")), options)
    pixel_size = next((member.pixel_size for member in members if member.pixel_size is not None), None)
    return dataclasses.replace(fused, provenance=_provenance(members, options), pixel_size=pixel_size)


def _fuse(members: Sequence[Predictions], options: FusionOptions, weights: np.ndarray) -> Predictions:
    pool = gather(members, weights, options)
    masks = BitMasks(pool.runs) if options.overlap != "box_iou" else None
    measure = OverlapMeasure(options.overlap, pool.boxes, masks, pool.mask_of)
    if options.method == "soft_nms":
        scores = _decayed(pool, measure, options) / weights.max()
        groups = Groups.from_leaders(np.arange(len(pool)))
        boxes = pool.boxes
        keep = scores >= options.min_decayed_score
    else:
        groups = Groups.from_leaders(_leaders(pool, measure, options))
        if options.one_per_member:
            pool, groups = best_of_members(pool, groups)
        scores = group_scores(pool, groups, weights, options.score_rule, options.agreement)
        members_each = found_by(pool, groups, weights)[0]
        keep = members_each >= options.values("min_members", pool.classes[groups.leaders])
        if options.method == "wbf":
            boxes = mean_boxes(pool.boxes, pool.weighted_scores, groups.number, len(groups))
        else:
            boxes = pool.boxes[groups.leaders]
    first = members[0]
    classes = group_classes(pool, groups, options.cluster_class)
    fused = Predictions(first.image_id, first.file_name, first.height, first.width, boxes, scores, classes)
    if not _have_masks(members):
        return fused.select(keep)
    return attach_masks(fused, pool, groups, keep, options)


def _have_masks(members: Sequence[Predictions]) -> bool:
    """Whether the answer has masks: any detection has one; without any detection, any member could have."""
    speaking = [member for member in members if len(member)] or members
    return any(member.rles is not None for member in speaking)


def _leaders(pool: Pool, measure: OverlapMeasure, options: FusionOptions) -> np.ndarray:
    """Return for every detection (N,) int64 the best one of its group, for nms and wbf.

    wbf on boxes compares with the mean box of the group, as its authors do. A mean mask would have to be made anew for
    every detection, and hardly moves: on masks, a detection joins the best one of a group, as in nms.
    """
    kinds = np.zeros(len(pool), dtype=np.int64) if options.across_classes else pool.classes
    thresholds = options.values("threshold", pool.classes)
    if options.method == "wbf" and not measure.by_masks:
        return group_boxes(pool.boxes, pool.weighted_scores, kinds, thresholds, over_smaller=measure.over_smaller)
    pairs = measure.near(kinds, thresholds)
    return join_best(pairs, measure, thresholds, keep_best(pairs, measure, thresholds))


def _decayed(pool: Pool, measure: OverlapMeasure, options: FusionOptions) -> np.ndarray:
    """Return the weighted scores (N,) float64 after soft-NMS."""
    kinds = np.zeros(len(pool), dtype=np.int64) if options.across_classes else pool.classes
    thresholds = options.values("threshold", pool.classes)

    def factor(pairs: Pairs, overlap: np.ndarray) -> np.ndarray:
        if options.decay == "gaussian":
            return np.exp(-(overlap**2) / options.sigma)
        return np.where(overlap > thresholds[pairs.first], 1 - overlap, 1.0)

    pairs = measure.near(kinds, np.zeros(len(pool)))
    overlap = measure(pairs)
    low = options.min_decayed_score * max(pool.weights.max(initial=0.0), 0.0)
    return decay_scores(pairs, overlap, pool.weighted_scores, factor, low)


def _provenance(members: Sequence[Predictions], options: FusionOptions) -> dict[str, Any]:
    """Return what all members have in common (their fold, for example), and how they were fused."""
    first = members[0].provenance
    shared = {
        key: value
        for key, value in first.items()
        if all(key in member.provenance and member.provenance[key] == value for member in members)
    }
    return {**shared, "fused": {"members": len(members), "method": options.method, "overlap": options.overlap}}


def _weights(
    members: Sequence[Predictions], options: FusionOptions, weights: Sequence[float] | None
) -> tuple[float, ...]:
    chosen = check_weights(options.weights if weights is None else weights, options.source) or (1.0,) * len(members)
    if len(chosen) != len(members):
        raise DataError(f"{options.source}: {len(chosen)} weights for {len(members)} members; give one a member")
    return chosen
