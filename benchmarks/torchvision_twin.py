"""torchvision's maskrcnn_resnet50_fpn with the settings and the weights of the native model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from native_rcnn import PYRAMID, Answer, NativeTwin, Settings
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d

from detseg.structures import Sample


class TorchvisionTwin:
    """torchvision's model; it ends in full-size probabilities of the masks, on the processor."""

    name = "torchvision"
    poolers = ("roi_heads.box_roi_pool", "roi_heads.mask_roi_pool")

    def __init__(self, settings: Settings, native: NativeTwin, device: torch.device) -> None:
        self.device, self.images = device, native.images
        weights = {name: tensor.cpu() for name, tensor in native.model.state_dict().items()}
        self.model = torchvision_model(settings, weights, self.images[0].shape[:2]).to(device)
        self.targets = torchvision_targets(native.samples, device)

    def infer(self) -> list[dict[str, Tensor]]:
        """Images to probabilities."""
        with torch.inference_mode():
            answers = self.model(torchvision_images(self.images, self.device))
            return [{name: tensor.cpu() for name, tensor in answer.items()} for answer in answers]

    def answers(self) -> list[Answer]:
        """What `infer` finds."""
        return [
            Answer(
                answer["boxes"].numpy(),
                answer["scores"].numpy(),
                answer["labels"].numpy() - 1,
                (answer["masks"] >= 0.5).sum((1, 2, 3)).numpy(),
            )
            for answer in self.infer()
        ]

    def losses(self) -> dict[str, Tensor]:
        """Losses of the batch."""
        return self.model(torchvision_images(self.images, self.device), self.targets)


def torchvision_model(settings: Settings, native: dict[str, Tensor], size: tuple[int, int]) -> nn.Module:
    """torchvision's model with the weights of the native one, by name; images of `size` keep their size."""
    model = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=settings.num_classes + 1,
        rpn_pre_nms_top_n_train=settings.before_nms,
        rpn_pre_nms_top_n_test=settings.before_nms,
        rpn_post_nms_top_n_train=settings.proposals,
        rpn_post_nms_top_n_test=settings.proposals,
        box_score_thresh=0.0,
        rpn_anchor_generator=_anchors(settings),
        box_detections_per_img=settings.detections,
        min_size=min(size),
        max_size=max(size),
    )
    _freeze_norms(model)
    for name, parameter in model.backbone.body.named_parameters():
        if name.startswith(("conv1", "layer1")):
            parameter.requires_grad = False
    weights = {name: _rearranged(name, tensor) for name, tensor in native.items()}
    model.load_state_dict({_torchvision_name(name): tensor for name, tensor in weights.items()})
    return model


def _anchors(settings: Settings) -> AnchorGenerator:
    return AnchorGenerator(tuple((side,) for side in settings.anchor_sides), ((0.5, 1.0, 2.0),) * len(PYRAMID))


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
