"""The box head: pooled regions to a vector each, then class scores and box deltas (Fast R-CNN, Girshick 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.models.rcnn.boxes import BoxCoder, box_regression_loss, clip_boxes
from detseg.models.rcnn.layers import ConvNorm, init_msra, init_normal, init_xavier
from detseg.models.rcnn.regions import Regions
from detseg.models.rcnn.targets import Targets
from detseg.models.torchvision_ops import batched_nms


@dataclass(frozen=True)
class Detections:
    """D objects found in one image, best first: boxes (D, 4), scores (D,), classes (D,) int64."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


class ConvFCHead(nn.Sequential):
    """Detectron2's FastRCNNConvFCHead: 3 x 3 convolutions, then fully connected layers, ReLU after each.

    in_channels and size: of the pooled regions (M, in_channels, size, size). Returns (M, out_channels).
    """

    def __init__(
        self, *, in_channels: int, size: int, conv_channels: Sequence[int], fc_channels: Sequence[int], norm: str = ""
    ) -> None:
        super().__init__()
        channels = in_channels
        for index, width in enumerate(conv_channels, start=1):
            conv = ConvNorm(channels, width, 3, norm=norm, relu=True)
            init_msra(conv)
            self.add_module(f"conv{index}", conv)
            channels = width
        self.add_module("flatten", nn.Flatten())
        channels *= size * size
        for index, width in enumerate(fc_channels, start=1):
            fc = nn.Linear(channels, width)
            init_xavier(fc)
            self.add_module(f"fc{index}", fc)
            self.add_module(f"fc_relu{index}", nn.ReLU(inplace=True))
            channels = width
        self.out_channels = channels


class BoxPredictor(nn.Module):
    """Class scores, background last, and deltas for each class or, class-agnostic, for all together."""

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        class_agnostic: bool,
        coder: BoxCoder,
        box_loss: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
        box_weight: float = 1.0,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_agnostic = class_agnostic
        self.coder = coder
        self.box_loss = box_loss
        self.smooth_l1_beta = smooth_l1_beta
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
        self, scores: Tensor, deltas: Tensor, boxes: Tensor, classes: Tensor, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return loss_cls and loss_box_reg.

        boxes: (M, 4) proposals. classes: (M,) int64, num_classes for background. targets: (M, 4) the objects' boxes;
        rows of background are not looked at.
        """
        if len(classes) == 0:
            return {"loss_cls": scores.sum() * 0, "loss_box_reg": deltas.sum() * 0}
        index = torch.nonzero(classes < self.num_classes).squeeze(1)
        of_class = torch.zeros_like(classes[index]) if self.class_agnostic else classes[index]
        box_loss = box_regression_loss(
            coder=self.coder,
            sources=boxes[index],
            deltas=deltas.unflatten(1, (-1, 4))[index, of_class],
            targets=targets[index],
            loss_type=self.box_loss,
            beta=self.smooth_l1_beta,
        )
        return {
            "loss_cls": F.cross_entropy(scores, classes),
            "loss_box_reg": box_loss * (self.box_weight / len(classes)),
        }

    def region_losses(
        self, scores: Tensor, deltas: Tensor, regions: Sequence[Regions], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """`losses` of the regions of all images, in their order."""
        matched = [region.matched_boxes(target) for region, target in zip(regions, targets, strict=True)]
        boxes = torch.cat([region.boxes for region in regions])
        return self.losses(scores, deltas, boxes, torch.cat([region.classes for region in regions]), torch.cat(matched))

    def detect_all(
        self, probabilities: Tensor, deltas: Tensor, boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """`detect` for the proposals of every image; probabilities and deltas are those of all images."""
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
