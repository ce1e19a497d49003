"""What is done with proposals: which object each is, where exactly, and its mask.

The contract of region heads, kept by cascade_heads.py and res5_heads.py too: `losses`, `detect` and `masks` as below,
and the attributes `num_classes` and `mask_head` (None for boxes alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from detseg.models.rcnn.box_head import BoxPredictor, Detections
from detseg.models.rcnn.boxes import clip_boxes
from detseg.models.rcnn.mask_head import MaskHead, foreground_boxes, foreground_mask_loss, mask_probabilities
from detseg.models.rcnn.matching import Matcher
from detseg.models.rcnn.regions import BOXES_AT_ONCE, Regions, RegionSampling, by_portions, label_boxes
from detseg.models.rcnn.resnet import BottleneckBlock, make_stage
from detseg.models.rcnn.roi_align import Pooler
from detseg.models.rcnn.rpn import Proposals
from detseg.models.rcnn.targets import Targets


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
        maps = self.box_pooler.prepare_all(features, self.in_features)
        regions = [
            self.sampling(image_proposals, target, self.num_classes)
            for image_proposals, target in zip(proposals, targets, strict=True)
        ]
        outputs = self._score(maps, [region.boxes for region in regions])
        losses = self.box_predictor.region_losses(*outputs, regions, targets)
        if self.mask_head is not None:
            pooled = self.mask_pooler(maps, foreground_boxes(regions))
            losses["loss_mask"] = foreground_mask_loss(self.mask_head, pooled, regions, targets)
        return losses

    def detect(
        self, features: dict[str, Tensor], proposals: Sequence[Proposals], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Return the detections of every image; sizes: (height, width) without padding."""
        boxes = [image_proposals.boxes for image_proposals in proposals]
        maps = self.box_pooler.prepare_all(features, self.in_features)
        scores, deltas = by_portions(partial(self._score, maps), boxes, BOXES_AT_ONCE)
        return self.box_predictor.detect_all(scores.softmax(dim=1), deltas, boxes, sizes)

    def masks(self, features: dict[str, Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> list[Tensor]:
        """Return the mask probabilities (N, s, s) float32 for given boxes (N, 4) and classes (N,) of every image."""
        maps = self.mask_pooler.prepare_all(features, self.in_features)
        return mask_probabilities(self.mask_head, partial(self.mask_pooler, maps), boxes, classes)

    def _score(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return scores (M, K + 1) and deltas (M, 4 or 4 * K) for the boxes of all images."""
        return self.box_predictor(self.box_head(self.box_pooler(maps, boxes)))


# Cascade R-CNN (Cai and Vasconcelos 2018): box heads in a row, each made for the better boxes of the one before.


class CascadeROIHeads(nn.Module):
    """Detectron2's CascadeROIHeads, see roi_heads.py for the contract.

    sampling: of the first stage; what is drawn there goes through all stages. matchers: of the later stages. box_heads
    and box_predictors: one a stage, class-agnostic in their boxes. The mask head sees the sampled proposals in training
    and the detections in prediction.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        sampling: RegionSampling,
        matchers: Sequence[Matcher],
        box_pooler: Pooler,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[BoxPredictor],
        mask_pooler: Pooler | None = None,
        mask_head: MaskHead | None = None,
    ) -> None:
        super().__init__()
        if not len(box_heads) == len(box_predictors) == len(matchers) + 1:
            raise ValueError(
                "a cascade needs a box head and a predictor a stage, and a matcher for each stage but the first"
            )
        if not all(predictor.class_agnostic for predictor in box_predictors):
            raise ValueError("the boxes of a cascade are class-agnostic: there is one box to go on with")
        self.in_features = tuple(in_features)
        self.sampling = sampling
        self.matchers = tuple(matchers)
        self.num_classes = box_predictors[0].num_classes
        self.box_pooler = box_pooler
        self.box_head = nn.ModuleList(box_heads)
        self.box_predictor = nn.ModuleList(box_predictors)
        self.mask_pooler = mask_pooler
        self.mask_head = mask_head

    def losses(
        self, features: dict[str, Tensor], proposals: Sequence[Proposals], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Return loss_cls_stage0, loss_box_reg_stage0, those of the other stages and, with a mask head, loss_mask."""
        maps = self.box_pooler.prepare_all(features, self.in_features)
        sampled = [
            self.sampling(image_proposals, target, self.num_classes)
            for image_proposals, target in zip(proposals, targets, strict=True)
        ]
        losses: dict[str, Tensor] = {}
        regions, sizes = sampled, [target.size for target in targets]
        for stage, predictor in enumerate(self.box_predictor):
            boxes = [region.boxes for region in regions]
            scores, deltas = self._run(stage, maps, boxes)
            stage_losses = predictor.region_losses(scores, deltas, regions, targets)
            losses.update({f"{name}_stage{stage}": loss for name, loss in stage_losses.items()})
            if stage < len(self.matchers):
                moved = self._move(stage, deltas.detach(), boxes, sizes)
                regions = [
                    _relabel(image_boxes, target, self.matchers[stage], self.num_classes)
                    for image_boxes, target in zip(moved, targets, strict=True)
                ]
        if self.mask_head is not None:
            pooled = self.mask_pooler(maps, foreground_boxes(sampled))
            losses["loss_mask"] = foreground_mask_loss(self.mask_head, pooled, sampled, targets)
        return losses

    def detect(
        self, features: dict[str, Tensor], proposals: Sequence[Proposals], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Return the detections of every image; sizes: (height, width) without padding.

        A detection has the mean of all stages' probabilities and the box of the last stage.
        """
        maps = self.box_pooler.prepare_all(features, self.in_features)
        boxes = [image_proposals.boxes for image_proposals in proposals]
        total: Tensor | float = 0.0
        for stage in range(len(self.box_predictor)):
            scores, deltas = by_portions(partial(self._run, stage, maps), boxes, BOXES_AT_ONCE)
            total = total + scores.softmax(dim=1)
            if stage < len(self.matchers):
                boxes = self._move(stage, deltas, boxes, sizes)
        return self.box_predictor[-1].detect_all(total * (1.0 / len(self.box_predictor)), deltas, boxes, sizes)

    def masks(self, features: dict[str, Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> list[Tensor]:
        """Return the mask probabilities (N, s, s) float32 for given boxes (N, 4) and classes (N,) of every image."""
        maps = self.mask_pooler.prepare_all(features, self.in_features)
        return mask_probabilities(self.mask_head, partial(self.mask_pooler, maps), boxes, classes)

    def _run(self, stage: int, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return scores (M, K + 1) and deltas (M, 4) of one stage for the boxes of all images."""
        pooled = self.box_pooler(maps, boxes)
        if pooled.requires_grad:
            # The losses of the stages are added up: the features below get the mean of their gradients.
            pooled.register_hook(lambda gradient: gradient * (1.0 / len(self.box_predictor)))
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _move(
        self, stage: int, deltas: Tensor, boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Return the boxes (P, 4) of every image as a stage moves them, inside the image and finite."""
        parts = zip(deltas.split([len(image_boxes) for image_boxes in boxes]), boxes, sizes, strict=True)
        decode = self.box_predictor[stage].coder.decode
        # What is not a number stays so in the scores, and is no detection by these.
        return [clip_boxes(decode(part, image_boxes).nan_to_num(), size) for part, image_boxes, size in parts]


@torch.no_grad()
def _relabel(boxes: Tensor, target: Targets, matcher: Matcher, num_classes: int) -> Regions:
    """Label the boxes (P, 4) of one image anew; those without area and those that count for nothing fall out."""
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)]
    classes, matches = label_boxes(boxes, target, matcher, num_classes)
    kept = classes >= 0
    foreground = int((classes[kept] < num_classes).sum())
    return Regions(boxes[kept], classes[kept], matches[kept], foreground)


# Region heads that share the last stage of the ResNet: the C4 models of Mask R-CNN (He et al. 2017, figure 4 left).

# Regions of 14 x 14 x 1024 numbers, 0.8 MB, and as much again in res5: thousands are predicted in portions.
REGIONS_AT_ONCE = 256
RES5_BLOCKS = 3
RES5_STRIDE = 2


class Res5ROIHeads(nn.Module):
    """Detectron2's Res5ROIHeads, see roi_heads.py for the contract.

    in_feature: the feature map that regions are cut from. res5: blocks that boxes and masks share.
    """

    def __init__(
        self,
        *,
        in_feature: str,
        sampling: RegionSampling,
        pooler: Pooler,
        res5: nn.Module,
        box_predictor: BoxPredictor,
        mask_head: MaskHead | None = None,
    ) -> None:
        super().__init__()
        self.in_feature = in_feature
        self.sampling = sampling
        self.num_classes = box_predictor.num_classes
        self.pooler = pooler
        self.res5 = res5
        self.box_predictor = box_predictor
        self.mask_head = mask_head

    def losses(
        self, features: dict[str, Tensor], proposals: Sequence[Proposals], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Return loss_cls, loss_box_reg and, with a mask head, loss_mask."""
        maps = self.pooler.prepare_all(features, [self.in_feature])
        regions = [
            self.sampling(image_proposals, target, self.num_classes)
            for image_proposals, target in zip(proposals, targets, strict=True)
        ]
        pooled = self._pool(maps, [region.boxes for region in regions])
        losses = self.box_predictor.region_losses(*self.box_predictor(_mean(pooled)), regions, targets)
        if self.mask_head is not None:
            of_images = zip(pooled.split([len(region.boxes) for region in regions]), regions, strict=True)
            foreground = torch.cat([part[: region.foreground] for part, region in of_images])
            losses["loss_mask"] = foreground_mask_loss(self.mask_head, foreground, regions, targets)
        return losses

    def detect(
        self, features: dict[str, Tensor], proposals: Sequence[Proposals], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Return the detections of every image; sizes: (height, width) without padding."""
        boxes = [image_proposals.boxes for image_proposals in proposals]
        maps = self.pooler.prepare_all(features, [self.in_feature])
        scores, deltas = by_portions(partial(self._score, maps), boxes, REGIONS_AT_ONCE)
        return self.box_predictor.detect_all(scores.softmax(dim=1), deltas, boxes, sizes)

    def masks(self, features: dict[str, Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> list[Tensor]:
        """Return the mask probabilities (N, s, s) float32 for given boxes (N, 4) and classes (N,) of every image."""
        maps = self.pooler.prepare_all(features, [self.in_feature])
        return mask_probabilities(self.mask_head, partial(self._pool, maps), boxes, classes, REGIONS_AT_ONCE)

    def _score(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return self.box_predictor(_mean(self._pool(maps, boxes)))

    def _pool(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        return self.res5(self.pooler(maps, boxes))


def make_res5(
    *, res2_channels: int, width_per_group: int, groups: int, norm: str, stride_in_1x1: bool
) -> tuple[nn.Module, int]:
    """Return three bottleneck blocks, for a ResNet of whatever depth as in Detectron2, and their number of channels."""
    out_channels = res2_channels * 8
    block = partial(
        BottleneckBlock,
        bottleneck_channels=groups * width_per_group * 8,
        norm=norm,
        stride_in_1x1=stride_in_1x1,
        groups=groups,
    )
    blocks = make_stage(
        block, RES5_BLOCKS, in_channels=out_channels // 2, out_channels=out_channels, stride=RES5_STRIDE
    )
    return nn.Sequential(*blocks), out_channels


def _mean(pooled: Tensor) -> Tensor:
    return pooled.mean(dim=(2, 3))
