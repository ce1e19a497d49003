"""Matching candidate boxes (proposals, anchors) to objects by IoU, without a matrix of all pairs.

The results are exactly those of Detectron2's Matcher on the whole IoU matrix: each candidate gets the object with the
highest IoU (the first among equals) and a label by the interval of that IoU; with `allow_low_quality_matches`, the best
candidates of an object are matches too. Proposals are matched in chunks; anchors form grids, so only anchors that can
overlap an object are compared: for 2,000 cells on 1024 x 1024 pixels 3 million pairs instead of 500 million.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detseg.config.options import Options, Problems, key
from detseg.models.rcnn.anchors import AnchorGrid, AnchorLevel

# Pairs in memory at once, about ten numbers each.
PAIRS_PER_CHUNK = 500_000


def _not_ascending(thresholds: list[float]) -> str | None:
    ascending = all(earlier <= later for earlier, later in itertools.pairwise(thresholds))
    return None if ascending else "expected ascending overlaps"


@dataclass(frozen=True)
class SamplingOptions(Options):
    """Which candidates are objects, and how many are used in a loss; section: of the candidates.

    thresholds: IoUs that split candidates into intervals, from background to object. batch_size candidates are sampled
    per image, at most positive_fraction of them objects.
    """

    thresholds: tuple[float, ...] = key("IOU_THRESHOLDS", not_empty=True, above=0, at_most=1, test=_not_ascending)
    batch_size: int = key("BATCH_SIZE_PER_IMAGE", at_least=1)
    positive_fraction: float = key("POSITIVE_FRACTION", above=0, at_most=1)


@dataclass(frozen=True)
class MatchingOptions(SamplingOptions):
    """labels: one for each interval: 1 object, 0 background, -1 neither."""

    labels: tuple[int, ...] = key("IOU_LABELS", choices=(-1, 0, 1))

    def check(self, problems: Problems) -> None:
        count = len(self.thresholds) + 1
        if len(self.labels) != count:
            problems.add(
                f"{self.section}.IOU_LABELS", f"expected one more than {self.section}.IOU_THRESHOLDS ({count})"
            )


@dataclass(frozen=True)
class Matcher:
    """Labels by intervals of IoU.

    thresholds: ascending IoUs that split [0, 1] into intervals. labels: one per interval, 1 object, 0 background, -1
    neither.
    """

    thresholds: tuple[float, ...]
    labels: tuple[int, ...]
    allow_low_quality_matches: bool = False

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.thresholds) + 1:
            raise ValueError(f"{len(self.thresholds)} IoU thresholds need one label more, not {len(self.labels)}")
        if list(self.thresholds) != sorted(self.thresholds) or min(self.thresholds, default=1) <= 0:
            raise ValueError(f"IoU thresholds must ascend and be positive, not {self.thresholds}")
        if not set(self.labels) <= {-1, 0, 1}:
            raise ValueError(f"IoU labels are -1, 0 or 1, not {self.labels}")

    def label(self, best_iou: Tensor) -> Tensor:
        """Return labels (n,) int8 for the highest IoU (n,) of each candidate."""
        thresholds = torch.tensor(self.thresholds, dtype=best_iou.dtype, device=best_iou.device)
        labels = torch.tensor(self.labels, dtype=torch.int8, device=best_iou.device)
        return labels[torch.bucketize(best_iou, thresholds, right=True)]

    def match_boxes(self, objects: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Match any candidates (n, 4) to objects (N, 4); return matches (n,) int64 and labels (n,) int8.

        allow_low_quality_matches applies to anchors only.
        """
        count = len(candidates)
        matches = torch.zeros(count, dtype=torch.int64, device=candidates.device)
        best = torch.zeros(count, dtype=torch.float32, device=candidates.device)
        if len(objects):
            step = max(1, PAIRS_PER_CHUNK // len(objects))
            for start in range(0, count, step):
                iou = pair_iou(objects[:, None], candidates[None, start : start + step])
                best[start : start + step], matches[start : start + step] = iou.max(dim=0)
        return matches, self._labels_or_background(objects, best)

    def match_anchors(self, objects: Tensor, grid: AnchorGrid) -> tuple[Tensor, Tensor]:
        """Match anchors to objects (N, 4); return matches (R,) int64 and labels (R,) int8."""
        count, device = len(grid.boxes), grid.boxes.device
        matches = torch.zeros(count, dtype=torch.int64, device=device)
        best = torch.zeros(count, dtype=torch.float32, device=device)
        if len(objects) == 0:
            return matches, self._labels_or_background(objects, best)
        wanted = torch.zeros(count, dtype=torch.bool, device=device)
        windows = Windows.around(objects, grid.levels)
        for first, last in windows.chunks(PAIRS_PER_CHUNK):
            object_index, anchor_index = windows.pairs(first, last)
            iou = pair_iou(objects[object_index], grid.boxes[anchor_index])
            _keep_best(best, matches, anchor_index, object_index, iou)
            if self.allow_low_quality_matches:
                best_of_object = iou.new_zeros(last - first).scatter_reduce_(0, object_index - first, iou, "amax")
                wanted[anchor_index[iou == best_of_object[object_index - first]]] = True
                # An object without overlapping anchors has the same IoU, 0, with all: Detectron2 takes all.
                wanted |= (best_of_object == 0).any()
        labels = self.label(best)
        labels[wanted] = 1
        return matches, labels

    def _labels_or_background(self, objects: Tensor, best_iou: Tensor) -> Tensor:
        if len(objects):
            return self.label(best_iou)
        return torch.full(best_iou.shape, self.labels[0], dtype=torch.int8, device=best_iou.device)


def _keep_best(best: Tensor, matches: Tensor, anchor_index: Tensor, object_index: Tensor, iou: Tensor) -> None:
    """Update each anchor's highest IoU and its first object, given pairs of objects later than all before."""
    best_now = torch.zeros_like(best).scatter_reduce_(0, anchor_index, iou, "amax")
    is_best = iou == best_now[anchor_index]
    none = torch.iinfo(torch.int64).max
    first = torch.full_like(matches, none).scatter_reduce_(0, anchor_index[is_best], object_index[is_best], "amin")
    better = best_now > best
    best.copy_(torch.where(better, best_now, best))
    matches.copy_(torch.where(better, first, matches))


@dataclass(frozen=True)
class Windows:
    """For each object, level and cell anchor: the rectangle of grid positions whose anchors can overlap the object.

    All fields have the axes (N, S), int64, S cell anchors of all levels: first row and column, number of columns and of
    positions. `bases`, `widths`, `strides` (S,) give the anchor's position: base + (row * width + column) * stride.
    """

    rows: Tensor
    columns: Tensor
    column_counts: Tensor
    counts: Tensor
    bases: Tensor
    widths: Tensor
    strides: Tensor

    @classmethod
    def around(cls, objects: Tensor, levels: Sequence[AnchorLevel]) -> Windows:
        """Find the windows of objects (N, 4)."""
        parts: list[tuple[Tensor, ...]] = []
        bases, widths, strides = [], [], []
        for level in levels:
            columns, column_counts = _span(objects[:, 0::2], level.cell_anchors[:, 0::2], level, level.width)
            rows, row_counts = _span(objects[:, 1::2], level.cell_anchors[:, 1::2], level, level.height)
            parts.append((rows, columns, column_counts, row_counts * column_counts))
            anchors = len(level.cell_anchors)
            bases += [level.start + index for index in range(anchors)]
            widths += [level.width] * anchors
            strides += [anchors] * anchors
        fields = [torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True)]
        return cls(*fields, *(torch.tensor(values, device=objects.device) for values in (bases, widths, strides)))

    def chunks(self, pairs_at_once: int) -> list[tuple[int, int]]:
        """Split the objects into runs [first, last) of about that many pairs, without splitting an object."""
        totals = self.counts.sum(dim=1).tolist()
        chunks, first, pairs = [], 0, 0
        for index, total in enumerate(totals):
            if index > first and pairs + total > pairs_at_once:
                chunks.append((first, index))
                first, pairs = index, 0
            pairs += total
        return [*chunks, (first, len(totals))]

    def pairs(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Return the pairs of the objects [first, last): object (n,) and anchor (n,), ordered by object."""
        counts = self.counts[first:last].reshape(-1)
        ends = counts.cumsum(0)
        window = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        within = torch.arange(len(window), device=counts.device) - (ends - counts)[window]
        cell = torch.arange(len(self.bases), device=counts.device).repeat(last - first)
        row_in_window = torch.div(
            within, self.column_counts[first:last].reshape(-1).clamp(min=1)[window], rounding_mode="floor"
        )
        # Index = base + stride * (width * (row + r) + column + c), with the terms of the window combined.
        widths, strides = self.widths[cell], self.strides[cell]
        rows, columns = self.rows[first:last].reshape(-1), self.columns[first:last].reshape(-1)
        start = self.bases[cell] + strides * (widths * rows + columns)
        jump = strides * (widths - self.column_counts[first:last].reshape(-1))
        anchor = start[window] + strides[window] * within + jump[window] * row_in_window
        objects = torch.arange(first, last, device=counts.device).repeat_interleave(len(self.bases))
        return objects[window], anchor


def _span(objects: Tensor, anchors: Tensor, level: AnchorLevel, size: int) -> tuple[Tensor, Tensor]:
    """Return the first grid position (N, A) and the number of positions at which anchors overlap objects, along one
    axis.

    objects: (N, 2) and anchors: (A, 2), low and high end. Positions that overlap only by rounding may be included.
    """
    low = (objects[:, None, 0] - anchors[None, :, 1]) / level.stride - level.offset
    high = (objects[:, None, 1] - anchors[None, :, 0]) / level.stride - level.offset
    first = low.floor().clamp(0, size).long()
    last = (high.ceil() + 1).clamp(0, size).long()
    return first, (last - first).clamp(min=0)


def pair_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of boxes a (..., 4) and b (..., 4), broadcast; 0 if they do not overlap."""
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    union = area_a + area_b - intersection
    return torch.where(intersection > 0, intersection / union, torch.zeros_like(union))


def sample_labels(labels: Tensor, count: int, positive_fraction: float, background: int) -> tuple[Tensor, Tensor]:
    """Sample at most `count` candidates: up to `positive_fraction` of them objects, the others background.

    labels: (n,) integers: -1 is never drawn, `background` is background, everything else an object. Returns the indices
    of the objects and of the background, int64. Randomness comes from torch's default generator.
    """
    objects = torch.nonzero((labels != -1) & (labels != background)).squeeze(1)
    others = torch.nonzero(labels == background).squeeze(1)
    object_count = min(len(objects), int(count * positive_fraction))
    other_count = min(len(others), count - object_count)
    return tuple(
        indices[torch.randperm(len(indices), device=indices.device)[:number]]
        for indices, number in ((objects, object_count), (others, other_count))
    )
