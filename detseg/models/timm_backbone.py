"""timm backbones: any of its networks with feature maps, of whatever architecture.

The feature map of stride 2**n is called `resn`, as in a ResNet here: res2 has stride 4. If a network has several of one
stride, the last is used. The backbone interface is that of rcnn/resnet.py.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detseg.config.options import Options, Problems, key
from detseg.errors import ConfigError, first_line
from detseg.models.depthwise import DepthwiseConv2d, is_depthwise
from detseg.models.freezing import freeze_norms

INSTALL = 'it needs the package timm: pip install timm, or detseg with "[pretrained]"'
# Image size of a trial run: networks with a fixed input size fail, whatever that is.
_TRIED_SIZE = (96, 160)


@dataclass(frozen=True)
class Level:
    """A feature map. index: among those of the network. parameters: names of the parameters that it depends on."""

    index: int
    channels: int
    parameters: frozenset[str]


@dataclass(frozen=True)
class TimmNetwork:
    """levels: by log2 of the stride. settings: arguments of timm.create_model for images of any size. has_batch_norm:
    whether one of its layers is a BatchNorm.
    """

    levels: dict[int, Level]
    settings: dict[str, Any]
    has_batch_norm: bool

    @property
    def features(self) -> list[str]:
        """The names of its feature maps, finest first."""
        return [f"res{level}" for level in self.levels]


@functools.cache
def timm_network(name: str) -> TimmNetwork:
    """Inspect a timm network, without allocating its weights.

    Raises:
        ConfigError: timm is not installed, has no such network, or it has no feature maps for images of any size.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"{INSTALL} ({error})") from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        names = f"similar names: {', '.join(near)}" if near else "timm.list_models() lists all"
        raise ConfigError(f"timm {timm.__version__} has no such network; {names}")
    try:
        # Window transformers have their own option for other sizes than that of their training.
        settings = {"strict_img_size": False} if timm.get_pretrained_cfg(name).fixed_input_size else {}
        with torch.device("meta"):
            try:
                network = timm.create_model(name, features_only=True, **settings).eval()
            except TypeError:
                settings = {}
                network = timm.create_model(name, features_only=True).eval()
            maps = _channels_first(network, network(torch.zeros(1, 3, *_TRIED_SIZE)))
    except Exception as error:  # of any kind: networks that are no feature extractors fail anywhere
        raise ConfigError(
            f"timm's {name} has no feature maps, or not for images of any size: {first_line(error)}"
        ) from None
    names = [name for name, _ in network.named_parameters()]
    levels = {}
    for index, (one, stride) in enumerate(zip(maps, network.feature_info.reduction(), strict=True)):
        if tuple(one.shape[2:]) != tuple(length // stride for length in _TRIED_SIZE) or stride == 1:
            continue
        gradients = torch.autograd.grad(one.sum(), list(network.parameters()), retain_graph=True, allow_unused=True)
        used = frozenset(name for name, gradient in zip(names, gradients, strict=True) if gradient is not None)
        levels[int(math.log2(stride))] = Level(index, one.shape[1], used)
    has_norm = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    return TimmNetwork(levels, settings, has_norm)


def _channels_first(network: nn.Module, maps: Sequence[Tensor]) -> list[Tensor]:
    """Feature maps (B, C, H, W); some transformers give (B, H, W, C)."""
    if getattr(network, "output_fmt", None) == "NHWC":
        return [one.permute(0, 3, 1, 2) for one in maps]
    return list(maps)


@dataclass(frozen=True)
class TimmOptions(Options):
    """norm: `own`, the network's layers unchanged, or `FrozenBN`. freeze_at: see TimmBackbone."""

    section = "MODEL.TIMM"

    name: str = key("NAME")
    norm: str = key("NORM", choices=("own", "FrozenBN"))
    freeze_at: int = key("MODEL.BACKBONE.FREEZE_AT", at_least=0, at_most=5)

    def check(self, problems: Problems) -> None:
        try:
            network = timm_network(self.name)
        except ConfigError as error:
            problems.add("MODEL.TIMM.NAME", str(error))
            return
        if self.norm == "FrozenBN" and not network.has_batch_norm:
            problems.add("MODEL.TIMM.NORM", f"{self.name} has no BatchNorm: use own")
        if self.freeze_at and self.freeze_at < min(network.levels):
            expected = f"{self.name} begins with stride {2 ** min(network.levels)}: 0 or at least {min(network.levels)}"
            problems.add("MODEL.BACKBONE.FREEZE_AT", expected)

    @property
    def features(self) -> list[str]:
        """The names of all feature maps that the network has."""
        return timm_network(self.name).features


class TimmBackbone(nn.Module):
    """A timm network, randomly initialized, with its feature maps `out_features` (res1 .. res5).

    norm: see TimmOptions. freeze_at: parameters for feature maps with strides up to 2**freeze_at are not trained, and
    have no backward pass; 0 trains everything. In the state_dict the names are timm's own, after `timm.`.
    """

    def __init__(
        self, name: str, *, in_channels: int, out_features: Sequence[str], norm: str = "own", freeze_at: int = 0
    ) -> None:
        super().__init__()
        import timm

        known = timm_network(name)
        levels = sorted(int(feature.removeprefix("res")) for feature in out_features)
        chosen = [known.levels[level] for level in levels]
        self.timm = timm.create_model(
            name,
            features_only=True,
            in_chans=in_channels,
            out_indices=[level.index for level in chosen],
            **known.settings,
        )
        self.names = [f"res{level}" for level in levels]
        self.channels = {name: level.channels for name, level in zip(self.names, chosen, strict=True)}
        self.strides = {name: 2**level for name, level in zip(self.names, levels, strict=True)}
        self.size_divisibility = 0
        # Some networks have layers after the coarsest level, which are not used.
        used = frozenset().union(*(level.parameters for level in chosen))
        frozen = frozenset().union(*(one.parameters for level, one in known.levels.items() if level <= freeze_at))
        for parameter_name, parameter in self.timm.named_parameters():
            if parameter_name in frozen or parameter_name not in used:
                parameter.requires_grad = False
        freeze_norms(self.timm, all_of_them=norm == "FrozenBN")
        _replace_depthwise(self.timm)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {name: (B, channels[name], H / strides[name], W / strides[name])}; strides divide H and W."""
        return dict(zip(self.names, _channels_first(self.timm, self.timm(x)), strict=True))


def _replace_depthwise(network: nn.Module) -> None:
    from timm.layers import Conv2dSame

    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            # timm's other convolution classes have their own padding or weight generation.
            if is_depthwise(layer) and type(layer) in (nn.Conv2d, Conv2dSame):
                setattr(module, name, DepthwiseConv2d.of(layer, same=type(layer) is Conv2dSame))
