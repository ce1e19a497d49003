"""Own decoders for feature maps res1, res2, ... of strides 2, 4, ...: RefineNet and transposed convolutions.

Each gets the channels of the maps by name and the widths of its levels, coarsest first, and returns (B, C, H, W) at the
resolution of the image, where C is the last width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def _names(widths: Sequence[int]) -> list[str]:
    """The feature maps of the levels, coarsest first."""
    return [f"res{level}" for level in range(len(widths), 0, -1)]


def _enlarged(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class _ChainedPooling(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = path = F.relu(x)
        for layer in self.layers:
            path = layer(F.max_pool2d(path, 5, stride=1, padding=2))
            x = x + path
        return x


class RefineNetDecoder(nn.Module):
    """RefineNet (Lin et al. 2017): every level sums the coarser map and that of the encoder between residual units, and
    applies chained pooling for context. The encoder's maps are normalised first, because their scales differ. A level
    without an encoder map (res1 of transformers) refines the coarser one.
    """

    def __init__(self, in_channels: Mapping[str, int], widths: Sequence[int]) -> None:
        super().__init__()
        self.names = _names(widths)
        self.lateral, self.from_coarser, self.refine = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        coarser = None
        for name, width in zip(self.names, widths, strict=True):
            if name in in_channels:
                adapt = nn.Conv2d(in_channels[name], width, 1, bias=False)
                self.lateral[name] = nn.Sequential(adapt, nn.BatchNorm2d(width), _Residual(width))
            if coarser is not None:
                self.from_coarser[name] = nn.Conv2d(coarser, width, 3, padding=1)
            self.refine[name] = nn.Sequential(_ChainedPooling(width), _Residual(width))
            coarser = width

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        x = None
        for name in self.names:
            own = self.lateral[name](features[name]) if name in self.lateral else None
            if x is not None:
                x = _enlarged(self.from_coarser[name](x), 2)
                own = x if own is None else own + x
            x = self.refine[name](own)
        return _enlarged(x, 2)


class TransposedDecoder(nn.Module):
    """Successive transposed convolutions from the coarsest map alone (Xiao et al. 2018, Simple Baselines)."""

    def __init__(self, in_channels: Mapping[str, int], widths: Sequence[int]) -> None:
        super().__init__()
        self.coarsest = _names(widths)[0]
        layers: list[nn.Module] = []
        for before, width in zip([in_channels[self.coarsest], *widths], widths, strict=False):
            up = nn.ConvTranspose2d(before, width, 4, stride=2, padding=1, bias=False)
            layers += [up, nn.BatchNorm2d(width), nn.ReLU()]
        self.net = nn.Sequential(*layers)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.net(features[self.coarsest])
