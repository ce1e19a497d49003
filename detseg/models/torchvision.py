"""torchvision's Mask R-CNN (ResNet-50 FPN; version 1, He et al. 2017, and 2, Li et al. 2021) as a Segmenter.

Network, matching, sampling and losses are torchvision's. The rest is detseg's: images have the size set by INPUT, mask
targets are cropped from label layers instead of full-size masks, masks are pasted directly to RLEs, and ignored regions
are neither object nor background. The state_dict has torchvision's names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.config.options import Options, Problems, key, part
from detseg.models.base import check_finite
from detseg.models.freezing import freeze_norms
from detseg.models.image_input import ImageBatch, ImageInput
from detseg.models.options import ImageInputOptions
from detseg.models.rcnn.anchors import AnchorShapes
from detseg.models.rcnn.box_head import DetectionOptions
from detseg.models.rcnn.matching import SamplingOptions
from detseg.models.rcnn.rpn import ProposalOptions
from detseg.models.rcnn.targets import Targets
from detseg.models.region_segmenter import Detections, RegionMasks, RegionSegmenter
from detseg.models.torchvision_ops import require_operators
from detseg.structures.sample import Sample

SIZE_DIVISIBILITY = 32
LEVELS = 5  # strides 4 to 64
_FROZEN_PARTS = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


class TorchvisionMaskRCNN(RegionSegmenter):
    """network: torchvision's MaskRCNN, whose `backbone`, `rpn` and `roi_heads` are used; its classes start from 1."""

    pretrained_prefix = "backbone.body."
    class_entries = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")

    def __init__(self, *, image_input: ImageInput, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.image_input = image_input
        self.num_classes = num_classes
        self.backbone = network.backbone
        self.rpn = network.rpn
        self.roi_heads = network.roi_heads

    @property
    def largest_object(self) -> float:
        """See Segmenter: as large as the largest anchors."""
        return max(size for level_sizes in self.rpn.anchor_generator.sizes for size in level_sizes)

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return loss_objectness, loss_rpn_box_reg, loss_classifier, loss_box_reg and loss_mask of a batch."""
        from torchvision.models.detection.roi_heads import fastrcnn_loss

        targets = [Targets.from_sample(sample, self.num_classes, self.device) for sample in samples]
        # Objects in ignored regions are removed; like everything there, predictions on them are ignored.
        targets = [target[~target.ignored] for target in targets]
        batch = self.image_input([sample.image for sample in samples], self.device)
        # torchvision only checks that there are masks; its own cropping is not used
        asked = [{"boxes": one.boxes, "labels": one.classes + 1, "masks": one.ids} for one in targets]
        features = self.backbone(batch.tensor)
        with _leaving_out_ignored(self, targets):
            proposals, losses = self.rpn(_image_list(batch), features, asked)
            regions, matches, labels, deltas = self.roi_heads.select_training_samples(proposals, asked)
        vectors = self.roi_heads.box_head(self.roi_heads.box_roi_pool(features, regions, batch.sizes))
        scores, box_deltas = self.roi_heads.box_predictor(vectors)
        losses["loss_classifier"], losses["loss_box_reg"] = fastrcnn_loss(
            scores.float(), box_deltas.float(), labels, deltas
        )
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
        """The mean binary cross entropy over the positive regions, for their own classes."""
        chosen = [torch.nonzero(image_labels > 0).squeeze(1) for image_labels in labels]
        boxes = [region[index] for region, index in zip(regions, chosen, strict=True)]
        logits = self._mask_logits(features, boxes, sizes)
        if len(logits) == 0:
            return logits.sum() * 0
        of_class = torch.cat([label[index] for label, index in zip(labels, chosen, strict=True)])
        masks = [
            target.masks_in(box, match[index], logits.shape[-1])
            for target, box, match, index in zip(targets, boxes, matches, chosen, strict=True)
        ]
        own = logits[torch.arange(len(logits), device=logits.device), of_class]
        return F.binary_cross_entropy_with_logits(own.float(), torch.cat(masks).float())

    def _mask_logits(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return (M, K + 1, s, s) for the boxes of all images, concatenated."""
        pooled = self.roi_heads.mask_roi_pool(features, boxes, list(sizes))
        return self.roi_heads.mask_predictor(self.roi_heads.mask_head(pooled))

    def extract(self, images: Sequence[np.ndarray]) -> tuple[dict[str, Tensor], ImageBatch]:
        """See RegionSegmenter.extract: feature maps by name, and their batch."""
        batch = self.image_input(images, self.device)
        return self.backbone(batch.tensor), batch

    def detect(self, features: tuple[dict[str, Tensor], ImageBatch]) -> list[Detections]:
        """See RegionSegmenter.detect."""
        maps, batch = features
        check_finite("feature maps (backbone)", *maps.values())
        proposals, _ = self.rpn(_image_list(batch), maps)
        heads = self.roi_heads
        scores, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, proposals, batch.sizes)))
        check_finite("class scores and boxes (roi_heads)", scores, deltas)
        found = heads.postprocess_detections(scores.float(), deltas.float(), proposals, batch.sizes)
        return [Detections(box, score, label - 1) for box, score, label in zip(*found, strict=True)]

    def region_masks(
        self, features: tuple[dict[str, Tensor], ImageBatch], boxes: list[Tensor], classes: list[Tensor]
    ) -> list[RegionMasks]:
        """See RegionSegmenter.region_masks."""
        maps, batch = features
        logits = self._mask_logits(maps, boxes, batch.sizes)
        of_class = torch.cat(classes) + 1
        own = logits[torch.arange(len(logits), device=logits.device), of_class].float().sigmoid()
        return [RegionMasks(masks) for masks in own.split([len(image_boxes) for image_boxes in boxes])]


@contextmanager
def _leaving_out_ignored(model: TorchvisionMaskRCNN, targets: Sequence[Targets]) -> Iterator[None]:
    """Make torchvision's matching ignore (label -1) candidates in ignored regions, inside the block."""
    if all(target.ignore_sums is None for target in targets):
        yield
        return
    rpn, heads = model.rpn, model.roi_heads
    match_anchors, match_proposals = rpn.assign_targets_to_anchors, heads.assign_targets_to_proposals

    def left_out(labels: list[Tensor], boxes: list[Tensor]) -> list[Tensor]:
        return [
            target.leave_out_ignored(label, torch.zeros_like(label, dtype=torch.int64), box, background=0)
            for target, label, box in zip(targets, labels, boxes, strict=True)
        ]

    def anchors(boxes: list[Tensor], asked: list[dict[str, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        labels, matched = match_anchors(boxes, asked)
        return left_out(labels, boxes), matched

    def proposals(boxes: list[Tensor], *objects: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        matches, labels = match_proposals(boxes, *objects)
        return matches, left_out(labels, boxes)

    # instance attributes, which override the methods of the classes
    rpn.assign_targets_to_anchors, heads.assign_targets_to_proposals = anchors, proposals
    try:
        yield
    finally:
        del rpn.assign_targets_to_anchors, heads.assign_targets_to_proposals


def _image_list(batch: ImageBatch) -> Any:
    from torchvision.models.detection.image_list import ImageList

    return ImageList(batch.tensor, batch.sizes)


@dataclass(frozen=True)
class TorchvisionOptions(Options):
    """The options of torchvision's networks. freeze_at: as in ResNetOptions."""

    name: str = key("MODEL.TORCHVISION.NAME", choices=("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"))
    masks: bool = key("MODEL.MASK_ON", choices=(True,))
    norm: str = key("MODEL.RESNETS.NORM", choices=("FrozenBN", "BN"))
    freeze_at: int = key("MODEL.BACKBONE.FREEZE_AT", at_least=0, at_most=5)
    image_input: ImageInputOptions = part(ImageInputOptions)
    anchors: AnchorShapes = part(AnchorShapes)
    proposals: ProposalOptions = part(ProposalOptions)
    anchor_sampling: SamplingOptions = part(SamplingOptions, section="MODEL.RPN")
    region_sampling: SamplingOptions = part(SamplingOptions, section="MODEL.ROI_HEADS")
    detections: DetectionOptions = part(DetectionOptions)

    def check(self, problems: Problems) -> None:
        self.anchors.check_levels(problems, LEVELS, "levels of torchvision's FPN")


def build_torchvision_mask_rcnn(options: TorchvisionOptions) -> TorchvisionMaskRCNN:
    """Build the model, randomly initialized."""
    require_operators()
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.rpn import RPNHead

    proposals, anchors, regions = options.proposals, options.anchor_sampling, options.region_sampling
    network = getattr(detection, options.name)(
        weights=None,
        weights_backbone=None,
        num_classes=options.detections.num_classes + 1,
        rpn_pre_nms_top_n_train=proposals.pre_nms_train,
        rpn_pre_nms_top_n_test=proposals.pre_nms_test,
        rpn_post_nms_top_n_train=proposals.post_nms_train,
        rpn_post_nms_top_n_test=proposals.post_nms_test,
        rpn_nms_thresh=proposals.nms_threshold,
        rpn_bg_iou_thresh=anchors.thresholds[0],
        rpn_fg_iou_thresh=anchors.thresholds[-1],
        rpn_batch_size_per_image=anchors.batch_size,
        rpn_positive_fraction=anchors.positive_fraction,
        box_score_thresh=options.detections.score_threshold,
        box_nms_thresh=options.detections.nms_threshold,
        box_detections_per_img=options.detections.detections_per_image,
        box_fg_iou_thresh=regions.thresholds[-1],
        box_bg_iou_thresh=regions.thresholds[0],
        box_batch_size_per_image=regions.batch_size,
        box_positive_fraction=regions.positive_fraction,
    )
    sizes, ratios = options.anchors.sizes, options.anchors.aspect_ratios
    generator = AnchorGenerator(*(rows * LEVELS if len(rows) == 1 else rows for rows in (sizes, ratios)))
    network.rpn.anchor_generator = generator
    depth = 2 if options.name.endswith("_v2") else 1
    anchors_per_position = generator.num_anchors_per_location()[0]
    network.rpn.head = RPNHead(network.backbone.out_channels, anchors_per_position, conv_depth=depth)
    _adapt_backbone(network.backbone.body, options)
    image_input = ImageInput.from_options(options.image_input, size_divisibility=SIZE_DIVISIBILITY)
    return TorchvisionMaskRCNN(image_input=image_input, network=network, num_classes=options.detections.num_classes)


def _adapt_backbone(body: nn.Module, options: TorchvisionOptions) -> None:
    """Set the number of input channels, the norms and the frozen parts."""
    channels = len(options.image_input.pixel_mean)
    if channels != 3:
        body.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    for names in _FROZEN_PARTS[: options.freeze_at]:
        for name in names:
            getattr(body, name).requires_grad_(False)
    freeze_norms(body, all_of_them=options.norm == "FrozenBN")
