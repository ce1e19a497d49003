"""Names of Caffe2, in which the ImageNet backbones of Detectron and Detectron2 are stored.

conv1_w, res_conv1_bn_s, conv1_gn_s      stem.conv1.weight, stem.conv1.norm.weight
res3_1_branch2b_w, res3_1_branch2b_bn_b  res3.1.conv2.weight, res3.1.conv2.norm.bias
res3_0_branch1_gn_s                      res3.0.shortcut.norm.weight
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

_BLOCK = re.compile(r"(res[2-5])_(\d+)_branch(1|2a|2b|2c)_(\w+)")
_STEM = re.compile(r"(?:res_)?conv1_(\w+)")
_CLASSIFIER = re.compile(r"(fc\d*|pred)_(w|b)")
_LAYERS = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_VALUES = {
    "w": "weight",
    "b": "bias",
    "bn_s": "norm.weight",
    "bn_b": "norm.bias",
    "bn_rm": "norm.running_mean",
    "bn_riv": "norm.running_var",
    "gn_s": "norm.weight",
    "gn_b": "norm.bias",
}
# Where statistics were multiplied into scale and shift, these leave a BatchNorm of this epsilon the identity.
_EPSILON = 1e-5


def is_caffe2(names: Collection[str]) -> bool:
    """Whether these are the names of a Caffe2 backbone."""
    return "conv1_w" in names and "res2_0_branch2a_w" in names


def backbone_name(name: str) -> str | None:
    """Return the name below `backbone.bottom_up.`, None for a name that follows none of the rules."""
    if (match := _BLOCK.fullmatch(name)) and match[4] in _VALUES:
        return f"{match[1]}.{match[2]}.{_LAYERS[match[3]]}.{_VALUES[match[4]]}"
    if (match := _STEM.fullmatch(name)) and match[1] in _VALUES:
        return f"stem.conv1.{_VALUES[match[1]]}"
    if match := _CLASSIFIER.fullmatch(name):
        return f"{match[1]}.{_VALUES[match[2]]}"
    return None


def from_caffe2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of a Caffe2 backbone; the momentum of its training is dropped, unknown names are kept.

    BatchNorm comes as a scale and a shift with the statistics in them: statistics that change nothing are added.
    """
    weights = {name: value for name, value in state.items() if not name.endswith(("_momentum", "_order"))}
    renamed = {backbone_name(name) or name: value for name, value in weights.items()}
    for name in [backbone_name(name) for name in state if name.endswith("_bn_s")]:
        layer = name.removesuffix("weight")
        scale = renamed[name]
        renamed.setdefault(f"{layer}running_mean", torch.zeros_like(scale))
        renamed.setdefault(f"{layer}running_var", torch.ones_like(scale) - _EPSILON)
    return renamed
