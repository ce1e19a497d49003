"""Convert the names of weights in Caffe2 (Detectron's ImageNet backbones) and torchvision to Detectron2's.

    conv1_w, res_conv1_bn_s, conv1_gn_s      stem.conv1.weight, stem.conv1.norm.weight
    res3_1_branch2b_w, res3_1_branch2b_bn_b  res3.1.conv2.weight, res3.1.conv2.norm.bias
    res3_0_branch1_gn_s                      res3.0.shortcut.norm.weight
    layer2.1.conv2.weight, layer2.1.bn2.bias res3.1.conv2.weight, res3.1.conv2.norm.bias

torchvision's class 0 is background, which is last in Detectron2; Detectron2's heads have no box deltas and masks for
the background.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from detseg.errors import WeightsError
from detseg.models.weights.files import Weights
from detseg.models.weights.timm_names import PLACE, from_efficientnet_pytorch, is_efficientnet_pytorch, names_in_model

_logger = logging.getLogger(__name__)

TORCHVISION = "torchvision"

_CAFFE2_BLOCK = re.compile(r"(res[2-5])_(\d+)_branch(1|2a|2b|2c)_(\w+)")
_CAFFE2_STEM = re.compile(r"(?:res_)?conv1_(\w+)")
_CAFFE2_CLASSIFIER = re.compile(r"(fc\d*|pred)_(w|b)")
_CAFFE2_LAYERS = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_CAFFE2_VALUES = {
    "w": "weight",
    "b": "bias",
    "bn_s": "norm.weight",
    "bn_b": "norm.bias",
    "bn_rm": "norm.running_mean",
    "bn_riv": "norm.running_var",
    "gn_s": "norm.weight",
    "gn_b": "norm.bias",
}
_RESNET = re.compile(r"(?:layer(\d)\.(\d+)\.)?(?:(conv|bn)(\d)|downsample\.([01]))\.(\w+)")
# Parts of torchvision's Mask R-CNN that count convolutions: where, Detectron2's name, and what is added to the number.
# "3.0.weight" is the convolution 3, "3.1.weight" its norm, "3.weight" a convolution without one.
_CONVOLUTIONS = {
    "backbone.fpn.inner_blocks.": ("backbone.fpn_lateral", 2),
    "backbone.fpn.layer_blocks.": ("backbone.fpn_output", 2),
    "roi_heads.box_head.": ("roi_heads.box_head.conv", 1),
    "roi_heads.mask_head.": ("roi_heads.mask_head.mask_fcn", 1),
    "rpn.head.conv.": ("proposal_generator.rpn_head.conv.conv", 0),
}
_CONVOLUTION = re.compile(r"(\d)(?:\.([01]))?\.(\w+)")
# Its other parts, in the order of the search.
_PARTS = {
    "rpn.head.cls_logits.": "proposal_generator.rpn_head.objectness_logits.",
    "rpn.head.bbox_pred.": "proposal_generator.rpn_head.anchor_deltas.",
    "roi_heads.box_head.fc6.": "roi_heads.box_head.fc1.",
    "roi_heads.box_head.fc7.": "roi_heads.box_head.fc2.",
    "roi_heads.box_head.5.": "roi_heads.box_head.fc1.",  # version 2: four convolutions, flatten, one layer
    "roi_heads.box_predictor.": "roi_heads.box_predictor.",
    "roi_heads.mask_head.mask_fcn": "roi_heads.mask_head.mask_fcn",
    "roi_heads.mask_predictor.conv5_mask.": "roi_heads.mask_head.deconv.",
    "roi_heads.mask_predictor.mask_fcn_logits.": "roi_heads.mask_head.predictor.",
}
# The only convolution of the RPN has no number in Detectron2.
_ONE_RPN_CONVOLUTION = {
    "rpn.head.conv.0.0.": "proposal_generator.rpn_head.conv.",
    "rpn.head.conv.weight": "proposal_generator.rpn_head.conv.weight",
    "rpn.head.conv.bias": "proposal_generator.rpn_head.conv.bias",
}
# Weight file that torchvision uses with an epsilon of 0 in its norms, and the epsilon here.
_WITHOUT_EPSILON = "maskrcnn_resnet50_fpn_coco-bf2d0c1e"
_EPSILON = 1e-5
# The part after the model's own prefix in the name of a backbone's entry.
_BARE = re.compile(r"(?:.+\.)?((?:stem|res[2-5])\..+)")


_WRAPPERS = ("module.", "_orig_mod.", "model.")  # DistributedDataParallel, torch.compile, Lightning


def without_shared_prefix(state: Mapping[str, Tensor], own: Collection[str] = ()) -> Mapping[str, Tensor]:
    """Strip a prefix that wrappers of models add to all names, unless the model's own names have it; log it."""
    stripped = ""
    while state and not any(name in own for name in state):
        prefix = next((one for one in _WRAPPERS if all(name.startswith(one) for name in state)), None)
        if prefix is None or any(name == prefix for name in state):
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        stripped += prefix
    if stripped:
        _logger.info("all names of the weights begin with %s, which was stripped", stripped)
    return state


def is_caffe2(names: Collection[str]) -> bool:
    """Whether these are names of a Caffe2 backbone."""
    return "conv1_w" in names and "res2_0_branch2a_w" in names


def backbone_name(name: str) -> str | None:
    """Return Detectron2's name, below `backbone.bottom_up.`, of a Caffe2 entry; None if there is none."""
    if (match := _CAFFE2_BLOCK.fullmatch(name)) and match[4] in _CAFFE2_VALUES:
        return f"{match[1]}.{match[2]}.{_CAFFE2_LAYERS[match[3]]}.{_CAFFE2_VALUES[match[4]]}"
    if (match := _CAFFE2_STEM.fullmatch(name)) and match[1] in _CAFFE2_VALUES:
        return f"stem.conv1.{_CAFFE2_VALUES[match[1]]}"
    if match := _CAFFE2_CLASSIFIER.fullmatch(name):
        return f"{match[1]}.{_CAFFE2_VALUES[match[2]]}"
    return None


def from_caffe2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of a Caffe2 backbone; the momentum of its training is dropped, unknown names are kept.

    BatchNorm is stored as scale and shift with the statistics folded in: statistics are added that make a BatchNorm
    with the usual epsilon the identity.
    """
    weights = {name: value for name, value in state.items() if not name.endswith(("_momentum", "_order"))}
    renamed = {backbone_name(name) or name: value for name, value in weights.items()}
    for name in [backbone_name(name) for name in state if name.endswith("_bn_s")]:
        layer, scale = name.removesuffix("weight"), renamed[name]
        renamed.setdefault(f"{layer}running_mean", torch.zeros_like(scale))
        renamed.setdefault(f"{layer}running_var", torch.ones_like(scale) - _EPSILON)
    return renamed


def resnet_name(name: str) -> str | None:
    """Return Detectron2's name, below `backbone.bottom_up.`, of a torchvision ResNet's entry; None for other names."""
    match = _RESNET.fullmatch(name)
    if match is None:
        return None
    stage, block, kind, number, downsample, value = match.groups()
    layer = f"conv{number}" if kind else "shortcut"
    norm = "norm." if kind == "bn" or downsample == "1" else ""
    return f"{f'res{int(stage) + 1}.{block}' if stage else 'stem'}.{layer}.{norm}{value}"


def from_mask_rcnn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's Mask R-CNN, version 1 or 2, and move its background class to the end."""
    parts = _PARTS if "rpn.head.conv.1.0.weight" in state else _PARTS | _ONE_RPN_CONVOLUTION
    renamed = {}
    for name, value in state.items():
        if name.startswith("roi_heads.box_predictor.cls_score."):
            value = torch.cat([value[1:], value[:1]])
        elif name.startswith("roi_heads.box_predictor.bbox_pred."):
            value = value[4:].clone()
        elif name.startswith("roi_heads.mask_predictor.mask_fcn_logits."):
            value = value[1:].clone()
        renamed[_mask_rcnn_name(name, parts) or name] = value
    return renamed


def _mask_rcnn_name(name: str, parts: Mapping[str, str]) -> str | None:
    if name.startswith("backbone.body."):
        below = resnet_name(name.removeprefix("backbone.body."))
        return below and f"backbone.bottom_up.{below}"
    for start, new in parts.items():
        if name.startswith(start):
            return new + name.removeprefix(start)
    for start, (new, shift) in _CONVOLUTIONS.items():
        match = _CONVOLUTION.fullmatch(name.removeprefix(start)) if name.startswith(start) else None
        if match:
            return f"{new}{int(match[1]) + shift}.{'norm.' if match[2] == '1' else ''}{match[3]}"
    return None


def detectron2_names(stored: Weights, file_name: str = "") -> Weights:
    """Rename Caffe2's or torchvision's names to Detectron2's, and EfficientNet-PyTorch's to timm's.

    Names of only a backbone have no prefix.
    """
    state = _with_usual_epsilon(without_shared_prefix(stored.state), file_name)
    if is_efficientnet_pytorch(state):
        return Weights(from_efficientnet_pytorch(state), stored.origin)
    if is_caffe2(state):
        return Weights(from_caffe2(state), "caffe2")
    if "backbone.body.conv1.weight" in state and "rpn.head.cls_logits.weight" in state:
        return Weights(from_mask_rcnn(state), TORCHVISION)
    if _is_torchvision_resnet(state):
        return Weights({resnet_name(name) or name: value for name, value in state.items()}, TORCHVISION)
    return Weights(dict(state), stored.origin)


def names_of_model(stored: Weights, own: Collection[str], file_name: str = "") -> Weights:
    """Rename to the names of a model, `own`.

    Raises:
        WeightsError: entries of a backbone that fit several places of the model.
    """
    state = _with_usual_epsilon(without_shared_prefix(stored.state, own), file_name)
    if "backbone.body.conv1.weight" in own:  # a model with torchvision's own names
        prefix = "backbone.body." if _is_torchvision_resnet(state) else ""
        return Weights({prefix + name: value for name, value in state.items()}, TORCHVISION)
    if any(PLACE in name for name in own):  # a model with a network of timm
        if is_efficientnet_pytorch(state):
            state = from_efficientnet_pytorch(state)
        return Weights({new: state[name] for name, new in names_in_model(state, own)}, stored.origin)
    renamed = detectron2_names(Weights(dict(state), stored.origin))
    if any(name in own for name in renamed.state):
        return renamed
    # A bare backbone goes where the model has it: res5 of a C4 model is in roi_heads.
    places: dict[str, str] = {}
    for name in own:
        if match := _BARE.fullmatch(name):
            if match[1] in places:
                raise WeightsError(f"the model has two places for {match[1]}: {places[match[1]]} and {name}")
            places[match[1]] = name
    return Weights({places.get(name, name): value for name, value in renamed.state.items()}, renamed.origin)


def _is_torchvision_resnet(names: Collection[str]) -> bool:
    return "conv1.weight" in names and "layer1.0.conv1.weight" in names


def _with_usual_epsilon(state: Mapping[str, Tensor], file_name: str) -> Mapping[str, Tensor]:
    """Turn torchvision's COCO weights of version 1, which it uses with an epsilon of 0, into those for our epsilon."""
    if _WITHOUT_EPSILON not in file_name:
        return state
    return {
        name: value - _EPSILON if name.startswith("backbone.body.") and name.endswith("running_var") else value
        for name, value in state.items()
    }
