"""Deformable convolution: the sampling positions of the kernel are predicted by a second convolution."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detseg.config.options import Options, key
from detseg.models.rcnn.layers import ConvNorm
from detseg.models.torchvision_ops import deform_conv2d

KERNEL_SIZE = 3


@dataclass(frozen=True)
class Deformable(Options):
    """Settings of a deformable convolution.

    modulated: the samples are also weighted (version 2, Zhu et al. 2019). groups: of channels that share offsets.
    """

    section = "MODEL.RESNETS"

    modulated: bool = key("DEFORM_MODULATED", default=False)
    groups: int = key("DEFORM_NUM_GROUPS", default=1, at_least=1)


class DeformableConvNorm(ConvNorm):
    """A 3 x 3 ConvNorm whose samples are shifted by offsets; settings: of ConvNorm."""

    def __init__(self, in_channels: int, out_channels: int, deformable: Deformable, **settings: Any) -> None:
        super().__init__(in_channels, out_channels, KERNEL_SIZE, **settings)
        self.deformable = deformable

    def forward(self, x: Tensor, raw: Tensor) -> Tensor:
        """Convolve x (B, C, H, W); raw: the output of `make_offset_conv` with the same settings."""
        samples = self.deformable.groups * KERNEL_SIZE**2
        mask = raw[:, 2 * samples :].sigmoid() if self.deformable.modulated else None
        return self._convolve(x, partial(self._deform, offset=raw[:, : 2 * samples], mask=mask))

    def _deform(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, offset: Tensor, mask: Tensor | None) -> Tensor:
        if len(x) == 0:  # the operator refuses an empty batch
            return self._conv_forward(x, weight, bias)
        return deform_conv2d(
            x,
            offset,
            weight,
            bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=mask,
        ).to(x.dtype)


def make_offset_conv(
    in_channels: int, deformable: Deformable, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> ConvNorm:
    """Return the convolution that predicts offsets, zero at first: an undeformed 3 x 3.

    Its output (B, G * 9 * 2, H', W'), modulated (B, G * 9 * 3, H', W'), has y and x of each sample alternately, then
    the logits of the weights, which are one half at first.
    """
    per_sample = 3 if deformable.modulated else 2
    conv = ConvNorm(
        in_channels,
        per_sample * deformable.groups * KERNEL_SIZE**2,
        KERNEL_SIZE,
        stride=stride,
        dilation=dilation,
        groups=groups,
    )
    with torch.no_grad():
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    return conv
