"""What is done with proposals: which object each is, where exactly, and its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detseg.models.rcnn.box_head import BoxPredictor, Detections
from detseg.models.rcnn.mask_head import MaskHead, mask_loss
from detseg.models.rcnn.mask_targets import sample_masks
from detseg.models.rcnn.matching import Matcher
from detseg.models.rcnn.pooler import Pooler
from detseg.models.rcnn.rpn import Proposals
from detseg.models.rcnn.sampling import sample_labels
from detseg.models.rcnn.targets import Targets

# The mask head's layers hold 28 x 28 x channels numbers a region: thousands of regions are predicted in portions.
MASKS_AT_ONCE = 512


@dataclass(frozen=True)
class Regions:
    """Proposals of one image chosen for training: boxes (P, 4), classes (P,) int64 (K: background), objects (P,) int64.

    Those on objects come first, `foreground` of them.
    """

    boxes: Tensor
    classes: Tensor
    objects: Tensor
    foreground: int


@dataclass(frozen=True)
class RegionSampling:
    """batch_size proposals an image enter the loss, at most positive_fraction of them on objects.

    append_objects: the objects' own boxes are proposals too, so that there are good ones from the beginning.
    """

    matcher: Matcher
    batch_size: int
    positive_fraction: float
    append_objects: bool = True

    @torch.no_grad()
    def __call__(self, proposals: Proposals, target: Targets, num_classes: int) -> Regions:
        """Label the proposals of one image and draw from them."""
        boxes = proposals.boxes
        if self.append_objects:
            boxes = torch.cat((boxes, target.boxes))
        matches, labels = self.matcher.match_boxes(target.boxes, boxes)
        classes = torch.full_like(matches, num_classes)
        if len(target.classes):
            classes = torch.where(labels == 1, target.classes[matches], classes)
        classes[labels == -1] = -1
        classes = target.leave_out_ignored(classes, matches, boxes, background=num_classes)
        positive, negative = sample_labels(classes, self.batch_size, self.positive_fraction, background=num_classes)
        chosen = torch.cat((positive, negative))
        return Regions(boxes[chosen], classes[chosen], matches[chosen], len(positive))


class ROIHeads(nn.Module):
    """Detectron2's StandardROIHeads: one box head and, unless it is None, one mask head, each with its own pooling."""

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        sampling: RegionSampling,
        box_pooler: Pooler,
        box_head: nn.Module,
        box_predictor: BoxPredictor,
        mask_pooler: Pooler | None = None,
        mask_head: MaskHead | None = None,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.sampling = sampling
        self.num_classes = box_predictor.num_classes
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_pooler = mask_pooler
        self.mask_head = mask_head

    def losses(
        self, features: dict[str, Tensor], proposals: Sequence[Proposals], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Return loss_cls, loss_box_reg and, with a mask head, loss_mask."""
        maps = self._maps(features)
        regions = [
            self.sampling(image_proposals, target, self.num_classes)
            for image_proposals, target in zip(proposals, targets, strict=True)
        ]
        boxes = [region.boxes for region in regions]
        scores, deltas = self.box_predictor(self.box_head(self.box_pooler(maps, boxes)))
        losses = self.box_predictor.losses(
            scores,
            deltas,
            torch.cat(boxes),
            torch.cat([region.classes for region in regions]),
            torch.cat([_matched_boxes(region, target) for region, target in zip(regions, targets, strict=True)]),
        )
        if self.mask_head is not None:
            losses["loss_mask"] = self._mask_loss(maps, regions, targets)
        return losses

    def _mask_loss(self, maps: Sequence[Tensor], regions: Sequence[Regions], targets: Sequence[Targets]) -> Tensor:
        boxes = [region.boxes[: region.foreground] for region in regions]
        classes = torch.cat([region.classes[: region.foreground] for region in regions])
        logits = self.mask_head.logits_of(self.mask_pooler(maps, boxes), classes)
        size = logits.shape[-1]
        truth, counted = [], []
        for image_boxes, region, target in zip(boxes, regions, targets, strict=True):
            objects = region.objects[: region.foreground]
            truth.append(sample_masks(target.layers, target.layer_of[objects], target.ids[objects], image_boxes, size))
            counted.append(_counted_pixels(target, image_boxes, size))
        anything_ignored = any(target.ignore is not None for target in targets)
        return mask_loss(logits, torch.cat(truth), torch.cat(counted) if anything_ignored else None)

    def detect(
        self, features: dict[str, Tensor], proposals: Sequence[Proposals], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Return the detections of every image; sizes: (height, width) without padding."""
        boxes = [image_proposals.boxes for image_proposals in proposals]
        scores, deltas = self.box_predictor(self.box_head(self.box_pooler(self._maps(features), boxes)))
        counts = [len(image_boxes) for image_boxes in boxes]
        parts = zip(scores.split(counts), deltas.split(counts), boxes, sizes, strict=True)
        return [self.box_predictor.detect(*part) for part in parts]

    def masks(self, features: dict[str, Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> list[Tensor]:
        """Return the mask probabilities (N, s, s) float32 for given boxes (N, 4) and classes (N,) of every image."""
        pooled = self.mask_pooler(self._maps(features), boxes)
        parts = zip(pooled.split(MASKS_AT_ONCE), torch.cat(list(classes)).split(MASKS_AT_ONCE), strict=True)
        probabilities = torch.cat([self.mask_head.logits_of(*part).sigmoid() for part in parts])
        return list(probabilities.split([len(image_boxes) for image_boxes in boxes]))

    def _maps(self, features: dict[str, Tensor]) -> list[Tensor]:
        """The feature maps as pooling wants them, made so once for both poolers."""
        return [self.box_pooler.prepare(features[name]) for name in self.in_features]


def _matched_boxes(region: Regions, target: Targets) -> Tensor:
    if len(target.boxes) == 0:
        return torch.zeros_like(region.boxes)
    return target.boxes[region.objects]


def _counted_pixels(target: Targets, boxes: Tensor, size: int) -> Tensor:
    """Return (M, size, size) bool: the cells that enter the mask loss, those that are not ignored."""
    if target.ignore is None:
        return torch.ones((len(boxes), size, size), dtype=torch.bool, device=boxes.device)
    nothing = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    return ~sample_masks(target.ignore[None].int(), nothing, nothing.int() + 1, boxes, size)
