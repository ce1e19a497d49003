"""One mask for every group of detections: the best one, a vote of the pixels, or the mean of the soft masks.

The pixels of all groups lie in one flat buffer, every group's window column by column with one zero behind each column.
A mask adds its weight where one of its vertical runs begins and takes it away where it ends, so that a sum along the
buffer gives every pixel its votes, without decoding a mask. Weights are whole numbers, so that sums are exact and half
of the votes is half of them.

Symbols: K groups, M masks, R runs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.fusion.options import FusionOptions
from detseg.fusion.pool import Groups, Pool
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import fit_windows, soft_mask_windows
from detseg.structures.runs import Runs, chunks_of

# The largest weight; the smallest that counts is this many times smaller.
FULL_WEIGHT = 2**16
# Pixels of groups that are summed at once; bounds memory to some 100 MB.
PIXELS_AT_ONCE = 2**21


@dataclass(frozen=True)
class GroupMasks:
    """rles: K masks. soft_masks: K crops (h, w) uint8 of 255 x probability, at windows (K, 4) int64 XYXY; or None."""

    rles: list[dict[str, Any]]
    soft_masks: list[np.ndarray] | None
    windows: np.ndarray


def best_masks(mask_group: np.ndarray, count: int) -> np.ndarray:
    """Return the first mask (K,) int64 of every group.

    mask_group: (M,) int64, the group of every mask, -1 for none, best masks first; every group has a mask.
    """
    best = np.zeros(count, dtype=np.int64)
    group, first = np.unique(mask_group, return_index=True)
    best[group[group >= 0]] = first[group >= 0]
    return best


def mean_masks(
    pool: Pool, mask_group: np.ndarray, count: int, weights: np.ndarray, thresholds: np.ndarray, *, soft: bool
) -> GroupMasks:
    """Return the weighted mean of the masks of every group, and where it is at least thresholds (K,), in (0, 1].

    mask_group: (M,) int64, the group 0..count-1 of every mask of the pool, -1 for none; every group has a mask.
    weights: (M,) float64 > 0. soft: take soft masks where there are any; else every mask is 0 or 1.
    A group no pixel of which reaches its threshold gets its first mask.
    """
    weights = np.maximum(np.rint(weights / max(weights.max(initial=0.0), 1e-300) * FULL_WEIGHT), 1).astype(np.int64)
    use_soft = np.array([soft and crop is not None for crop in pool.soft_masks], dtype=bool)
    reach = pool.runs.boxes()
    reach[use_soft] = soft_mask_windows(pool.mask_boxes[use_soft], pool.height, pool.width)
    member = mask_group >= 0
    windows = _hulls(reach[member], mask_group[member], count)
    order = np.argsort(mask_group, kind="stable")
    bounds = np.searchsorted(mask_group[order], np.arange(count + 1))
    result = GroupMasks([], [], windows)
    for part in chunks_of(_pixels(windows), PIXELS_AT_ONCE):
        masks = order[bounds[part.start] : bounds[part.stop]]
        buffer = _Buffer(windows[part])
        local = mask_group[masks] - part.start
        hard = ~use_soft[masks]
        buffer.add_runs(pool.runs.select(masks[hard]), local[hard], weights[masks[hard]])
        buffer.add_crops(
            [pool.soft_masks[index] for index in masks[~hard]], reach[masks[~hard]], local[~hard], weights[masks[~hard]]
        )
        totals = np.bincount(local, weights[masks], len(windows[part]))
        result.rles.extend(buffer.masks(thresholds[part] * totals * 255, pool.height, pool.width))
        result.soft_masks.extend(buffer.soft_masks(totals))
    areas = rle_codec.area(result.rles)
    best = best_masks(mask_group, count)
    for index in np.flatnonzero(areas == 0):
        result.rles[index] = pool.rles[best[index]]
    return result


def _hulls(boxes: np.ndarray, number: np.ndarray, count: int) -> np.ndarray:
    """Return the boxes (K, 4) int64 around all boxes (M, 4) of every group."""
    hulls = np.zeros((count, 4), dtype=np.int64)
    hulls[:, :2] = np.iinfo(np.int64).max
    for side, choose in enumerate((np.minimum, np.minimum, np.maximum, np.maximum)):
        choose.at(hulls[:, side], number, boxes[:, side])
    return hulls


def _pixels(windows: np.ndarray) -> np.ndarray:
    """Return the pixels (K,) int64 of a buffer that the windows take, the zeros behind the columns included."""
    return (windows[:, 2] - windows[:, 0]) * (windows[:, 3] - windows[:, 1] + 1)


class _Buffer:
    """The windows (K, 4) of groups as one flat array of sums of weight x value, int64; values go from 0 to 255."""

    def __init__(self, windows: np.ndarray) -> None:
        self._windows = windows
        self._stride = windows[:, 3] - windows[:, 1] + 1
        self._ends = np.cumsum(_pixels(windows))
        self._begins = self._ends - _pixels(windows)
        self._sums = np.zeros(int(self._ends[-1]), dtype=np.int64)

    def add_runs(self, runs: Runs, groups: np.ndarray, weights: np.ndarray) -> None:
        """Add weight x 255 at the runs of M masks, to be called first. groups, weights: (M,)."""
        if not len(runs.starts):
            return
        group, value = groups[runs.owners], weights[runs.owners] * 255
        column, top = np.divmod(runs.starts, runs.column_height)
        top_of_column = (column - self._windows[group, 0]) * self._stride[group] - self._windows[group, 1]
        begin = self._begins[group] + top_of_column + top
        np.add.at(self._sums, begin, value)
        np.subtract.at(self._sums, begin + runs.ends - runs.starts, value)
        np.cumsum(self._sums, out=self._sums)

    def add_crops(
        self, crops: list[np.ndarray | None], places: np.ndarray, groups: np.ndarray, weights: np.ndarray
    ) -> None:
        """Add weight x crop. crops: M arrays (h, w) uint8. places: (M, 4) int64 XYXY. groups, weights: (M,)."""
        places = places - np.tile(self._windows[groups, :2], 2)
        views: dict[int, np.ndarray] = {}
        for crop, (x0, y0, x1, y1), group, weight in zip(
            crops, places.tolist(), groups.tolist(), weights.tolist(), strict=True
        ):
            view = views.get(group)
            if view is None:
                view = views[group] = self._view(self._sums, group)
            view[x0:x1, y0:y1] += np.multiply(crop, weight, dtype=np.int32).T

    def masks(self, levels: np.ndarray, height: int, width: int) -> list[dict[str, Any]]:
        """Return as RLEs where the sum is at least the group's level (K,) float64 > 0."""
        # Levels such as 0.3 x 10 are not exact: what misses one by rounding alone reaches it.
        whole_levels = np.maximum(np.ceil(levels - 1e-6), 1).astype(np.int64)
        inside = self._sums >= np.repeat(whole_levels, self._ends - self._begins)
        changes = np.flatnonzero(np.diff(inside, prepend=False))
        begin, end = changes[0::2], changes[1::2]
        group = np.searchsorted(self._ends, begin, side="right")
        column, row = np.divmod(begin - self._begins[group], self._stride[group])
        position = (column + self._windows[group, 0]) * height + row + self._windows[group, 1]
        count = len(levels)
        runs = Runs(position, position + end - begin, group, np.full(count, height), np.full(count, width))
        return rle_codec.encode_runs(runs)

    def soft_masks(self, totals: np.ndarray) -> list[np.ndarray]:
        """Return the means (h, w) uint8 of all groups. totals: (K,) the sum of weights of each."""
        means = np.rint(self._sums / np.repeat(totals, self._ends - self._begins)).astype(np.uint8)
        return [np.ascontiguousarray(self._view(means, group).T) for group in range(len(totals))]

    def _view(self, flat: np.ndarray, group: int) -> np.ndarray:
        """Return the pixels (w, h) of a group."""
        stride = int(self._stride[group])
        return flat[self._begins[group] : self._ends[group]].reshape(-1, stride)[:, : stride - 1]


# Masks for fused boxes, from the masks of the detections behind each.


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
