"""Names of Caffe2, in which the ImageNet backbones of Detectron and Detectron2 are stored.

conv1_w, res_conv1_bn_s, conv1_gn_s      stem.conv1.weight, stem.conv1.norm.weight
res3_1_branch2b_w, res3_1_branch2b_bn_b  res3.1.conv2.weight, res3.1.conv2.norm.bias
res3_0_branch1_gn_s                      res3.0.shortcut.norm.weight
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from detseg.errors import WeightsError
from detseg.models.weights.files import ORIGIN, StoredWeights

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


# Names of torchvision's ResNets and of its Mask R-CNN, turned into Detectron2's.
#
# torchvision's class 0 is the background, in Detectron2 it comes last; box deltas and masks of the background have no
# place in Detectron2's heads.

_RESNET_RULES = (
    (re.compile(r"conv1\.(\w+)"), r"stem.conv1.\1"),
    (re.compile(r"bn1\.(\w+)"), r"stem.conv1.norm.\1"),
    (re.compile(r"layer(\d)\.(\d+)\.conv(\d)\.(\w+)"), r"res{stage}.\2.conv\3.\4"),
    (re.compile(r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)"), r"res{stage}.\2.conv\3.norm.\4"),
    (re.compile(r"layer(\d)\.(\d+)\.downsample\.0\.(\w+)"), r"res{stage}.\2.shortcut.\3"),
    (re.compile(r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)"), r"res{stage}.\2.shortcut.norm.\3"),
)
_V1_EPSILON = 1e-5


def is_torchvision_resnet(names: Collection[str]) -> bool:
    """Whether these are the names of a ResNet, ResNeXt or wide ResNet of torchvision."""
    return "conv1.weight" in names and "layer1.0.conv1.weight" in names


def is_torchvision_mask_rcnn(names: Collection[str]) -> bool:
    """Whether these are the names of a Faster or Mask R-CNN with FPN of torchvision."""
    return "backbone.body.conv1.weight" in names and "rpn.head.cls_logits.weight" in names


def from_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a ResNet's entries to those below `backbone.bottom_up.`; its classifier, `fc`, keeps its name."""
    return {resnet_name(name) or name: value for name, value in state.items()}


def resnet_name(name: str) -> str | None:
    """Return Detectron2's name of a torchvision ResNet's entry, None where there is none."""
    for pattern, replacement in _RESNET_RULES:
        if match := pattern.fullmatch(name):
            stage = str(int(match[1]) + 1) if "{stage}" in replacement else ""
            return match.expand(replacement.replace("{stage}", stage))
    return None


def from_mask_rcnn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's Mask R-CNN, version 1 or 2, and move its background class to the end."""
    several = "rpn.head.conv.1.0.weight" in state
    renamed = {}
    for name, value in state.items():
        new = _mask_rcnn_name(name, several_rpn_convolutions=several)
        renamed[new or name] = _without_background(name, value)
    return renamed


def without_epsilon(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state for norms with an epsilon of 1e-5, whose own norms had none.

    torchvision's COCO weights of version 1 are used with an epsilon of 0 by torchvision itself.
    """
    return {
        name: value - _V1_EPSILON if name.startswith("backbone.body.") and name.endswith("running_var") else value
        for name, value in state.items()
    }


def _without_background(name: str, value: Tensor) -> Tensor:
    if name.startswith("roi_heads.box_predictor.cls_score."):
        return torch.cat([value[1:], value[:1]])
    if name.startswith("roi_heads.box_predictor.bbox_pred."):
        return value[4:].clone()
    if name.startswith("roi_heads.mask_predictor.mask_fcn_logits."):
        return value[1:].clone()
    return value


def _mask_rcnn_name(name: str, *, several_rpn_convolutions: bool) -> str | None:
    if name.startswith("backbone.body."):
        below = resnet_name(name.removeprefix("backbone.body."))
        return below and f"backbone.bottom_up.{below}"
    for start, function in _PARTS.items():
        if name.startswith(start):
            return function(name.removeprefix(start), several_rpn_convolutions)
    return None


def _conv(rest: str, first: int, name: str) -> str | None:
    """`3.0.weight`, `3.1.weight` (its norm) or `3.weight` -> `name`, the number 3 + first, (norm.)weight."""
    match = re.fullmatch(r"(\d)(?:\.([01]))?\.(\w+)", rest)
    if match is None:
        return None
    norm = "norm." if match[2] == "1" else ""
    return f"{name}{int(match[1]) + first}.{norm}{match[3]}"


def _box_head(rest: str, _: bool) -> str | None:
    if match := re.fullmatch(r"fc([67])\.(\w+)", rest):
        return f"roi_heads.box_head.fc{int(match[1]) - 5}.{match[2]}"
    if match := re.fullmatch(r"5\.(weight|bias)", rest):  # version 2: four convolutions, flatten, one layer
        return f"roi_heads.box_head.fc1.{match[1]}"
    return _conv(rest, 1, "roi_heads.box_head.conv")


def _mask_head(rest: str, _: bool) -> str | None:
    if match := re.fullmatch(r"mask_fcn(\d)\.(\w+)", rest):
        return f"roi_heads.mask_head.mask_fcn{match[1]}.{match[2]}"
    return _conv(rest, 1, "roi_heads.mask_head.mask_fcn")


def _rpn_conv(rest: str, several: bool) -> str | None:
    if rest in ("weight", "bias"):
        return f"proposal_generator.rpn_head.conv.{rest}"
    if several:
        return _conv(rest, 0, "proposal_generator.rpn_head.conv.conv")
    match = re.fullmatch(r"0\.0\.(\w+)", rest)
    return match and f"proposal_generator.rpn_head.conv.{match[1]}"


_PARTS = {
    "backbone.fpn.inner_blocks.": lambda rest, _: _conv(rest, 2, "backbone.fpn_lateral"),
    "backbone.fpn.layer_blocks.": lambda rest, _: _conv(rest, 2, "backbone.fpn_output"),
    "rpn.head.conv.": _rpn_conv,
    "rpn.head.cls_logits.": lambda rest, _: f"proposal_generator.rpn_head.objectness_logits.{rest}",
    "rpn.head.bbox_pred.": lambda rest, _: f"proposal_generator.rpn_head.anchor_deltas.{rest}",
    "roi_heads.box_head.": _box_head,
    "roi_heads.box_predictor.": lambda rest, _: f"roi_heads.box_predictor.{rest}",
    "roi_heads.mask_head.": _mask_head,
    "roi_heads.mask_predictor.conv5_mask.": lambda rest, _: f"roi_heads.mask_head.deconv.{rest}",
    "roi_heads.mask_predictor.mask_fcn_logits.": lambda rest, _: f"roi_heads.mask_head.predictor.{rest}",
}


# From the names of a file of weights to those of a model.

TORCHVISION = "torchvision"
# Weights that torchvision uses with norms of epsilon 0, by the name of their file.
_WITHOUT_EPSILON = "maskrcnn_resnet50_fpn_coco-bf2d0c1e"
# What follows the model's own prefix in the name of a backbone's entry.
_BARE = re.compile(r"(?:.+\.)?((?:stem|res[2-5])\..+)")


@dataclass(frozen=True)
class NamedWeights:
    """state: tensors by name. origin: "torchvision", "caffe2" or "" for detseg's and Detectron2's own."""

    state: dict[str, Tensor]
    origin: str


def detectron2_names(stored: StoredWeights, file_name: str = "") -> NamedWeights:
    """Rename to Detectron2's names what has those of Caffe2 or torchvision; the names of a backbone alone stay bare."""
    state = _without_epsilon(stored.state, file_name)
    if is_caffe2(state):
        return NamedWeights(from_caffe2(state), "caffe2")
    if is_torchvision_mask_rcnn(state):
        return NamedWeights(from_mask_rcnn(state), TORCHVISION)
    if is_torchvision_resnet(state):
        return NamedWeights(from_resnet(state), TORCHVISION)
    return NamedWeights(dict(state), stored.metadata.get(ORIGIN, ""))


def names_of_model(stored: StoredWeights, own: Collection[str], file_name: str = "") -> NamedWeights:
    """Rename to the names of a model, `own`.

    Raises:
        WeightsError: entries of a backbone that fit several places of the model.
    """
    state = _without_epsilon(stored.state, file_name)
    if "backbone.body.conv1.weight" in own:  # a model with torchvision's own names
        if is_torchvision_resnet(state):
            state = {f"backbone.body.{name}": value for name, value in state.items()}
        return NamedWeights(dict(state), TORCHVISION)
    renamed = detectron2_names(StoredWeights(state, stored.metadata))
    if any(name in own for name in renamed.state):
        return renamed
    return NamedWeights(_with_prefixes(renamed.state, own), renamed.origin)


def is_backbone_alone(state: Collection[str]) -> bool:
    """Whether the names are those of a backbone without the prefix that it has in a model."""
    return "stem.conv1.weight" in state


def _without_epsilon(state: Mapping[str, Tensor], file_name: str) -> Mapping[str, Tensor]:
    return without_epsilon(state) if _WITHOUT_EPSILON in file_name else state


def _with_prefixes(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Put a bare backbone where the model has it: res5 of a C4 model is in roi_heads."""
    places: dict[str, str] = {}
    for name in own:
        if match := _BARE.fullmatch(name):
            if match[1] in places:
                raise WeightsError(f"the model has two places for {match[1]}: {places[match[1]]} and {name}")
            places[match[1]] = name
    return {places.get(name, name): value for name, value in state.items()}
