"""Feature Pyramid Network (Lin et al. 2017) with Detectron2's names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detseg.models.rcnn.layers import ConvNorm, init_xavier

FUSE_TYPES = ("sum", "avg")


class FPN(nn.Module):
    """A top-down pathway over the feature maps of a backbone.

    Outputs p2, p3, ... (log2 of the stride) for the `in_features`, finest first, and one more by subsampling the
    coarsest.
    """

    def __init__(
        self,
        bottom_up: nn.Module,
        *,
        in_features: Sequence[str],
        out_channels: int,
        norm: str = "",
        fuse_type: str = "sum",
    ) -> None:
        super().__init__()
        if fuse_type not in FUSE_TYPES:
            raise ValueError(f"unknown fuse_type {fuse_type!r}; known: {', '.join(FUSE_TYPES)}")
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        self.average = fuse_type == "avg"
        self.levels = [int(math.log2(bottom_up.strides[name])) for name in self.in_features]
        for name, level in zip(self.in_features, self.levels, strict=True):
            lateral = ConvNorm(bottom_up.channels[name], out_channels, 1, norm=norm)
            output = ConvNorm(out_channels, out_channels, 3, norm=norm)
            init_xavier(lateral)
            init_xavier(output)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
        self.strides = {f"p{level}": 2**level for level in [*self.levels, self.levels[-1] + 1]}
        self.channels = dict.fromkeys(self.strides, out_channels)
        self.size_divisibility = 2 ** self.levels[-1]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {name: (B, out_channels, H / stride, W / stride)}, finest first."""
        bottom_up = self.bottom_up(x)
        outputs: dict[str, Tensor] = {}
        top_down: Tensor | None = None
        for name, level in zip(reversed(self.in_features), reversed(self.levels), strict=True):
            lateral = getattr(self, f"fpn_lateral{level}")(bottom_up[name])
            if top_down is not None:
                lateral = lateral + F.interpolate(top_down, scale_factor=2.0, mode="nearest")
                if self.average:
                    lateral = lateral / 2
            top_down = lateral
            outputs[f"p{level}"] = getattr(self, f"fpn_output{level}")(lateral)
        coarsest = self.levels[-1]
        outputs[f"p{coarsest + 1}"] = F.max_pool2d(outputs[f"p{coarsest}"], kernel_size=1, stride=2)
        return {name: outputs[name] for name in self.strides}
