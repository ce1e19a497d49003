"""The box head: pooled regions to one vector each, then class scores and box deltas (Fast R-CNN, Girshick 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.config.options import Options, Problems, key, part
from detseg.models.base import check_finite
from detseg.models.options import LimitOptions
from detseg.models.rcnn.boxes import BoxCoder, clip_boxes
from detseg.models.rcnn.fused import Linear
from detseg.models.rcnn.layers import ConvNorm, check_group_norm, init_msra, init_normal, init_xavier, norm_key
from detseg.models.rcnn.regions import Regions
from detseg.models.rcnn.targets import Targets
from detseg.models.region_segmenter import Detections
from detseg.models.torchvision_ops import batched_nms
from detseg.structures.sample import BOX_LOSS


@dataclass(frozen=True)
class ConvFCOptions(Options):
    """The layers of ConvFCHead: num_conv convolutions of `conv_channels`, num_fc layers of `fc_channels`."""

    section = "MODEL.ROI_BOX_HEAD"

    num_conv: int = key("NUM_CONV", at_least=0)
    conv_channels: int = key("CONV_DIM", at_least=1)
    num_fc: int = key("NUM_FC", at_least=0)
    fc_channels: int = key("FC_DIM", at_least=1)
    norm: str = norm_key()

    def check(self, problems: Problems) -> None:
        if self.num_conv:
            check_group_norm(problems, f"{self.section}.NORM", f"{self.section}.CONV_DIM", self.conv_channels)
        elif not self.num_fc:
            problems.add(f"{self.section}.NUM_FC", "the box head has no layer: set NUM_FC (usually 2) or NUM_CONV")


@dataclass(frozen=True)
class BoxHeadOptions(Options):
    """The head between pooled regions and their scores and boxes, absent in Res5ROIHeads."""

    section = "MODEL.ROI_BOX_HEAD"

    name: str = key("NAME", choices=("FastRCNNConvFCHead",), registry=True)
    layers: ConvFCOptions | None = part(
        ConvFCOptions, when=lambda cfg: cfg.MODEL.ROI_BOX_HEAD.NAME == "FastRCNNConvFCHead"
    )


class ConvFCHead(nn.Sequential):
    """Detectron2's FastRCNNConvFCHead: 3 x 3 convolutions, then fully connected layers, ReLU after each.

    in_channels and size: of the pooled regions (M, in_channels, size, size). last_stride: of the last convolution.
    Returns (M, out_channels).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        size: int,
        conv_channels: Sequence[int],
        fc_channels: Sequence[int],
        norm: str = "",
        last_stride: int = 1,
    ) -> None:
        super().__init__()
        channels = in_channels
        for index, width in enumerate(conv_channels, start=1):
            stride = last_stride if index == len(conv_channels) else 1
            size = -(-size // stride)
            conv = ConvNorm(channels, width, 3, stride=stride, norm=norm, relu=True)
            init_msra(conv)
            self.add_module(f"conv{index}", conv)
            channels = width
        self.add_module("flatten", nn.Flatten())
        channels *= size * size
        for index, width in enumerate(fc_channels, start=1):
            fc = Linear(channels, width)
            init_xavier(fc)
            self.add_module(f"fc{index}", fc)
            self.add_module(f"fc_relu{index}", nn.ReLU(inplace=True))
            channels = width
        self.out_channels = channels


@dataclass(frozen=True)
class DetectionOptions(LimitOptions):
    """Which scored boxes are detections."""

    section = "MODEL.ROI_HEADS"

    num_classes: int = key("NUM_CLASSES", at_least=1)
    score_threshold: float = key("SCORE_THRESH_TEST", at_least=0, at_most=1)
    nms_threshold: float = key("NMS_THRESH_TEST", above=0, at_most=1)


class BoxPredictor(nn.Module):
    """Class scores, background last, and deltas for each class or, class-agnostic, for all together."""

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        class_agnostic: bool,
        coder: BoxCoder,
        box_weight: float = 1.0,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int | None = 100,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_agnostic = class_agnostic
        self.coder = coder
        self.box_weight = box_weight
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image
        self.cls_score = nn.Linear(in_channels, num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, 4 if class_agnostic else 4 * num_classes)
        init_normal(self.cls_score, std=0.01)
        init_normal(self.bbox_pred, std=0.001)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (M, K + 1), before the softmax, and deltas (M, 4 or 4 * K), float32."""
        return self.cls_score(x).float(), self.bbox_pred(x).float()

    def losses(
        self, scores: Tensor, deltas: Tensor, regions: Sequence[Regions], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Return loss_cls and loss_box_reg of the scores and deltas of the regions of all images, in their order."""
        classes = torch.cat([region.classes for region in regions])
        if len(classes) == 0:
            return {"loss_cls": scores.sum() * 0, "loss_box_reg": deltas.sum() * 0}
        boxes = torch.cat([region.boxes for region in regions])
        objects = torch.cat([region.matched_boxes(target) for region, target in zip(regions, targets, strict=True)])
        index = torch.nonzero(classes < self.num_classes).squeeze(1)
        of_class = torch.zeros_like(classes[index]) if self.class_agnostic else classes[index]
        of_boxes = deltas.unflatten(1, (-1, 4))[index, of_class]
        class_weights = box_weights = None
        if any(target.is_weighted for target in targets):
            is_object = [region.classes < self.num_classes for region in regions]
            parts = [*zip(targets, regions, is_object, strict=True)]
            class_weights = torch.cat([one.class_weights(own.objects, found, own.boxes) for one, own, found in parts])
            box_weights = torch.cat([one.loss_weights(BOX_LOSS, own.objects) for one, own, _ in parts])[index]
        box_loss = self.coder.summed_loss(of_boxes, boxes[index], objects[index], box_weights)
        if class_weights is None:
            class_loss = F.cross_entropy(scores, classes)
        else:
            class_loss = (F.cross_entropy(scores, classes, reduction="none") * class_weights).mean()
        return {
            "loss_cls": class_loss,
            "loss_box_reg": box_loss * (self.box_weight / len(classes)),
        }

    def detect_all(
        self, probabilities: Tensor, deltas: Tensor, boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """`detect` for the proposals of every image; probabilities and deltas are those of all images."""
        check_finite("class scores and boxes (roi_heads)", probabilities, deltas)
        counts = [len(image_boxes) for image_boxes in boxes]
        parts = zip(probabilities.split(counts), deltas.split(counts), boxes, sizes, strict=True)
        return [self.detect(*part) for part in parts]

    def detect(self, probabilities: Tensor, deltas: Tensor, boxes: Tensor, size: tuple[int, int]) -> Detections:
        """Turn the probabilities (P, K + 1) and deltas of the proposals (P, 4) of one image into detections."""
        decoded = self.coder.decode(deltas, boxes)
        finite = torch.isfinite(decoded).all(dim=1) & torch.isfinite(probabilities).all(dim=1)
        probabilities = probabilities[:, :-1].where(finite[:, None], probabilities.new_zeros(()))
        row, of_class = torch.nonzero(probabilities > self.score_threshold, as_tuple=True)
        scores = probabilities[row, of_class]
        place = torch.zeros_like(of_class) if self.class_agnostic else of_class
        decoded = clip_boxes(decoded.unflatten(1, (-1, 4))[row, place], size)
        keep = batched_nms(decoded, scores, of_class, self.nms_threshold)[: self.detections_per_image]
        return Detections(decoded[keep], scores[keep], of_class[keep])
