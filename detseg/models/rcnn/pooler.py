"""Cutting regions out of the level of a feature pyramid that fits their size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from detseg.models.rcnn.separable_roi_align import separable_roi_align
from detseg.models.torchvision_ops import roi_align

# A box of this side goes to this level (Lin et al. 2017, equation 1).
CANONICAL_SIDE = 224
CANONICAL_LEVEL = 4


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
