"""ResNeSt (Zhang et al. 2020, arXiv:2004.08955): a ResNet whose 3 x 3 convolutions produce several maps, combined by
attention. Parameter names and implications of keys are those of Detectron2's fork chongruo/detectron2-ResNeSt.

Symbols: B images, R radix (maps of a convolution), C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from detseg.config.node import Config
from detseg.config.options import Options, Problems, key
from detseg.models.rcnn.deformable import Deformable, DeformableConvNorm, make_offset_conv
from detseg.models.rcnn.layers import NORMS, ConvNorm, init_msra

# Depth -> channels of the first two convolutions of the stem; the third one has twice as many.
STEM_WIDTHS = {50: 32, 101: 64, 152: 64, 200: 64, 269: 64}
# Channels of the attention layers: this fraction of the channels, and at least this number.
REDUCTION, FEWEST_CHANNELS = 4, 32


def is_resnest(cfg: Config) -> bool:
    """Whether any key is set that makes a ResNeSt."""
    keys = cfg.MODEL.RESNETS
    return keys.RADIX > 1 or keys.AVD or keys.AVG_DOWN or keys.DEEP_STEM


@dataclass(frozen=True)
class ResNeStOptions(Options):
    """radix: maps of each 3 x 3 convolution; more than 1 implies the others.

    avd: downsample in a block by average pooling after the 3 x 3. avg_down: in the shortcut too, before its
    convolution. deep_stem: three 3 x 3 convolutions instead of one of 7 x 7.
    """

    section = "MODEL.RESNETS"

    radix: int = key("RADIX", at_least=1)
    avd: bool = key("AVD")
    avg_down: bool = key("AVG_DOWN")
    deep_stem: bool = key("DEEP_STEM")

    def check(self, problems: Problems) -> None:
        keys, cfg = problems.cfg.MODEL.RESNETS, problems.cfg
        if keys.DEPTH not in STEM_WIDTHS:
            problems.add("MODEL.RESNETS.DEPTH", f"a ResNeSt (RADIX, AVD, ...) has one of {list(STEM_WIDTHS)}")
            return
        if keys.NUM_GROUPS != 1:
            problems.add("MODEL.RESNETS.NUM_GROUPS", "a ResNeSt (RADIX, AVD, ...) has one group: set 1")
        if keys.STRIDE_IN_1X1:
            problems.add("MODEL.RESNETS.STRIDE_IN_1X1", "a ResNeSt (RADIX, AVD, ...) has its strides behind: set False")
        if cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads":
            problems.add("MODEL.ROI_HEADS.NAME", "Res5ROIHeads has no res5 of a ResNeSt (RADIX, AVD, ...); use an FPN")
        width = STEM_WIDTHS[keys.DEPTH]
        # The fork ignores this key, so its configurations have Detectron2's default.
        if (self.radix > 1 or self.deep_stem) and keys.STEM_OUT_CHANNELS not in (64, 2 * width):
            problems.add("MODEL.RESNETS.STEM_OUT_CHANNELS", f"the deep stem of this depth has {2 * width} channels")
        if self.radix > 1 and keys.NORM == "GN":
            problems.add("MODEL.RESNETS.NORM", "GN would normalize single values of the attention to 0; use SyncBN")
        needs_two = keys.NORM in ("BN", "SyncBN", "nnSyncBN") and problems.training
        if self.radix > 1 and needs_two and cfg.SOLVER.IMS_PER_BATCH == 1:
            expected = f"attention has one value per image, of which MODEL.RESNETS.NORM {keys.NORM} needs two"
            problems.add("SOLVER.IMS_PER_BATCH", f"{expected}: set 2 or more, or NORM FrozenBN")


class DeepStem(nn.Module):
    """Three 3 x 3 convolutions, the first of stride 2, and max pooling; see `resnet.Stem`."""

    conv_stride = 2
    stride = 4

    def __init__(self, in_channels: int, width: int, norm: str) -> None:
        super().__init__()
        self.conv1_1 = ConvNorm(in_channels, width, 3, stride=2, norm=norm, relu=True)
        self.conv1_2 = ConvNorm(width, width, 3, norm=norm, relu=True)
        self.conv1_3 = ConvNorm(width, 2 * width, 3, norm=norm, relu=True)
        for layer in self.children():
            init_msra(layer)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of the convolutions, and of the pooling after them."""
        x = self.conv1_3(self.conv1_2(self.conv1_1(x)))
        return x, F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class SplitAttention(nn.Module):
    """A 3 x 3 convolution to R maps, averaged with weights per channel that are computed from their sum.

    deformable: settings of a deformable convolution, or None.
    """

    def __init__(
        self, channels: int, *, radix: int, norm: str, stride: int, dilation: int, deformable: Deformable | None
    ) -> None:
        super().__init__()
        self.radix = radix
        where = {"stride": stride, "dilation": dilation, "groups": radix, "bias": False}
        if deformable is None:
            self.conv: ConvNorm = ConvNorm(channels, radix * channels, 3, **where)
        else:
            self.conv = DeformableConvNorm(channels, radix * channels, deformable, **where)
        self.bn0 = NORMS[norm](radix * channels) or nn.Identity()
        inner = max(radix * channels // REDUCTION, FEWEST_CHANNELS)
        self.fc1 = nn.Conv2d(channels, inner, 1)
        self.bn1 = NORMS[norm](inner) or nn.Identity()
        self.fc2 = nn.Conv2d(inner, radix * channels, 1)

    def forward(self, x: Tensor, *raw: Tensor) -> Tensor:
        """Return (B, C, H', W') of x (B, C, H, W); raw: for a deformable convolution, see `DeformableConvNorm`."""
        maps = F.relu_(self.bn0(self.conv(x, *raw))).unflatten(1, (self.radix, -1))  # (B, R, C, H', W')
        pooled = maps.sum(dim=1).mean(dim=(2, 3), keepdim=True)
        logits = self.fc2(F.relu_(self.bn1(self.fc1(pooled))))
        weights = logits.unflatten(1, (self.radix, -1)).softmax(dim=1)
        return (weights * maps).sum(dim=1)


class ResNeStBlock(nn.Module):
    """Like `resnet.BottleneckBlock`, with `options`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        options: ResNeStOptions,
        bottleneck_channels: int,
        stride: int,
        norm: str,
        dilation: int = 1,
        deformable: Deformable | None = None,
    ) -> None:
        super().__init__()
        width, is_split = bottleneck_channels, options.radix > 1
        self.avd_stride = stride if is_split or options.avd else 1
        # The kernel size of the shortcut's pooling is its stride, and it includes an odd last row and column.
        self.pooled_stride = stride if is_split or options.avg_down else 1
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = ConvNorm(in_channels, out_channels, 1, stride=stride // self.pooled_stride, norm=norm)
        self.conv1 = ConvNorm(in_channels, width, 1, norm=norm, relu=True)
        where = {"stride": stride // self.avd_stride, "dilation": dilation}
        if is_split:
            self.conv2: nn.Module = SplitAttention(
                width, radix=options.radix, norm=norm, deformable=deformable, **where
            )
        elif deformable is None:
            self.conv2 = ConvNorm(width, width, 3, norm=norm, relu=True, **where)
        else:
            self.conv2 = DeformableConvNorm(width, width, deformable, norm=norm, relu=True, **where)
        self.conv3 = ConvNorm(width, out_channels, 1, norm=norm)
        for layer in self.children():
            if isinstance(layer, ConvNorm):
                init_msra(layer)
        # Unlike in Detectron2, channel groups with their own offsets also compute these separately.
        self.conv2_offset = (
            None if deformable is None else make_offset_conv(width, deformable, groups=deformable.groups, **where)
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.pooled_stride > 1:
            shortcut = F.avg_pool2d(x, self.pooled_stride, ceil_mode=True, count_include_pad=False)
        if self.shortcut is not None:
            shortcut = self.shortcut(shortcut)
        x = self.conv1(x)
        x = self.conv2(x) if self.conv2_offset is None else self.conv2(x, self.conv2_offset(x))
        if self.avd_stride > 1:
            x = F.avg_pool2d(x, 3, self.avd_stride, padding=1)
        return self.conv3(x, shortcut)
