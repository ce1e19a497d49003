"""Masks for fused boxes, from the masks of the detections behind each."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from detseg.fusion.group_masks import GroupMasks, best_masks, mean_masks
from detseg.fusion.groups import Groups
from detseg.fusion.options import FusionOptions
from detseg.fusion.pool import Pool
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import fit_windows, soft_mask_windows


def attach_masks(
    fused: Predictions, pool: Pool, groups: Groups, keep: np.ndarray, options: FusionOptions
) -> Predictions:
    """Return the groups of `keep` (K,) bool with masks, and with soft masks where members have any.

    fused: K boxes without masks, one a group. Groups that no member with masks has found are dropped, or get their box
    as mask (`options.without_mask`). A box is widened where its mask reaches out of it, unless one detection gave both.
    """
    has_mask = np.zeros(len(groups), dtype=bool)
    has_mask[groups.number[pool.has_mask]] = True
    kept = np.flatnonzero(keep & has_mask) if options.without_mask == "drop" else np.flatnonzero(keep)
    fused, masked = fused.select(kept), np.flatnonzero(has_mask[kept])
    new_number = np.full(len(groups), -1, dtype=np.int64)
    new_number[kept[masked]] = np.arange(len(masked))
    mask_group = new_number[groups.number[pool.has_mask]]
    best = best_masks(mask_group, len(masked))
    if options.masks == "best":
        found = _of_detections(pool, best)
        as_given = (best == pool.mask_of[groups.leaders[kept[masked]]]) & (options.method != "wbf")
    else:
        levels = options.values("mask_threshold", fused.classes[masked])
        by_score = options.masks == "mean"
        weights = (pool.weighted_scores if by_score else pool.weights)[pool.has_mask]
        found = mean_masks(pool, mask_group, len(masked), weights, levels, soft=by_score)
        as_given = np.zeros(len(masked), dtype=bool)
    _widen(fused, masked[~as_given], [found.rles[index] for index in np.flatnonzero(~as_given)])
    return _complete(fused, masked, found)


def _of_detections(pool: Pool, chosen: np.ndarray) -> GroupMasks:
    """Return masks of the pool as they are; soft ones None where none of them has any, else made from hard ones."""
    rles = [pool.rles[index] for index in chosen]
    windows = soft_mask_windows(pool.mask_boxes[chosen], pool.height, pool.width)
    crops = [pool.soft_masks[index] for index in chosen]
    hard = [place for place, crop in enumerate(crops) if crop is None]
    if len(hard) == len(crops):
        return GroupMasks(rles, None, windows)
    for place, (crop, x0, y0) in zip(hard, rle_codec.decode_crops([rles[place] for place in hard]), strict=True):
        windows[place] = x0, y0, x0 + crop.shape[1], y0 + crop.shape[0]
        crops[place] = crop * np.uint8(255)
    return GroupMasks(rles, crops, windows)


def _widen(fused: Predictions, chosen: np.ndarray, rles: list[dict[str, Any]]) -> None:
    """Move the sides of the chosen boxes outwards where their masks reach over the pixels that the boxes touch."""
    tight = rle_codec.bounding_boxes(rles)
    windows = soft_mask_windows(fused.boxes[chosen], fused.height, fused.width)
    boxes = fused.boxes[chosen]
    boxes[:, :2] = np.where(tight[:, :2] < windows[:, :2], tight[:, :2], boxes[:, :2])
    boxes[:, 2:] = np.where(tight[:, 2:] > windows[:, 2:], tight[:, 2:], boxes[:, 2:])
    fused.boxes[chosen] = boxes


def _complete(fused: Predictions, masked: np.ndarray, found: GroupMasks) -> Predictions:
    """Return the boxes with the found masks at the places `masked`, and rectangles at the others."""
    windows = soft_mask_windows(fused.boxes, fused.height, fused.width)
    bare = np.setdiff1d(np.arange(len(fused)), masked)
    full = [np.ones((y1 - y0, x1 - x0), dtype=bool) for x0, y0, x1, y1 in windows[bare]]
    places = [(crop, int(x0), int(y0)) for crop, (x0, y0) in zip(full, windows[bare, :2], strict=True)]
    rectangles = rle_codec.encode_crops(places, fused.height, fused.width) if len(bare) else []
    result = dataclasses.replace(fused, rles=_merged(masked, found.rles, bare, rectangles))
    if found.soft_masks is not None:
        crops = fit_windows(found.soft_masks, found.windows, windows[masked])
        result.soft_masks = _merged(masked, crops, bare, [crop * np.uint8(255) for crop in full])
    return result


def _merged(first: np.ndarray, of_first: list[Any], second: np.ndarray, of_second: list[Any]) -> list[Any]:
    """Return one list with the items of two at their places."""
    items: list[Any] = [None] * (len(first) + len(second))
    for place, item in [*zip(first, of_first, strict=True), *zip(second, of_second, strict=True)]:
        items[place] = item
    return items
