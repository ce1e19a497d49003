"""torchvision's Mask R-CNN (ResNet-50 FPN; version 1, He et al. 2017, and 2, Li et al. 2021) as a Segmenter.

Network, matching, sampling and losses are torchvision's. What surrounds them is detseg's: images come at the size that
INPUT asks for, mask targets are cut from label layers instead of full-size masks, masks are pasted straight to
run-lengths, and ignored regions are neither object nor background. The state_dict has torchvision's names.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.errors import ConfigError
from detseg.models.answers import RegionLook, RegionSegmenter
from detseg.models.rcnn.box_head import Detections
from detseg.models.rcnn.generalized_rcnn import ImageBatch, ImageInput
from detseg.models.rcnn.layers import FrozenBatchNorm2d
from detseg.models.rcnn.mask_head import sample_masks
from detseg.models.rcnn.targets import Targets
from detseg.models.torchvision_ops import require_operators
from detseg.structures.sample import Sample

SIZE_DIVISIBILITY = 32
LEVELS = 5  # strides 4 to 64
_FROZEN_PARTS = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


class TorchvisionMaskRCNN(RegionSegmenter):
    """network: torchvision's MaskRCNN, whose `backbone`, `rpn` and `roi_heads` are taken; its classes begin with 1."""

    class_entries = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")

    def __init__(self, *, image_input: ImageInput, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.image_input = image_input
        self.num_classes = num_classes
        self.backbone = network.backbone
        self.rpn = network.rpn
        self.roi_heads = network.roi_heads

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return loss_objectness, loss_rpn_box_reg, loss_classifier, loss_box_reg and loss_mask of a batch."""
        device = self.device
        targets = [_without_ignored(Targets.from_sample(sample, self.num_classes, device)) for sample in samples]
        batch = self.image_input([sample.image for sample in samples], device)
        # torchvision asks whether there are masks; its own way to cut them is not used
        asked = [{"boxes": one.boxes, "labels": one.classes + 1, "masks": one.ids} for one in targets]
        features = self.backbone(batch.tensor)
        with _Ignoring(self, targets):
            proposals, losses = self.rpn(_image_list(batch), features, asked)
            regions, matches, labels, deltas = self.roi_heads.select_training_samples(proposals, asked)
        vectors = self.roi_heads.box_head(self.roi_heads.box_roi_pool(features, regions, batch.sizes))
        scores, box_deltas = self.roi_heads.box_predictor(vectors)
        losses["loss_classifier"], losses["loss_box_reg"] = _box_losses(scores, box_deltas, labels, deltas)
        losses["loss_mask"] = self._mask_loss(features, batch.sizes, regions, matches, labels, targets)
        return losses

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        sizes: Sequence[tuple[int, int]],
        regions: Sequence[Tensor],
        matches: Sequence[Tensor],
        labels: Sequence[Tensor],
        targets: Sequence[Targets],
    ) -> Tensor:
        """The mean binary cross entropy over the pixels of the positive regions' own classes."""
        chosen = [torch.nonzero(image_labels > 0).squeeze(1) for image_labels in labels]
        boxes = [region[index] for region, index in zip(regions, chosen, strict=True)]
        logits = self._mask_logits(features, boxes, sizes)
        if len(logits) == 0:
            return logits.sum() * 0
        of_class = torch.cat([label[index] for label, index in zip(labels, chosen, strict=True)])
        masks = []
        for target, box, match, index in zip(targets, boxes, matches, chosen, strict=True):
            objects = match[index]
            masks.append(
                sample_masks(target.layers, target.layer_of[objects], target.ids[objects], box, logits.shape[-1])
            )
        own = logits[torch.arange(len(logits), device=logits.device), of_class]
        return F.binary_cross_entropy_with_logits(own.float(), torch.cat(masks).float())

    def _mask_logits(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return (M, K + 1, s, s) for the boxes of all images behind each other."""
        pooled = self.roi_heads.mask_roi_pool(features, boxes, list(sizes))
        return self.roi_heads.mask_predictor(self.roi_heads.mask_head(pooled))

    @torch.inference_mode()
    def look(
        self, images: Sequence[np.ndarray], *, output_sizes: Sequence[tuple[int, int]] | None = None
    ) -> RegionLook:
        """See Segmenter.look; the feature maps are kept."""
        if self.training:
            raise RuntimeError("predict() needs the model in evaluation mode: call model.eval() before")
        batch = self.image_input(images, self.device)
        features = self.backbone(batch.tensor)

        def masks(boxes: list[Tensor], classes: list[Tensor]) -> list[Tensor]:
            logits = self._mask_logits(features, boxes, batch.sizes)
            of_class = torch.cat(classes) + 1
            own = logits[torch.arange(len(logits), device=logits.device), of_class].sigmoid()
            return list(own.split([len(image_boxes) for image_boxes in boxes]))

        return RegionLook(
            sizes=batch.sizes,
            output_sizes=output_sizes,
            detect=functools.partial(self._detect, features, batch),
            masks=masks,
            needs_classes=self.num_classes > 1,
            device=self.device,
        )

    def _detect(self, features: dict[str, Tensor], batch: ImageBatch) -> list[Detections]:
        proposals, _ = self.rpn(_image_list(batch), features)
        heads = self.roi_heads
        scores, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, batch.sizes)))
        answers = heads.postprocess_detections(scores.float(), deltas.float(), proposals, batch.sizes)
        return [Detections(box, score, label - 1) for box, score, label in zip(*answers, strict=True)]


class _Ignoring:
    """Inside the block torchvision's matching leaves out what lies in ignored regions (label -1)."""

    def __init__(self, model: TorchvisionMaskRCNN, targets: Sequence[Targets]) -> None:
        self.model = model
        self.targets = targets
        self.needed = any(target.ignore_sums is not None for target in targets)

    def __enter__(self) -> None:
        if not self.needed:
            return
        rpn, heads = self.model.rpn, self.model.roi_heads
        match_anchors, match_proposals = rpn.assign_targets_to_anchors, heads.assign_targets_to_proposals

        def anchors(boxes: list[Tensor], asked: list[dict[str, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
            labels, matched = match_anchors(boxes, asked)
            return self._left_out(labels, boxes), matched

        def proposals(boxes: list[Tensor], *objects: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            matches, labels = match_proposals(boxes, *objects)
            return matches, self._left_out(labels, boxes)

        # attributes of the two objects, which go before the methods of their classes
        rpn.assign_targets_to_anchors, heads.assign_targets_to_proposals = anchors, proposals

    def __exit__(self, *_: object) -> None:
        if self.needed:
            del self.model.rpn.assign_targets_to_anchors, self.model.roi_heads.assign_targets_to_proposals

    def _left_out(self, labels: list[Tensor], boxes: list[Tensor]) -> list[Tensor]:
        return [
            target.leave_out_ignored(label, torch.zeros_like(label, dtype=torch.int64), box, background=0)
            for target, label, box in zip(self.targets, labels, boxes, strict=True)
        ]


def _without_ignored(targets: Targets) -> Targets:
    """Take out the objects that lie in ignored regions: what is found there counts as nothing then."""
    kept = ~targets.ignored
    return Targets(
        boxes=targets.boxes[kept],
        classes=targets.classes[kept],
        ids=targets.ids[kept],
        layer_of=targets.layer_of[kept],
        layers=targets.layers,
        ignored=targets.ignored[kept],
        ignore=targets.ignore,
        ignore_sums=targets.ignore_sums,
    )


def _box_losses(
    scores: Tensor, deltas: Tensor, labels: Sequence[Tensor], targets: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    from torchvision.models.detection.roi_heads import fastrcnn_loss

    return fastrcnn_loss(scores.float(), deltas.float(), list(labels), list(targets))


def _image_list(batch: ImageBatch) -> Any:
    from torchvision.models.detection.image_list import ImageList

    return ImageList(batch.tensor, batch.sizes)


def build_torchvision_mask_rcnn(cfg: Any) -> TorchvisionMaskRCNN:
    """Build the model that MODEL.TORCHVISION.NAME names, with initial weights.

    Raises:
        ConfigError: an unknown name, or anchors for another number of levels.
    """
    require_operators()
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.rpn import RPNHead

    name = cfg.MODEL.TORCHVISION.NAME
    sizes = _of_levels("MODEL.ANCHOR_GENERATOR.SIZES", cfg.MODEL.ANCHOR_GENERATOR.SIZES)
    ratios = _of_levels("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS)
    anchors = AnchorGenerator(sizes, ratios)
    builders = {
        "maskrcnn_resnet50_fpn": detection.maskrcnn_resnet50_fpn,
        "maskrcnn_resnet50_fpn_v2": detection.maskrcnn_resnet50_fpn_v2,
    }
    if name not in builders:
        raise ConfigError(f"MODEL.TORCHVISION.NAME is {name!r}; known are {', '.join(builders)}")
    network = builders[name](
        weights=None,
        weights_backbone=None,
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1,
        **_limits(cfg),
    )
    network.rpn.anchor_generator = anchors
    channels, depth = network.backbone.out_channels, 2 if name.endswith("_v2") else 1
    network.rpn.head = RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=depth)
    _adapt_backbone(network.backbone.body, cfg)
    image_input = ImageInput(
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        bgr=cfg.INPUT.FORMAT == "BGR",
        size_divisibility=SIZE_DIVISIBILITY,
    )
    return TorchvisionMaskRCNN(image_input=image_input, network=network, num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES)


def _limits(cfg: Any) -> dict[str, Any]:
    rpn, heads = cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS
    return {
        "rpn_pre_nms_top_n_train": rpn.PRE_NMS_TOPK_TRAIN,
        "rpn_pre_nms_top_n_test": rpn.PRE_NMS_TOPK_TEST,
        "rpn_post_nms_top_n_train": rpn.POST_NMS_TOPK_TRAIN,
        "rpn_post_nms_top_n_test": rpn.POST_NMS_TOPK_TEST,
        "rpn_nms_thresh": rpn.NMS_THRESH,
        "rpn_bg_iou_thresh": rpn.IOU_THRESHOLDS[0],
        "rpn_fg_iou_thresh": rpn.IOU_THRESHOLDS[-1],
        "rpn_batch_size_per_image": rpn.BATCH_SIZE_PER_IMAGE,
        "rpn_positive_fraction": rpn.POSITIVE_FRACTION,
        "box_score_thresh": heads.SCORE_THRESH_TEST,
        "box_nms_thresh": heads.NMS_THRESH_TEST,
        "box_detections_per_img": cfg.TEST.DETECTIONS_PER_IMAGE,
        "box_fg_iou_thresh": heads.IOU_THRESHOLDS[-1],
        "box_bg_iou_thresh": heads.IOU_THRESHOLDS[0],
        "box_batch_size_per_image": heads.BATCH_SIZE_PER_IMAGE,
        "box_positive_fraction": heads.POSITIVE_FRACTION,
    }


def _of_levels(key: str, values: Any) -> tuple[tuple[float, ...], ...]:
    rows = values if isinstance(values[0], (list, tuple)) else [values]
    rows = list(rows) * LEVELS if len(rows) == 1 else rows
    if len(rows) != LEVELS or len({len(row) for row in rows}) != 1:
        raise ConfigError(f"{key} is {values!r}; expected one list, or {LEVELS} of the same length")
    return tuple(tuple(row) for row in rows)


def _adapt_backbone(body: nn.Module, cfg: Any) -> None:
    """Input channels, norms and frozen parts as MODEL.PIXEL_MEAN, RESNETS.NORM and BACKBONE.FREEZE_AT say."""
    channels = len(cfg.MODEL.PIXEL_MEAN)
    if channels != 3:
        body.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        _freeze_norms(body)
    elif cfg.MODEL.RESNETS.NORM != "BN":
        raise ConfigError(f"MODEL.RESNETS.NORM is {cfg.MODEL.RESNETS.NORM!r}; torchvision's models have FrozenBN or BN")
    for names in _FROZEN_PARTS[: cfg.MODEL.BACKBONE.FREEZE_AT]:
        for name in names:
            part = getattr(body, name)
            part.requires_grad_(False)
            if isinstance(part, nn.BatchNorm2d):
                setattr(body, name, FrozenBatchNorm2d.from_batch_norm(part))
            _freeze_norms(part)


def _freeze_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d.from_batch_norm(child))
        else:
            _freeze_norms(child)
