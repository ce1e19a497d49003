"""Pooling of regions: ROIAlign, separable along the axes, and the level of a feature pyramid for each region.

ROIAlign averages bilinear samples on a grid that is parallel to the axes, so it is separable: a pooled region is
`rows (s, S) @ crop (S, S) @ columns (S, s)`, with a crop just large enough for the region. Sample positions and borders
are those of torchvision's roi_align with aligned=True.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from detseg.config.options import Options, key
from detseg.models.torchvision_ops import roi_align


def crop_side(low: Tensor, high: Tensor, step: int) -> Tensor:
    """Return (M,) int64: how many pixels, rounded up to a multiple of `step`, regions [low, high) (M,) can reach."""
    return ((high - low + 3) / step).ceil().long().clamp(min=1) * step


def axis_weights(
    low: Tensor, high: Tensor, *, length: int, size: int, side: int, sampling_ratio: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights (M, size, side), the first pixel (M,) int64 of each crop, and the samples a cell (M,) float32.

    low, high: (M,) ends of the regions in pixels of a map of `length` pixels. size: number of cells. side: of the
    crops, at least `crop_side`. sampling_ratio: samples a cell, 0 for ceil(cell). The weights of a cell add up to the
    number of its samples that are on the map or at most one pixel outside; they are not yet divided by the number of
    samples.
    """
    start, cell = low - 0.5, (high - low) / size
    samples = cell.ceil() if sampling_ratio == 0 else torch.full_like(cell, sampling_ratio)
    number = torch.arange(max(int(samples.max()), 1), device=low.device)
    position = torch.arange(size, device=low.device)[:, None] * cell[:, None, None] + start[:, None, None]
    position = position + (number + 0.5) * cell[:, None, None] / samples.clamp(min=1)[:, None, None]
    # Beyond one pixel outside there is nothing; nearer to the map its border is repeated.
    exists = (number < samples[:, None, None]) & (position >= -1) & (position <= length)
    position = position.clamp(min=0)
    below = position.long().clamp(max=length - 1)
    above = (below + 1).clamp(max=length - 1)
    upper = torch.where(below == length - 1, torch.zeros_like(position), position - below)
    first = start.floor().long().clamp(0, length - 1)
    weights = torch.zeros((len(low), size, side), device=low.device)
    for pixel, weight in ((below, 1 - upper), (above, upper)):
        place = (pixel - first[:, None, None]).clamp(0, side - 1)
        weights.scatter_add_(2, place, weight * exists)
    return weights, first, samples


def crop_pixels(first: Tensor, side: int, length: int) -> Tensor:
    """Return the pixels (M, side) int64 of crops that begin at `first` (M,); those beyond the map have no weight."""
    return (first[:, None] + torch.arange(side, device=first.device)).clamp(max=length - 1)


# Numbers of crops held at once.
NUMBERS_PER_CHUNK = 8_000_000
CROP_STEP = 4


def separable_roi_align(feature: Tensor, regions: Tensor, size: int, scale: float, sampling_ratio: int) -> Tensor:
    """Return (M, C, size, size), channels last in memory; arguments as torchvision_ops.roi_align.

    By matrix products, for features with channels last in memory on the CPU. torchvision's CPU kernel works on one
    pixel of one channel at a time and its backward pass on one core: a third of a training step of a small model. This
    one takes a tenth of that; sums are added up in another order.
    """
    return _SeparableROIAlign.apply(feature, regions, size, scale, sampling_ratio)


@dataclass(frozen=True)
class _Part:
    """Regions with crops of the same side S: their numbers (m,), images (m,), rows and columns (m, s, S), corners
    (m,)."""

    number: Tensor
    image: Tensor
    rows: Tensor
    columns: Tensor
    top: Tensor
    left: Tensor

    def pixels(self, height: int, width: int) -> Tensor:
        """Return the positions (m * S * S,) of the crops' pixels in a map (B * H * W, C), x before y."""
        side = self.rows.shape[2]
        y, x = crop_pixels(self.top, side, height), crop_pixels(self.left, side, width)
        return (self.image[:, None, None] * (height * width) + y[:, None, :] * width + x[:, :, None]).reshape(-1)


def _split(regions: Tensor, shape: torch.Size, size: int, scale: float, sampling_ratio: int) -> list[_Part]:
    _, channels, height, width = shape
    boxes = regions[:, 1:] * scale
    sides = torch.maximum(*(crop_side(boxes[:, axis], boxes[:, axis + 2], CROP_STEP) for axis in (0, 1)))
    parts = []
    for side in sorted(set(sides.tolist())):
        group = torch.nonzero(sides == side).squeeze(1)
        for number in group.split(max(1, NUMBERS_PER_CHUNK // (side * max(side, size) * channels))):
            x0, y0, x1, y1 = boxes[number].unbind(1)
            grid = {"size": size, "side": side, "sampling_ratio": sampling_ratio}
            columns, left, in_x = axis_weights(x0, x1, length=width, **grid)
            rows, top, in_y = axis_weights(y0, y1, length=height, **grid)
            rows, columns = rows / in_y.clamp(min=1)[:, None, None], columns / in_x.clamp(min=1)[:, None, None]
            parts.append(_Part(number, regions[number, 0].long(), rows, columns, top, left))
    return parts


class _SeparableROIAlign(torch.autograd.Function):
    """Between the two products the axes x and y are exchanged, so that both are few large products of matrices."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor, regions: Tensor, size: int, scale: float, sampling_ratio: int) -> Tensor:
        batch, channels, height, width = feature.shape
        flat = feature.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
        pooled = feature.new_zeros((len(regions), size, size, channels))
        parts = _split(regions, feature.shape, size, scale, sampling_ratio)
        for part in parts:
            count, _, side = part.rows.shape
            crops = flat.index_select(0, part.pixels(height, width)).view(count, side, side * channels)
            by_column = (part.columns @ crops).view(count, size, side, channels)
            by_row = by_column.transpose(1, 2).reshape(count, side, size * channels)
            pooled[part.number] = (part.rows @ by_row).view(count, size, size, channels)
        ctx.parts, ctx.shape = parts, feature.shape
        return pooled.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        batch, channels, height, width = ctx.shape
        gradient = gradient.permute(0, 2, 3, 1)
        size = gradient.shape[1]
        flat = gradient.new_zeros((batch * height * width, channels))
        for part in ctx.parts:
            count, _, side = part.rows.shape
            of_regions = gradient[part.number].reshape(count, size, size * channels)
            by_row = (part.rows.transpose(1, 2) @ of_regions).view(count, side, size, channels)
            by_column = by_row.transpose(1, 2).reshape(count, size, side * channels)
            crops = (part.columns.transpose(1, 2) @ by_column).view(count * side * side, channels)
            flat.index_add_(0, part.pixels(height, width), crops)
        return flat.view(batch, height, width, channels).permute(0, 3, 1, 2), None, None, None, None


# A box of this side is pooled from this level (Lin et al. 2017, equation 1).
CANONICAL_SIDE = 224
CANONICAL_LEVEL = 4


@dataclass(frozen=True)
class PoolerOptions(Options):
    """Pooling of regions for a head; section: that of the head. Arguments as Pooler."""

    resolution: int = key("POOLER_RESOLUTION", at_least=1)
    sampling_ratio: int = key("POOLER_SAMPLING_RATIO", at_least=0)
    kind: str = key("POOLER_TYPE", choices=("ROIAlignV2",), detectron2=("ROIAlign", "ROIPool", "ROIAlignRotated"))


class Pooler(nn.Module):
    """ROIAlign from one or several feature maps.

    output_size: side of the pooled regions. strides: of the feature maps, powers of two, finest first. sampling_ratio:
    as in torchvision, 0 adapts to the size of the region.

    fast: whether another implementation than torchvision's, with other rounding, is taken on the CPU.
    """

    def __init__(self, *, output_size: int, strides: Sequence[int], sampling_ratio: int) -> None:
        super().__init__()
        self.output_size = output_size
        self.strides = tuple(strides)
        self.sampling_ratio = sampling_ratio
        self.fast = False
        self.first_level = int(math.log2(self.strides[0]))

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Return (M, C, output_size, output_size) for the boxes (P, 4) of every image, in their order."""
        counts = [len(image_boxes) for image_boxes in boxes]
        numbers = torch.arange(len(boxes), device=boxes[0].device).repeat_interleave(
            torch.tensor(counts, device=boxes[0].device)
        )
        regions = torch.cat((numbers[:, None].float(), torch.cat(list(boxes)).float()), dim=1)
        if len(features) == 1:
            return self._pool(features[0], regions, self.strides[0])
        levels = self.levels(regions[:, 1:])
        order, pooled = [], []
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            index = torch.nonzero(levels == level).squeeze(1)
            order.append(index)
            pooled.append(self._pool(feature, regions[index], stride))
        return torch.cat(pooled)[torch.cat(order).argsort()]

    def prepare_all(self, features: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
        """`prepare` the named feature maps."""
        return [self.prepare(features[name]) for name in names]

    def prepare(self, feature: Tensor) -> Tensor:
        """Bring a feature map (B, C, H, W) to the type and memory layout that pooling wants, once for several
        poolers."""
        if self._separable(feature):
            return feature.float().contiguous(memory_format=torch.channels_last)
        return feature.float().contiguous()

    def _separable(self, feature: Tensor) -> bool:
        return self.fast and feature.device.type == "cpu"

    def levels(self, boxes: Tensor) -> Tensor:
        """Return the position (M,) int64, among the feature maps, of the one for each box (M, 4)."""
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        levels = torch.floor(CANONICAL_LEVEL + torch.log2(sides / CANONICAL_SIDE + 1e-8))
        return (levels.clamp(self.first_level, self.first_level + len(self.strides) - 1) - self.first_level).long()

    def _pool(self, feature: Tensor, regions: Tensor, stride: int) -> Tensor:
        pool = separable_roi_align if self._separable(feature) else roi_align
        # The operators know no bfloat16 on the CPU, and autocast would give it to the products of matrices.
        with torch.autocast(feature.device.type, enabled=False):
            return pool(feature.float(), regions, self.output_size, 1.0 / stride, self.sampling_ratio)
