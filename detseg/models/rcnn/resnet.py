"""ResNet (He et al. 2016) as in Detectron2, with its names: `stem`, then stages `res2` to `res5` of blocks.

The backbone interface, also of FPN: called with images (B, C, H, W) it returns a dict of feature maps by name;
`channels` and `strides` are dicts with the same names; H and W must be multiples of `size_divisibility`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from detseg.config.node import Config
from detseg.config.options import Options, Problems, key, part
from detseg.models.freezing import freeze
from detseg.models.rcnn.deformable import Deformable, DeformableConvNorm, make_offset_conv
from detseg.models.rcnn.layers import ConvNorm, check_group_norm, init_msra, norm_key
from detseg.models.rcnn.resnest import STEM_WIDTHS, DeepStem, ResNeStBlock, ResNeStOptions, is_resnest

BLOCKS_OF_DEPTH = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}
RESNEST_DEPTHS = (200, 269)
BASIC_BLOCK_DEPTHS = (18, 34)
STAGES = ("res2", "res3", "res4", "res5")
# The stem's convolution before pooling: a feature map of stride 2 for tiny objects, which Detectron2 lacks.
STEM_FEATURE = "res1"
# The stem's output after pooling, as named in Detectron2.
POOLED_STEM = "stem"
FEATURES = (STEM_FEATURE, POOLED_STEM, *STAGES)
# Without normalization there is no bias either, as in Detectron2's ResNet.
_Conv = partial(ConvNorm, bias=False)


def _has_bottlenecks(cfg: Config) -> bool:
    return cfg.MODEL.RESNETS.DEPTH not in BASIC_BLOCK_DEPTHS or cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads"


@dataclass(frozen=True)
class BottleneckOptions(Options):
    """Options of bottleneck blocks only. width_per_group: their inner channels in res2, per group."""

    section = "MODEL.RESNETS"

    width_per_group: int = key("WIDTH_PER_GROUP", at_least=1)
    stride_in_1x1: bool = key("STRIDE_IN_1X1")


@dataclass(frozen=True)
class ResNetOptions(Options):
    """deformable_stages: stages with deformable 3 x 3, with the settings `deformable`. Others as in ResNet."""

    section = "MODEL.RESNETS"

    depth: int = key("DEPTH", choices=tuple(BLOCKS_OF_DEPTH))
    norm: str = norm_key()
    stem_channels: int = key("STEM_OUT_CHANNELS", at_least=1)
    res2_channels: int = key("RES2_OUT_CHANNELS", at_least=1)
    groups: int = key("NUM_GROUPS", at_least=1)
    res5_dilation: int = key("RES5_DILATION", choices=(1, 2))
    deform_on_stages: tuple[bool, ...] = key("DEFORM_ON_PER_STAGE", length=len(STAGES))
    out_features: tuple[str, ...] = key("OUT_FEATURES", choices=FEATURES, not_empty=True)
    freeze_at: int = key("MODEL.BACKBONE.FREEZE_AT", at_least=0, at_most=5)
    bottleneck: BottleneckOptions | None = part(BottleneckOptions, when=_has_bottlenecks)
    deformable: Deformable | None = part(Deformable, when=lambda cfg: any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE))
    resnest: ResNeStOptions | None = part(ResNeStOptions, when=is_resnest)

    def check(self, problems: Problems) -> None:
        for name, channels in (("STEM_OUT_CHANNELS", self.stem_channels), ("RES2_OUT_CHANNELS", self.res2_channels)):
            check_group_norm(problems, "MODEL.RESNETS.NORM", f"MODEL.RESNETS.{name}", channels)
        if self.depth in BASIC_BLOCK_DEPTHS:
            if self.groups != 1 or self.res5_dilation != 1 or self.deformable is not None:
                problems.add(
                    "MODEL.RESNETS.DEPTH",
                    "depths 18 and 34 have no groups, no dilation and no deformable convolution; use 50 or more",
                )
            return
        if self.depth in RESNEST_DEPTHS and self.resnest is None:
            problems.add("MODEL.RESNETS.DEPTH", f"{self.depth} is a depth of ResNeSt: set MODEL.RESNETS.RADIX 2")
        width = self.groups * self.bottleneck.width_per_group
        check_group_norm(problems, "MODEL.RESNETS.NORM", "MODEL.RESNETS.WIDTH_PER_GROUP", width)
        if self.deformable is not None and width % self.deformable.groups:
            problems.add(
                "MODEL.RESNETS.DEFORM_NUM_GROUPS",
                "expected a divisor of MODEL.RESNETS.NUM_GROUPS x MODEL.RESNETS.WIDTH_PER_GROUP",
            )


class Stem(nn.Module):
    """7 x 7 convolution and max pooling, each of stride 2."""

    conv_stride = 2
    stride = 4

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = _Conv(in_channels, out_channels, 7, stride=2, norm=norm, relu=True)
        init_msra(self.conv1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of the convolution, and of the pooling after it."""
        x = self.conv1(x)
        return x, F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.shortcut = make_shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = _Conv(in_channels, out_channels, 3, stride=stride, norm=norm, relu=True)
        self.conv2 = _Conv(out_channels, out_channels, 3, norm=norm)
        init_block(self)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.conv2(self.conv1(x), shortcut)


class BottleneckBlock(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut.

    stride_in_1x1: the stride is in the first 1 x 1 (MSRA's weights), not in the 3 x 3 (torchvision's). deformable:
    settings of a deformable 3 x 3, or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int,
        norm: str,
        stride_in_1x1: bool,
        groups: int = 1,
        dilation: int = 1,
        deformable: Deformable | None = None,
    ) -> None:
        super().__init__()
        width = bottleneck_channels
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = make_shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = _Conv(in_channels, width, 1, stride=stride_1x1, norm=norm, relu=True)
        where = {"stride": stride_3x3, "dilation": dilation}
        if deformable is None:
            self.conv2: nn.Module = _Conv(width, width, 3, groups=groups, norm=norm, relu=True, **where)
        else:
            settings = {"groups": groups, "norm": norm, "relu": True, "bias": False, **where}
            self.conv2 = DeformableConvNorm(width, width, deformable, **settings)
        self.conv3 = _Conv(width, out_channels, 1, norm=norm)
        init_block(self)
        self.conv2_offset = None if deformable is None else make_offset_conv(width, deformable, **where)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = self.conv1(x)
        x = self.conv2(x) if self.conv2_offset is None else self.conv2(x, self.conv2_offset(x))
        return self.conv3(x, shortcut)


def make_shortcut(in_channels: int, out_channels: int, stride: int, norm: str) -> ConvNorm | None:
    """Return the 1 x 1 projection if the number of channels changes, else None."""
    if in_channels == out_channels:
        return None
    return _Conv(in_channels, out_channels, 1, stride=stride, norm=norm)


def init_block(block: nn.Module) -> None:
    """Initialize the weights of every convolution of a block."""
    for layer in block.children():
        if isinstance(layer, nn.Conv2d):
            init_msra(layer)


class ResNet(nn.Module):
    """A ResNet, or with groups > 1 a ResNeXt (Xie et al. 2017), randomly initialized.

    It has the stages up to the last one in `out_features`, which are among FEATURES. depth: one of BLOCKS_OF_DEPTH.
    Channels double from stage to stage, starting from res2_channels (the blocks' output) and groups x width_per_group
    (inside a bottleneck block; basic blocks have none). res5_dilation: 2 keeps res5 at the stride of res4 and dilates
    its 3 x 3 convolutions. deformable_stages: with deformable 3 x 3. resnest: options of a ResNeSt, or None. freeze_at:
    see `freeze`.
    """

    def __init__(
        self,
        *,
        depth: int,
        in_channels: int,
        stem_channels: int,
        res2_channels: int,
        norm: str,
        width_per_group: int = 64,
        groups: int = 1,
        stride_in_1x1: bool = True,
        res5_dilation: int = 1,
        deformable: Deformable | None = None,
        deformable_stages: Sequence[str] = (),
        resnest: ResNeStOptions | None = None,
        out_features: Sequence[str] = STAGES,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        self.stage_names = STAGES[: max(STAGES.index(name) + 1 if name in STAGES else 0 for name in out_features)]
        self.channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        if resnest is not None and (resnest.radix > 1 or resnest.deep_stem):
            stem_channels = 2 * STEM_WIDTHS[depth]
            self.stem: nn.Module = DeepStem(in_channels, STEM_WIDTHS[depth], norm)
        else:
            self.stem = Stem(in_channels, stem_channels, norm)
        if STEM_FEATURE in out_features:
            self.channels[STEM_FEATURE], self.strides[STEM_FEATURE] = stem_channels, Stem.conv_stride
        if POOLED_STEM in out_features:
            self.channels[POOLED_STEM], self.strides[POOLED_STEM] = stem_channels, Stem.stride
        stages = []
        channels, total_stride = stem_channels, Stem.stride
        for index, name in enumerate(self.stage_names):
            dilation = res5_dilation if name == "res5" else 1
            stride = 1 if index == 0 or dilation > 1 else 2
            block: Callable[..., nn.Module] = partial(BasicBlock, norm=norm)
            if depth not in BASIC_BLOCK_DEPTHS:
                kind: Callable[..., nn.Module] = partial(ResNeStBlock, options=resnest)
                if resnest is None:
                    kind = partial(BottleneckBlock, stride_in_1x1=stride_in_1x1, groups=groups)
                block = partial(
                    kind,
                    bottleneck_channels=groups * width_per_group * 2**index,
                    norm=norm,
                    dilation=dilation,
                    deformable=deformable if name in deformable_stages else None,
                )
            count, out_channels = BLOCKS_OF_DEPTH[depth][index], res2_channels * 2**index
            stages.append(make_stage(block, count, in_channels=channels, out_channels=out_channels, stride=stride))
            channels, total_stride = out_channels, total_stride * stride
            if name in out_features:
                self.channels[name], self.strides[name] = channels, total_stride
        for name, stage in zip(self.stage_names, stages, strict=True):
            self.add_module(name, stage)
        self.size_divisibility = 0
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {name: (B, channels[name], H / strides[name], W / strides[name])}."""
        features = {}
        fine, x = self.stem(x)
        if STEM_FEATURE in self.channels:
            features[STEM_FEATURE] = fine
        if POOLED_STEM in self.channels:
            features[POOLED_STEM] = x
        for name in self.stage_names:
            x = getattr(self, name)(x)
            if name in self.channels:
                features[name] = x
        return features

    def freeze(self, freeze_at: int) -> None:
        """Freeze the first parts, counted like MODEL.BACKBONE.FREEZE_AT: 1 the stem, 2 also res2, and so on."""
        parts = [self.stem, *(getattr(self, name) for name in self.stage_names)]
        for frozen in parts[:freeze_at]:
            freeze(frozen)


def make_stage(
    block: Callable[..., nn.Module], count: int, *, in_channels: int, out_channels: int, stride: int
) -> nn.Sequential:
    """Return `count` blocks, block(in_channels, out_channels, stride=...) each; the first one has the stride."""
    first = block(in_channels, out_channels, stride=stride)
    return nn.Sequential(first, *(block(out_channels, out_channels, stride=1) for _ in range(count - 1)))
