"""One mask per cluster of detections: the best one, a pixel-wise vote, or the mean of the soft masks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from detseg.fusion.detections import Clusters, Detections
from detseg.fusion.options import FusionOptions
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import fit_windows, soft_mask_windows
from detseg.structures.runs import Runs, chunks_of

# Integer value of the largest weight, and thus the largest ratio of two weights.
FULL_WEIGHT = 2**16
# Pixels of clusters that are summed at once; bounds memory to some 100 MB.
PIXELS_AT_ONCE = 2**21

# RLEs of K masks; their soft masks, crops (h, w) uint8 of 255 x probability, or None; the windows (K, 4) int64 XYXY of
# the crops.
Masks = tuple[list[dict[str, Any]], "list[np.ndarray] | None", np.ndarray]


def attach_masks(fused: Predictions, clusters: Clusters, keep: np.ndarray, options: FusionOptions) -> Predictions:
    """Return the clusters of `keep` (K,) bool with masks, and with soft masks if any member has them.

    fused: K boxes without masks, one per cluster. Clusters that no member with masks has found are dropped, or get
    their box as mask (`options.without_mask`). A box is enlarged if its mask extends beyond it, unless both come from
    one detection.
    """
    detections = clusters.detections
    has_mask = np.zeros(len(clusters), dtype=bool)
    has_mask[clusters.number[detections.has_mask]] = True
    kept = np.flatnonzero(keep & has_mask) if options.without_mask == "drop" else np.flatnonzero(keep)
    fused, masked = fused.select(kept), np.flatnonzero(has_mask[kept])
    # The detections with masks in the kept clusters, and for each the number of its cluster among those with masks.
    new_number = np.full(len(clusters), -1, dtype=np.int64)
    new_number[kept[masked]] = np.arange(len(masked))
    chosen = np.flatnonzero(detections.has_mask & (new_number[clusters.number] >= 0))
    cluster = new_number[clusters.number[chosen]]
    best = chosen[np.unique(cluster, return_index=True)[1]]
    if options.masks == "best":
        rles, crops, windows = _as_given(detections, best)
        as_given = (best == clusters.leaders[kept[masked]]) & (options.method != "wbf")
    else:
        by_score = options.masks == "mean"
        weights = (detections.weighted_scores if by_score else detections.weights)[chosen]
        levels = options.values("mask_threshold", fused.classes[masked])
        rles, crops, windows = mean_masks(detections, chosen, cluster, weights, levels, soft=by_score)
        # A cluster without any pixel at its threshold gets its best mask.
        for index in np.flatnonzero(rle_codec.area(rles) == 0):
            rles[index] = detections.rles[best[index]]
        as_given = np.zeros(len(masked), dtype=bool)
    _widen(fused, masked[~as_given], [rles[index] for index in np.flatnonzero(~as_given)])

    # Clusters without mask get rectangles, the others their masks.
    box_windows = soft_mask_windows(fused.boxes, fused.height, fused.width)
    bare = np.setdiff1d(np.arange(len(fused)), masked)
    full = [np.ones((y1 - y0, x1 - x0), dtype=bool) for x0, y0, x1, y1 in box_windows[bare]]
    places = [(crop, int(x0), int(y0)) for crop, (x0, y0) in zip(full, box_windows[bare, :2], strict=True)]
    rectangles = rle_codec.encode_crops(places, fused.height, fused.width)
    result = dataclasses.replace(fused, rles=_merged(masked, rles, bare, rectangles))
    if crops is not None:
        crops = fit_windows(crops, windows, box_windows[masked])
        result.soft_masks = _merged(masked, crops, bare, [crop * np.uint8(255) for crop in full])
    return result


def _as_given(detections: Detections, chosen: np.ndarray) -> Masks:
    """Return the masks of detections; soft ones are None if none has any, else missing ones come from hard masks."""
    rles = [detections.rles[index] for index in chosen]
    windows = soft_mask_windows(detections.given_boxes[chosen], detections.height, detections.width)
    crops = [detections.soft_masks[index] for index in chosen]
    hard = [place for place, crop in enumerate(crops) if crop is None]
    if len(hard) == len(crops):
        return rles, None, windows
    for place, crop in zip(hard, rle_codec.decode_crops([rles[place] for place in hard]), strict=True):
        windows[place], crops[place] = crop.box, crop.mask * np.uint8(255)
    return rles, crops, windows


def _widen(fused: Predictions, chosen: np.ndarray, rles: list[dict[str, Any]]) -> None:
    """Enlarge the chosen boxes where their masks extend beyond the pixels that the boxes touch."""
    tight = rle_codec.bounding_boxes(rles)
    windows = soft_mask_windows(fused.boxes[chosen], fused.height, fused.width)
    boxes = fused.boxes[chosen]
    boxes[:, :2] = np.where(tight[:, :2] < windows[:, :2], tight[:, :2], boxes[:, :2])
    boxes[:, 2:] = np.where(tight[:, 2:] > windows[:, 2:], tight[:, 2:], boxes[:, 2:])
    fused.boxes[chosen] = boxes


def _merged(first: np.ndarray, of_first: list[Any], second: np.ndarray, of_second: list[Any]) -> list[Any]:
    """Return one list with the items of two lists at the given indices."""
    items: list[Any] = [None] * (len(first) + len(second))
    for place, item in [*zip(first, of_first, strict=True), *zip(second, of_second, strict=True)]:
        items[place] = item
    return items


def mean_masks(
    detections: Detections,
    chosen: np.ndarray,
    cluster: np.ndarray,
    weights: np.ndarray,
    thresholds: np.ndarray,
    *,
    soft: bool,
) -> Masks:
    """Return the weighted mean of the masks of every cluster, and the masks where it reaches thresholds (K,), in (0,
    1].

    chosen: (M,) int64, ascending, the detections whose masks are averaged. cluster: (M,) int64, the cluster 0..K-1 of
    each; none is empty. weights: (M,) float64 > 0. soft: use soft masks where they exist; else every mask is 0 or 1.
    """
    # Integer weights make sums exact, so that half of the votes is exactly half.
    weights = np.maximum(np.rint(weights / max(weights.max(initial=0.0), 1e-300) * FULL_WEIGHT), 1).astype(np.int64)
    use_soft = np.array([soft and detections.soft_masks[index] is not None for index in chosen], dtype=bool)
    count = len(thresholds)
    runs = detections.runs.select(chosen)
    reach = runs.boxes()
    reach[use_soft] = soft_mask_windows(detections.given_boxes[chosen[use_soft]], detections.height, detections.width)
    windows = np.zeros((count, 4), dtype=np.int64)
    windows[:, :2] = np.iinfo(np.int64).max
    for side, choose in enumerate((np.minimum, np.minimum, np.maximum, np.maximum)):
        choose.at(windows[:, side], cluster, reach[:, side])

    order = np.argsort(cluster, kind="stable")
    bounds = np.searchsorted(cluster[order], np.arange(count + 1))
    rles: list[dict[str, Any]] = []
    crops: list[np.ndarray] = []
    for part in chunks_of((windows[:, 2] - windows[:, 0]) * (windows[:, 3] - windows[:, 1]), PIXELS_AT_ONCE):
        masks = order[bounds[part.start] : bounds[part.stop]]
        local, is_soft = cluster[masks] - part.start, use_soft[masks]
        sums = _WindowSums(windows[part], detections.height, detections.width)
        hard = masks[~is_soft]
        sums.add_runs(runs.select(hard), local[~is_soft], weights[hard])
        of_soft = masks[is_soft]
        found = [detections.soft_masks[index] for index in chosen[of_soft]]
        sums.add_crops(found, reach[of_soft], local[is_soft], weights[of_soft])
        totals = np.bincount(local, weights[masks], len(windows[part]))
        rles += sums.masks(thresholds[part] * totals * 255)
        crops += sums.means(totals)
    return rles, crops, windows


class _WindowSums:
    """Weighted sums of mask values 0..255 at every pixel of K windows, in one flat int64 buffer.

    The windows are stored column by column, with one zero below each column. A mask adds its weight at the start of
    each of its vertical runs and subtracts it at the end, so that a cumulative sum along the buffer gives the votes of
    every pixel without decoding a mask.
    """

    def __init__(self, windows: np.ndarray, height: int, width: int) -> None:
        self._windows, self._size = windows, (height, width)
        self._stride = windows[:, 3] - windows[:, 1] + 1
        lengths = (windows[:, 2] - windows[:, 0]) * self._stride
        self._ends = np.cumsum(lengths)
        self._begins = self._ends - lengths
        self._sums = np.zeros(int(self._ends[-1]), dtype=np.int64)

    def add_runs(self, runs: Runs, numbers: np.ndarray, weights: np.ndarray) -> None:
        """Add weight x 255 on the runs of M masks; call this first. numbers: (M,) windows. weights: (M,)."""
        number, value = numbers[runs.owners], weights[runs.owners] * 255
        column, top = runs.column_and_row(runs.starts)
        top_of_column = (column - self._windows[number, 0]) * self._stride[number] - self._windows[number, 1]
        begin = self._begins[number] + top_of_column + top
        np.add.at(self._sums, begin, value)
        np.subtract.at(self._sums, begin + runs.ends - runs.starts, value)
        np.cumsum(self._sums, out=self._sums)

    def add_crops(
        self, crops: list[np.ndarray | None], places: np.ndarray, numbers: np.ndarray, weights: np.ndarray
    ) -> None:
        """Add weight x crop. crops: M arrays (h, w) uint8. places: (M, 4) XYXY. numbers, weights: (M,)."""
        places = places - np.tile(self._windows[numbers, :2], 2)
        views = [self._view(self._sums, number) for number in range(len(self._windows))]
        rows = zip(crops, places.tolist(), numbers.tolist(), weights.tolist(), strict=True)
        for crop, (x0, y0, x1, y1), number, weight in rows:
            views[number][x0:x1, y0:y1] += np.multiply(crop, weight, dtype=np.int32).T

    def masks(self, levels: np.ndarray) -> list[dict[str, Any]]:
        """Return RLEs of the pixels whose sum reaches the level (K,) float64 > 0 of their window."""
        # Levels such as 0.3 x 10 are not exact: a sum that is too small only by rounding must still reach the level.
        whole_levels = np.maximum(np.ceil(levels - 1e-6), 1).astype(np.int64)
        inside = self._sums >= np.repeat(whole_levels, self._ends - self._begins)
        changes = np.flatnonzero(np.diff(inside, prepend=False))
        begin, end = changes[0::2], changes[1::2]
        number = np.searchsorted(self._ends, begin, side="right")
        column, row = np.divmod(begin - self._begins[number], self._stride[number])
        starts = (column + self._windows[number, 0]) * self._size[0] + row + self._windows[number, 1]
        sizes = (np.full(len(levels), side) for side in self._size)
        return rle_codec.encode_runs(Runs(starts, starts + end - begin, number, *sizes))

    def means(self, totals: np.ndarray) -> list[np.ndarray]:
        """Return the means (h, w) uint8 of all windows. totals: (K,) the sums of weights."""
        means = np.rint(self._sums / np.repeat(totals, self._ends - self._begins)).astype(np.uint8)
        return [np.ascontiguousarray(self._view(means, number).T) for number in range(len(totals))]

    def _view(self, flat: np.ndarray, number: int) -> np.ndarray:
        """Return the pixels (w, h) of a window."""
        stride = int(self._stride[number])
        return flat[self._begins[number] : self._ends[number]].reshape(-1, stride)[:, : stride - 1]
