"""The mask head (He et al. 2017): a small mask for each region."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.models.rcnn.layers import ConvNorm, init_msra, init_normal


class MaskHead(nn.Module):
    """Detectron2's MaskRCNNConvUpsampleHead: 3 x 3 convolutions, a 2 x 2 deconvolution, then the masks.

    class_agnostic: one mask for all classes instead of one for each.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        conv_channels: Sequence[int],
        deconv_channels: int,
        class_agnostic: bool,
        norm: str = "",
    ) -> None:
        super().__init__()
        self.class_agnostic = class_agnostic
        self.conv_names = [f"mask_fcn{index}" for index in range(1, len(conv_channels) + 1)]
        channels = in_channels
        for name, width in zip(self.conv_names, conv_channels, strict=True):
            conv = ConvNorm(channels, width, 3, norm=norm, relu=True)
            init_msra(conv)
            self.add_module(name, conv)
            channels = width
        self.deconv = nn.ConvTranspose2d(channels, deconv_channels, kernel_size=2, stride=2)
        self.predictor = ConvNorm(deconv_channels, 1 if class_agnostic else num_classes, 1)
        init_msra(self.deconv)
        init_normal(self.predictor, std=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (M, 1 or K, 2 * size, 2 * size) for pooled regions (M, C, size, size)."""
        for name in self.conv_names:
            x = getattr(self, name)(x)
        return self.predictor(F.relu_(self.deconv(x)))

    def logits_of(self, x: Tensor, classes: Tensor) -> Tensor:
        """Return the logits (M, 2 * size, 2 * size), float32, of the masks of the given classes (M,)."""
        logits = self(x)
        if self.class_agnostic:
            return logits[:, 0].float()
        return logits[torch.arange(len(logits), device=logits.device), classes].float()


def mask_loss(logits: Tensor, truth: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of logits (M, s, s) against truth (M, s, s) bool.

    counted: (M, s, s) bool, the pixels that the mean is taken over; None for all. Zero, with gradients of zero, where
    there is nothing to count.
    """
    if logits.numel() == 0:
        return logits.sum() * 0
    if counted is None:
        return F.binary_cross_entropy_with_logits(logits, truth.float())
    loss = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none")
    return (loss * counted).sum() / counted.sum().clamp(min=1)
