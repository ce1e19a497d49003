"""Pooling of regions: ROIAlign as weighted sums of pixels, and the level of a feature pyramid for each region.

ROIAlign averages bilinear samples on an axis-aligned grid, so it is separable: the weight of a pixel in a cell of a
region is the product of a row weight and a column weight. Sample positions and borders are those of torchvision's
roi_align with aligned=True.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from detseg.config.options import Options, key
from detseg.models.torchvision_ops import roi_align


def crop_side(low: Tensor, high: Tensor, step: int) -> Tensor:
    """Return (M,) int64: number of pixels that regions [low, high) (M,) involve, rounded up to a multiple of `step`."""
    return ((high - low + 3) / step).ceil().long().clamp(min=1) * step


def axis_weights(
    low: Tensor, high: Tensor, *, length: int, size: int, side: int, by_cell: bool = False, sampling_ratio: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights (M, size, side), the pixels (M, 1, side) int64 that they belong to, and the samples per cell (M,).

    low, high: (M,) ends of the regions in pixels of a map of `length` pixels. size: number of cells. side: of the
    crops, at least `crop_side`. by_cell: each cell has its own crop, the pixels are (M, size, side). sampling_ratio:
    samples per cell, 0 for ceil(cell). The weights of a cell add up to the number of its samples that are on the map or
    at most one pixel outside; they are not yet divided by the number of samples. Pixels beyond the map have no weight.
    """
    start, cell = low - 0.5, (high - low) / size
    samples = cell.ceil() if sampling_ratio == 0 else torch.full_like(cell, sampling_ratio)
    number = torch.arange(max(int(samples.max()), 1), device=low.device)
    position = torch.arange(size, device=low.device)[:, None] * cell[:, None, None] + start[:, None, None]
    position = position + (number + 0.5) * cell[:, None, None] / samples.clamp(min=1)[:, None, None]
    # Samples more than one pixel outside are zero; nearer ones use the border pixel.
    exists = (number < samples[:, None, None]) & (position >= -1) & (position <= length)
    position = position.clamp(min=0)
    below = position.long().clamp(max=length - 1)
    above = (below + 1).clamp(max=length - 1)
    upper = torch.where(below == length - 1, torch.zeros_like(position), position - below)
    first = below[:, :, :1] if by_cell else below[:, :1, :1]
    weights = torch.zeros((len(low), size, side), device=low.device)
    for pixel, weight in ((below, 1 - upper), (above, upper)):
        weights.scatter_add_(2, (pixel - first).clamp(max=side - 1), weight * exists)
    return weights, (first + torch.arange(side, device=low.device)).clamp(max=length - 1), samples


# Numbers computed at once, of pooled regions or weights; in float32 they fit the cache of a core.
NUMBERS_PER_CHUNK = 250_000


def weighted_roi_align(
    features: Sequence[Tensor], strides: Sequence[int], levels: Tensor, regions: Tensor, size: int, sampling_ratio: int
) -> Tensor:
    """Return (M, C, size, size), channels_last: ROIAlign of each region from one of several feature maps.

    For channels_last features on the CPU, where PyTorch sums rows of a table fast. torchvision's CPU kernel processes
    one pixel of one channel at a time, and its backward pass uses one core. The order of summation differs.

    features: (B, C, H, W) each. strides: of each, in pixels of the regions. levels: (M,) int64, the map of each region.
    regions and sampling_ratio: as in torchvision_ops.roi_align.
    """
    cells = []
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        index = torch.nonzero(levels == level).squeeze(1)
        scaled = torch.cat((regions[index, :1], regions[index, 1:] / stride), dim=1)
        cells.append(_weigh(index, scaled, feature.shape, size, sampling_ratio))
    return _WeightedSums.apply(cells, len(regions), size, *features)


@dataclass(frozen=True)
class _Cells:
    """Cells of regions: their indices (n,), pixels (n, p) int64 of a map (B * H * W, C), and their weights."""

    number: Tensor
    pixels: Tensor
    weights: Tensor


def _weigh(index: Tensor, regions: Tensor, shape: torch.Size, size: int, sampling_ratio: int) -> Iterator[_Cells]:
    """Yield the cells of regions (m, 5) of one map of that shape; index (m,): their indices among all regions."""
    height, width = shape[2:]
    images, boxes = regions[:, 0].long(), regions[:, 1:]
    # A cell's samples are at most a pixel apart, unless their number is fixed; each is between two pixels.
    cell = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1) / size
    samples = cell.ceil().clamp(min=1) if sampling_ratio == 0 else torch.full_like(cell, sampling_ratio)
    sides = (cell * (samples - 1) / samples).ceil().long() + 2
    of_region = torch.arange(size**2, device=index.device)
    for side in sides.unique().tolist():
        group = torch.nonzero(sides == side).squeeze(1)
        for chunk in group.split(max(1, NUMBERS_PER_CHUNK // (size * side) ** 2)):
            x0, y0, x1, y1 = boxes[chunk].unbind(1)
            grid = {"size": size, "side": side, "by_cell": True, "sampling_ratio": sampling_ratio}
            columns, x, in_x = axis_weights(x0, x1, length=width, **grid)
            rows, y, in_y = axis_weights(y0, y1, length=height, **grid)
            rows = rows / (in_x * in_y).clamp(min=1)[:, None, None]
            y = (y + images[chunk, None, None] * height) * width
            yield _Cells(
                (index[chunk, None] * size**2 + of_region).flatten(),
                (y[:, :, None, :, None] + x[:, None, :, None, :]).view(-1, side**2),
                (rows[:, :, None, :, None] * columns[:, None, :, None, :]).view(-1, side**2),
            )


class _WeightedSums(torch.autograd.Function):
    """Pooled cells of all regions; the gradient sums the cells of each pixel in the same way."""

    @staticmethod
    def forward(ctx: Any, cells: list[Iterator[_Cells]], count: int, size: int, *features: Tensor) -> Tensor:
        channels = features[0].shape[1]
        pooled = features[0].new_empty((count * size**2, channels))
        if any(ctx.needs_input_grad):
            ctx.cells = cells = [list(parts) for parts in cells]
            ctx.shapes = [feature.shape for feature in features]
        for feature, parts in zip(features, cells, strict=True):
            flat = feature.permute(0, 2, 3, 1).reshape(-1, channels)
            at_once = max(1, NUMBERS_PER_CHUNK // channels)
            for part in parts:
                portions = (numbers.split(at_once) for numbers in (part.number, part.pixels, part.weights))
                for number, pixels, weights in zip(*portions, strict=True):
                    pooled[number] = F.embedding_bag(pixels, flat, mode="sum", per_sample_weights=weights)
        return pooled.view(count, size, size, channels).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        of_features = []
        for parts, (batch, channels, height, width) in zip(ctx.cells, ctx.shapes, strict=True):
            flat = gradient.new_zeros((batch * height * width, channels))
            if parts:
                pixels, order = torch.cat([part.pixels.flatten() for part in parts]).sort()
                number = torch.cat([part.number[:, None].expand(part.pixels.shape).flatten() for part in parts])
                weights = torch.cat([part.weights.flatten() for part in parts])
                first = torch.searchsorted(pixels, torch.arange(len(flat)))
                flat = F.embedding_bag(number[order], gradient, first, mode="sum", per_sample_weights=weights[order])
            of_features.append(flat.view(batch, height, width, channels).permute(0, 3, 1, 2))
        return None, None, None, *of_features


# A box of this side is pooled from this level (Lin et al. 2017, equation 1).
CANONICAL_SIDE = 224
CANONICAL_LEVEL = 4


@dataclass(frozen=True)
class PoolerOptions(Options):
    """Pooling of regions for a head; section: that of the head. Arguments of Pooler."""

    resolution: int = key("POOLER_RESOLUTION", at_least=1)
    sampling_ratio: int = key("POOLER_SAMPLING_RATIO", at_least=0)
    kind: str = key("POOLER_TYPE", choices=("ROIAlignV2",), detectron2=("ROIAlign", "ROIPool", "ROIAlignRotated"))


class Pooler(nn.Module):
    """ROIAlign from one or several feature maps.

    output_size: side of the pooled regions. strides: of the feature maps, powers of two, finest first. sampling_ratio:
    as in torchvision, 0 adapts to the size of the region.

    fast: use an implementation other than torchvision's on the CPU, with other rounding.
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
        levels = self.levels(regions[:, 1:])
        # The CPU operators do not support bfloat16, which autocast would use for matrix products.
        with torch.autocast(regions.device.type, enabled=False):
            maps = [feature.float() for feature in features]
            if self._is_weighted(maps[0]):
                return weighted_roi_align(maps, self.strides, levels, regions, self.output_size, self.sampling_ratio)
            order, pooled = [], []
            for level, (feature, stride) in enumerate(zip(maps, self.strides, strict=True)):
                index = torch.nonzero(levels == level).squeeze(1)
                order.append(index)
                pooled.append(roi_align(feature, regions[index], self.output_size, 1 / stride, self.sampling_ratio))
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled)[torch.cat(order).argsort()]

    def prepare_all(self, features: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
        """`prepare` the named feature maps."""
        return [self.prepare(features[name]) for name in names]

    def prepare(self, feature: Tensor) -> Tensor:
        """Convert a feature map (B, C, H, W) to dtype and memory format for pooling, once for several poolers."""
        if self._is_weighted(feature):
            return feature.float().contiguous(memory_format=torch.channels_last)
        return feature.float().contiguous()

    def _is_weighted(self, feature: Tensor) -> bool:
        return self.fast and feature.device.type == "cpu"

    def levels(self, boxes: Tensor) -> Tensor:
        """Return the index (M,) int64 of the feature map for each box (M, 4)."""
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        levels = torch.floor(CANONICAL_LEVEL + torch.log2(sides / CANONICAL_SIDE + 1e-8))
        return (levels.clamp(self.first_level, self.first_level + len(self.strides) - 1) - self.first_level).long()
