"""Fuse the predictions of several members for one image into one list. No model, no PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from detseg.errors import DataError
from detseg.fusion.detections import Clusters, Detections, check_members
from detseg.fusion.image_class import image_class
from detseg.fusion.masks import attach_masks
from detseg.fusion.options import FusionOptions, check_weights
from detseg.fusion.soft_masks import rescore
from detseg.fusion.suppression import OverlapMeasure, decay_scores, join_best, keep_best
from detseg.fusion.wbf import cluster_boxes
from detseg.structures import Predictions
from detseg.structures.overlaps import PackedMasks, Pairs
from detseg.structures.predictions import IN_TRAINING


def fuse(members: Sequence[Predictions], options: FusionOptions, weights: Sequence[float] | None = None) -> Predictions:
    """Fuse the predictions of at least one member for one image; all have the same image id and size.

    weights: one per member. None means `options.weights`, or 1 each if these are empty.

    Returns predictions by descending score, with masks if any member has them. nms and soft_nms keep the box of the
    best detection, wbf the mean box; a box is enlarged if a mask made from several detections extends beyond it. Time
    and memory grow with the objects' pixels and the number of overlapping pairs. The order of the members does not
    matter, unless detections with the same box have equal scores and different masks.

    Raises DataError if image ids or sizes differ, or for invalid scores or boxes.
    """
    check_members(members)
    chosen = check_weights(options.weights if weights is None else weights, options.source) or (1.0,) * len(members)
    if len(chosen) != len(members):
        raise DataError(f"{options.source}: {len(chosen)} weights for {len(members)} members; give one per member")
    if options.mask_quality:
        members = [member if member.rles is None else rescore(member, options.mask_quality) for member in members]
    if options.backend == "ensemble_boxes":
        from detseg.fusion.ensemble_boxes_backend import fuse_boxes

        fused = fuse_boxes(members, options, np.array(chosen))
    else:
        fused = _fuse(members, options, np.array(chosen))
    fused = fused.best_first()
    if options.image_class != "keep" and len(fused):
        of_all = image_class(fused, options.image_class_by)
        if options.image_class == "drop":
            fused = fused.select(fused.classes == of_all)
        else:
            fused = dataclasses.replace(fused, classes=np.full(len(fused), of_all))
    # The metadata that all members share (their fold, for example), and the fusion settings.
    shared = {
        key: value
        for key, value in members[0].provenance.items()
        if all(key in member.provenance and member.provenance[key] == value for member in members)
    }
    if any(member.provenance.get(IN_TRAINING) for member in members):
        shared[IN_TRAINING] = True
    shared["fused"] = {"members": len(members), "method": options.method, "overlap": options.overlap}
    pixel_size = next((member.pixel_size for member in members if member.pixel_size is not None), None)
    metadata = {name: value for member in reversed(members) for name, value in member.metadata.items()}
    return dataclasses.replace(fused, provenance=shared, pixel_size=pixel_size, metadata=metadata)


def _fuse(members: Sequence[Predictions], options: FusionOptions, weights: np.ndarray) -> Predictions:
    detections = Detections.gather(members, weights, options)
    masks = PackedMasks(detections.runs) if options.overlap != "box_iou" else None
    measure = OverlapMeasure(options.overlap, detections.boxes, masks, detections.has_mask)
    kinds = np.zeros(len(detections), dtype=np.int64) if options.across_classes else detections.classes
    if options.method == "soft_nms":
        clusters = Clusters.of_leaders(detections, np.arange(len(detections)), weights)
        scores = _decayed_scores(detections, measure, kinds, options) / weights.max()
        keep = scores >= options.min_decayed_score
    else:
        leader = _leaders(detections, measure, kinds, options)
        clusters = Clusters.of_leaders(detections, leader, weights)
        if options.one_per_member:
            clusters = clusters.best_of_members()
            detections = clusters.detections
        scores = clusters.scores(options.score_rule, options.agreement)
        keep = clusters.found_by()[0] >= options.values("min_members", detections.classes[clusters.leaders])
    boxes = clusters.mean_boxes() if options.method == "wbf" else detections.boxes[clusters.leaders]
    first = members[0]
    classes = clusters.classes(options.cluster_class)
    place = first.image_id, first.file_name, first.height, first.width
    fused = Predictions(*place, boxes, scores, classes, quality=clusters.quality(options.masks))
    # The result has masks if any detection has one; without detections, if any member could have one.
    if all(member.rles is None for member in [member for member in members if len(member)] or members):
        return fused.select(keep)
    return attach_masks(fused, clusters, keep, options)


def _leaders(detections: Detections, measure: OverlapMeasure, kinds: np.ndarray, options: FusionOptions) -> np.ndarray:
    """Return the leader (N,) int64 of every detection, the best one of its cluster, for nms and wbf.

    wbf on boxes compares with the mean box of the cluster, as published. A mean mask would have to be recomputed for
    every detection and hardly changes: on masks, a detection joins the best one of a cluster, as in nms.
    """
    thresholds = options.values("threshold", detections.classes)
    if options.method == "wbf" and not measure.by_masks:
        scores = detections.weighted_scores
        return cluster_boxes(detections.boxes, scores, kinds, thresholds, over_smaller=measure.over_smaller)
    pairs = measure.close_pairs(kinds, thresholds)
    return join_best(pairs, measure, thresholds, keep_best(pairs, measure, thresholds))


def _decayed_scores(
    detections: Detections, measure: OverlapMeasure, kinds: np.ndarray, options: FusionOptions
) -> np.ndarray:
    """Return the weighted scores (N,) float64 after soft-NMS."""
    thresholds = options.values("threshold", detections.classes)

    def factor(pairs: Pairs, overlap: np.ndarray) -> np.ndarray:
        if options.decay == "gaussian":
            return np.exp(-(overlap**2) / options.sigma)
        return np.where(overlap > thresholds[pairs.first], 1 - overlap, 1.0)

    pairs = measure.close_pairs(kinds, np.zeros(len(detections)))
    low = options.min_decayed_score * max(detections.weights.max(initial=0.0), 0.0)
    return decay_scores(pairs, measure(pairs), detections.weighted_scores, factor, low)
