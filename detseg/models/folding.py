"""BatchNorms multiplied into the convolutions before them: a network for prediction, without the norms' time."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from detseg.models.freezing import FrozenBatchNorm2d, scale_and_shift

# Of the largest value of a feature map: what folding may change by rounding in float32.
_TOLERANCE = 1e-3


def fold_norms(network: nn.Module, image: Tensor) -> nn.Module:
    """Return a copy of a network in evaluation mode, without those BatchNorms that follow a convolution at once.

    image: (1, C, H, W) float32, any with which `network(image)` gives feature maps. Where the copy answers otherwise
    than the network, as where a convolution has another reader than its norm, or there is nothing to fold, the network
    itself is returned.
    """
    folded = copy.deepcopy(network).requires_grad_(False)
    count = 0
    for module in list(folded.modules()):
        layers = list(module.named_children())
        for (name, conv), (norm_name, norm) in pairwise(layers):
            if _are_a_pair(conv, norm):
                setattr(module, name, _with_norm(conv, norm))
                setattr(module, norm_name, _activation_of(norm))
                count += 1
    if not count:
        return network
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        pairs = zip(network(image), folded(image), strict=True)
        same = all((one - other).abs().max() <= _TOLERANCE * one.abs().max() for one, other in pairs)
    return folded if same else network


def _are_a_pair(conv: nn.Module, norm: nn.Module) -> bool:
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, (nn.BatchNorm2d, FrozenBatchNorm2d)):
        return False
    return norm.weight is not None and norm.running_var is not None and len(norm.running_var) == conv.out_channels


def _with_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> nn.Conv2d:
    """The convolution, changed: its copy is the caller's."""
    scale, shift = scale_and_shift(norm)
    bias = shift if conv.bias is None else shift + scale * conv.bias
    conv.weight = nn.Parameter(conv.weight.detach() * scale.detach()[:, None, None, None], requires_grad=False)
    conv.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return conv


def _activation_of(norm: nn.Module) -> nn.Module:
    """What timm's BatchNorms do after their own work."""
    return getattr(norm, "act", None) or nn.Identity()
