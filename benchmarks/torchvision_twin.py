"""The native Mask R-CNN R50-FPN and torchvision's, of the same size, settings and weights.

torchvision's maskrcnn_resnet50_fpn freezes all norms, the stem and the first stage when it starts from pretrained
weights; both models are laid out so, though the weights are random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

from detseg.config import load_flat_config
from detseg.models.base import Segmenter
from detseg.models.table import build_model
from detseg.structures import Sample

LEVELS = ("res2", "res3", "res4", "res5")
PYRAMID = ("p2", "p3", "p4", "p5", "p6")


@dataclass(frozen=True)
class Settings:
    """What both models are built with; before_nms of every level, proposals and detections of an image."""

    before_nms: int
    proposals: int
    detections: int
    num_classes: int = 3


def native_model(settings: Settings) -> Segmenter:
    """The native model with random weights."""
    flat = {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 2,
        "MODEL.RESNETS.OUT_FEATURES": list(LEVELS),
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.FPN.IN_FEATURES": list(LEVELS),
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
        "MODEL.RPN.IN_FEATURES": list(PYRAMID),
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": settings.before_nms,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": settings.before_nms,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": settings.proposals,
        "MODEL.RPN.POST_NMS_TOPK_TEST": settings.proposals,
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": list(PYRAMID[:4]),
        "MODEL.ROI_HEADS.NUM_CLASSES": settings.num_classes,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
        "MODEL.MASK_ON": True,
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "INPUT.FORMAT": "RGB",
        "TEST.DETECTIONS_PER_IMAGE": settings.detections,
    }
    model = build_model(load_flat_config(flat))
    with torch.no_grad():
        for name, module in model.named_modules():
            # Random weights without statistics: keep the sums of the blocks from growing.
            if name.endswith("conv3.norm"):
                module.weight.fill_(0.2)
    return model


def torchvision_model(settings: Settings, native: Segmenter, size: tuple[int, int]) -> nn.Module:
    """torchvision's model with the weights of the native one; images of `size` keep their size."""
    model = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=settings.num_classes + 1,
        rpn_pre_nms_top_n_train=settings.before_nms,
        rpn_pre_nms_top_n_test=settings.before_nms,
        rpn_post_nms_top_n_train=settings.proposals,
        rpn_post_nms_top_n_test=settings.proposals,
        box_score_thresh=0.0,
        box_detections_per_img=settings.detections,
        min_size=min(size),
        max_size=max(size),
    )
    _freeze_norms(model)
    for name, parameter in model.backbone.body.named_parameters():
        if name.startswith(("conv1", "layer1")):
            parameter.requires_grad = False
    weights = {name: _rearranged(name, tensor) for name, tensor in native.state_dict().items()}
    model.load_state_dict({_torchvision_name(name): tensor for name, tensor in weights.items()})
    return model


def _freeze_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps=child.eps))
        else:
            _freeze_norms(child)


PARTS = (
    ("backbone.bottom_up.stem.conv1.norm", "backbone.body.bn1"),
    ("backbone.bottom_up.stem", "backbone.body"),
    *((f"backbone.bottom_up.res{stage}", f"backbone.body.layer{stage - 1}") for stage in range(2, 6)),
    *((f"backbone.fpn_lateral{level}", f"backbone.fpn.inner_blocks.{level - 2}.0") for level in range(2, 6)),
    *((f"backbone.fpn_output{level}", f"backbone.fpn.layer_blocks.{level - 2}.0") for level in range(2, 6)),
    ("proposal_generator.rpn_head.conv", "rpn.head.conv.0.0"),
    ("proposal_generator.rpn_head.objectness_logits", "rpn.head.cls_logits"),
    ("proposal_generator.rpn_head.anchor_deltas", "rpn.head.bbox_pred"),
    ("roi_heads.box_head.fc1", "roi_heads.box_head.fc6"),
    ("roi_heads.box_head.fc2", "roi_heads.box_head.fc7"),
    *((f"roi_heads.mask_head.mask_fcn{index + 1}", f"roi_heads.mask_head.{index}.0") for index in range(4)),
    ("roi_heads.mask_head.deconv", "roi_heads.mask_predictor.conv5_mask"),
    ("roi_heads.mask_head.predictor", "roi_heads.mask_predictor.mask_fcn_logits"),
)


def _torchvision_name(name: str) -> str:
    for ours, theirs in PARTS:
        if name.startswith(ours):
            name = theirs + name[len(ours) :]
            break
    name = name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
    for index in "123":
        name = name.replace(f"conv{index}.norm", f"bn{index}")
    return name


def _rearranged(name: str, tensor: Tensor) -> Tensor:
    """Classes: the background is first in torchvision and last, or left out, here."""
    if "cls_score" in name:
        return torch.cat((tensor[-1:], tensor[:-1]))
    if "bbox_pred" in name:
        return torch.cat((torch.zeros_like(tensor[:4]), tensor))
    if "mask_head.predictor" in name:
        return torch.cat((torch.zeros_like(tensor[:1]), tensor))
    return tensor


def torchvision_images(images: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Images (H, W, 3) uint8 as torchvision wants them."""
    return [torch.from_numpy(image).to(device).permute(2, 0, 1).float() / 255 for image in images]


def torchvision_targets(samples: Sequence[Sample], device: torch.device) -> list[dict[str, Any]]:
    """Boxes, classes and full-size masks (N, H, W) uint8 of samples."""
    return [
        {
            "boxes": torch.from_numpy(sample.layers.boxes()).to(device),
            "labels": torch.from_numpy(sample.classes + 1).to(device),
            "masks": torch.from_numpy(sample.layers.masks().astype(np.uint8)).to(device),
        }
        for sample in samples
    ]
