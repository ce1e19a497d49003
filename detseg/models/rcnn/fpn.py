"""Feature Pyramid Network (Lin et al. 2017) with Detectron2's names; keeps the backbone interface of resnet.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from detseg.config.options import Options, Problems, key
from detseg.models.rcnn.layers import ConvNorm, check_group_norm, init_xavier, norm_key

# log2 of the strides of a ResNet's and an FPN's feature maps.
LEVELS = {
    "res1": 1,
    "stem": 2,
    "res2": 2,
    "res3": 3,
    "res4": 4,
    "res5": 5,
    **{f"p{level}": level for level in range(8)},
}


def are_successive(features: Sequence[str]) -> bool:
    """Whether feature maps are levels of a pyramid, finest first, without gaps."""
    levels = [LEVELS.get(name, 0) for name in features]
    return levels == list(range(levels[0], levels[0] + len(levels)))


@dataclass(frozen=True)
class FPNOptions(Options):
    """Arguments of FPN."""

    section = "MODEL.FPN"

    in_features: tuple[str, ...] = key("IN_FEATURES")
    out_channels: int = key("OUT_CHANNELS", at_least=1)
    norm: str = norm_key()
    fuse_type: str = key("FUSE_TYPE", choices=("sum", "avg"))

    def check(self, problems: Problems) -> None:
        check_group_norm(problems, "MODEL.FPN.NORM", "MODEL.FPN.OUT_CHANNELS", self.out_channels)
        if not self.in_features:
            problems.add(
                "MODEL.FPN.IN_FEATURES", 'expected the levels to build on, such as ["res2", "res3", "res4", "res5"]'
            )
            return
        if not are_successive(self.in_features):
            problems.add("MODEL.FPN.IN_FEATURES", "expected consecutive levels, finest first")

    @property
    def features(self) -> list[str]:
        """The names of the FPN's outputs, see FPN."""
        levels = [LEVELS[name] for name in self.in_features]
        return [f"p{level}" for level in [*levels, levels[-1] + 1]]


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
