"""Names of torchvision's ResNets and of its Mask R-CNN, turned into Detectron2's.

torchvision's class 0 is the background, in Detectron2 it comes last; box deltas and masks of the background have no
place in Detectron2's heads.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

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
