"""Region heads: class, refined box and mask for each proposal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detseg.config.options import Options, Problems, key, part
from detseg.models.rcnn.box_head import BoxHeadOptions, BoxPredictor, DetectionOptions
from detseg.models.rcnn.boxes import BoxRegressionOptions, clip_boxes
from detseg.models.rcnn.mask_head import (
    MaskHead,
    MaskHeadOptions,
    foreground_boxes,
    foreground_mask_losses,
    predict_masks,
)
from detseg.models.rcnn.mask_quality import QualityHead
from detseg.models.rcnn.matching import Matcher, MatchingOptions
from detseg.models.rcnn.regions import Regions, RegionSampling, by_portions, label_boxes
from detseg.models.rcnn.resnet import BottleneckBlock, make_stage
from detseg.models.rcnn.roi_align import Pooler, PoolerOptions
from detseg.models.rcnn.rpn import Proposals
from detseg.models.rcnn.targets import Targets
from detseg.models.region_segmenter import Detections, RegionMasks

_BOX_HEAD = "MODEL.ROI_BOX_HEAD"


@dataclass(frozen=True)
class CascadeOptions(Options):
    """ious: above which each stage counts a box as an object. weights: of its box deltas, instead of the box head's."""

    section = "MODEL.ROI_BOX_CASCADE_HEAD"

    ious: tuple[float, ...] = key("IOUS", above=0, at_most=1, not_empty=True)
    weights: tuple[tuple[float, ...], ...] = key("BBOX_REG_WEIGHTS")

    def check(self, problems: Problems) -> None:
        name = "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"
        if len(self.weights) != len(self.ious):
            problems.add(name, f"expected one list for each of the {len(self.ious)} IOUS")
        if not all(len(row) == 4 and min(row) > 0 for row in self.weights):
            problems.add(name, "expected four numbers above 0 for each stage")


@dataclass(frozen=True)
class ROIHeadsOptions(DetectionOptions):
    """Region heads: how proposals become training samples, scored boxes and masks.

    append_objects: the objects' own boxes are proposals too. box_head: None for Res5ROIHeads. cascade: only for
    CascadeROIHeads. mask_head: None for a model without masks.
    """

    name: str = key("NAME", choices=("StandardROIHeads", "CascadeROIHeads", "Res5ROIHeads"), registry=True)
    in_features: tuple[str, ...] = key("IN_FEATURES", not_empty=True)
    append_objects: bool = key("PROPOSAL_APPEND_GT")
    class_agnostic: bool = key(f"{_BOX_HEAD}.CLS_AGNOSTIC_BBOX_REG")
    matching: MatchingOptions = part(MatchingOptions, section="MODEL.ROI_HEADS")
    box_regression: BoxRegressionOptions = part(BoxRegressionOptions, section=_BOX_HEAD)
    box_pooler: PoolerOptions = part(PoolerOptions, section=_BOX_HEAD)
    box_head: BoxHeadOptions | None = part(BoxHeadOptions, when=lambda cfg: cfg.MODEL.ROI_HEADS.NAME != "Res5ROIHeads")
    cascade: CascadeOptions | None = part(
        CascadeOptions, when=lambda cfg: cfg.MODEL.ROI_HEADS.NAME == "CascadeROIHeads"
    )
    mask_head: MaskHeadOptions | None = part(MaskHeadOptions, when=lambda cfg: cfg.MODEL.MASK_ON)

    def check(self, problems: Problems) -> None:
        judges = "MODEL.ROI_MASK_HEAD.QUALITY.ENABLED"
        if self.mask_head is None and problems.cfg[judges]:
            problems.add(judges, "there are no masks to rate: set MODEL.MASK_ON True")
        if self.cascade is None:
            return
        if self.cascade.ious[:1] != self.matching.thresholds:
            expected = "the first must be the one of MODEL.ROI_HEADS.IOU_THRESHOLDS"
            problems.add("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", expected)
        if not self.class_agnostic:
            problems.add(f"{_BOX_HEAD}.CLS_AGNOSTIC_BBOX_REG", "a cascade passes on one box per region: set True")


class ROIHeads(nn.Module):
    """Detectron2's StandardROIHeads: one box head and, unless it is None, one mask head, each with its own pooling.

    quality_head: predicts mask quality from the mask head's input and output; None, as in Detectron2, for none.
    boxes_at_once, masks_at_once: regions that are predicted together. The layers of the heads hold some hundred
    thousand numbers per region, and an image may have thousands; small chunks fit a CPU's cache.
    """

    boxes_at_once = 1024
    masks_at_once = 128
    box_head_name = "box_head"  # in Detectron2's state_dict

    def __init__(
        self,
        *,
        num_classes: int,
        in_features: Sequence[str],
        sampling: RegionSampling,
        box_pooler: Pooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_pooler: Pooler | None = None,
        mask_head: MaskHead | None = None,
        quality_head: QualityHead | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_features = tuple(in_features)
        self.sampling = sampling
        self.box_pooler = box_pooler
        # The order of the parts determines that of the parameters, on which an optimizer's state depends.
        self.add_module(self.box_head_name, box_head)
        self.box_predictor = box_predictor
        self.mask_pooler = mask_pooler
        self.mask_head = mask_head
        self.quality_head = quality_head

    def losses(
        self, features: dict[str, Tensor], proposals: Sequence[Proposals], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Return loss_cls, loss_box_reg and, with such heads, loss_mask and loss_mask_quality.

        A cascade has the first two for each stage.
        """
        maps = self.box_pooler.prepare_all(features, self.in_features)
        regions = [
            self.sampling(image_proposals, target, self.num_classes)
            for image_proposals, target in zip(proposals, targets, strict=True)
        ]
        losses = self._box_losses(maps, regions, targets)
        if self.mask_head is not None:
            pooled = self._pool_for_masks(maps, foreground_boxes(regions))
            losses |= foreground_mask_losses(self.mask_head, self.quality_head, pooled, regions, targets)
        return losses

    def detect(
        self, features: dict[str, Tensor], proposals: Sequence[Proposals], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Return the detections of every image; sizes: (height, width) without padding."""
        boxes = [image_proposals.boxes for image_proposals in proposals]
        predictor, *predicted = self._predict(features, boxes, sizes)
        return predictor.detect_all(*predicted, sizes)

    def move(
        self,
        features: dict[str, Tensor],
        boxes: Sequence[Tensor],
        classes: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Tensor]:
        """Return given boxes (N, 4) of classes (N,) of every image, refined by the heads and not clipped."""
        predictor, _, deltas, boxes = self._predict(features, boxes, sizes)
        moved = predictor.coder.decode(deltas, torch.cat(boxes)).unflatten(1, (-1, 4))
        rows, of_class = torch.arange(len(moved), device=moved.device), torch.cat(list(classes))
        moved = moved[rows, torch.zeros_like(of_class) if predictor.class_agnostic else of_class]
        return list(moved.split([len(image_boxes) for image_boxes in boxes]))

    def _predict(
        self, features: dict[str, Tensor], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> tuple[BoxPredictor, Tensor, Tensor, Sequence[Tensor]]:
        """Return the last predictor, its probabilities (M, K + 1) and deltas, and the boxes that these refer to."""
        maps = self.box_pooler.prepare_all(features, self.in_features)
        scores, deltas = by_portions(partial(self._score, maps), boxes, self.boxes_at_once)
        return self.box_predictor, scores.softmax(dim=1), deltas, boxes

    def masks(
        self, features: dict[str, Tensor], boxes: Sequence[Tensor], classes: Sequence[Tensor]
    ) -> list[RegionMasks]:
        """Return the masks for given boxes (N, 4) and classes (N,) of every image."""
        maps = self.box_pooler.prepare_all(features, self.in_features)
        pool = partial(self._pool_for_masks, maps)
        return predict_masks(self.mask_head, self.quality_head, pool, boxes, classes, self.masks_at_once)

    def _box_losses(
        self, maps: Sequence[Tensor], regions: Sequence[Regions], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        scores, deltas = self._score(maps, [region.boxes for region in regions])
        return self.box_predictor.losses(scores, deltas, regions, targets)

    def _score(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return scores (M, K + 1) and deltas (M, 4 or 4 * K) for the boxes of all images."""
        return self.box_predictor(self.box_head(self.box_pooler(maps, boxes)))

    def _pool_for_masks(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Return the input of the mask head, (M, C, s, s), for the boxes of all images."""
        return self.mask_pooler(maps, boxes)


class CascadeROIHeads(ROIHeads):
    """Cascade R-CNN (Cai and Vasconcelos 2018): each box head is trained on the refined boxes of the previous one.

    Detectron2's CascadeROIHeads. sampling: of the first stage; regions sampled there pass through all stages. matchers:
    of the later stages. box_heads and box_predictors: one per stage, with class-agnostic boxes. The mask head gets the
    sampled proposals in training and the detections in prediction. others: as in ROIHeads.
    """

    def __init__(
        self,
        *,
        matchers: Sequence[Matcher],
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[BoxPredictor],
        **others: Any,
    ) -> None:
        super().__init__(box_head=nn.ModuleList(box_heads), box_predictor=nn.ModuleList(box_predictors), **others)
        if not len(box_heads) == len(box_predictors) == len(matchers) + 1:
            raise ValueError(
                "a cascade needs a box head and a predictor per stage, and a matcher for each stage but the first"
            )
        if not all(predictor.class_agnostic for predictor in box_predictors):
            raise ValueError("the boxes of a cascade are class-agnostic: there is one box to pass on")
        self.matchers = tuple(matchers)

    def _predict(
        self, features: dict[str, Tensor], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> tuple[BoxPredictor, Tensor, Tensor, Sequence[Tensor]]:
        """See ROIHeads. Probabilities are averaged over all stages; the boxes are the input of the last stage."""
        maps = self.box_pooler.prepare_all(features, self.in_features)
        total: Tensor | float = 0.0
        for stage in range(len(self.box_predictor)):
            scores, deltas = by_portions(partial(self._run, stage, maps), boxes, self.boxes_at_once)
            total = total + scores.softmax(dim=1)
            if stage < len(self.matchers):
                boxes = self._move(stage, deltas, boxes, sizes)
        return self.box_predictor[-1], total * (1.0 / len(self.box_predictor)), deltas, boxes

    def _box_losses(
        self, maps: Sequence[Tensor], regions: Sequence[Regions], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        sizes = [target.size for target in targets]
        for stage, predictor in enumerate(self.box_predictor):
            boxes = [region.boxes for region in regions]
            scores, deltas = self._run(stage, maps, boxes)
            of_stage = predictor.losses(scores, deltas, regions, targets)
            losses.update({f"{name}_stage{stage}": loss for name, loss in of_stage.items()})
            if stage < len(self.matchers):
                moved = self._move(stage, deltas.detach(), boxes, sizes)
                regions = [
                    _relabel(image_boxes, target, self.matchers[stage], self.num_classes)
                    for image_boxes, target in zip(moved, targets, strict=True)
                ]
        return losses

    def _run(self, stage: int, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return scores (M, K + 1) and deltas (M, 4) of one stage for the boxes of all images."""
        pooled = self.box_pooler(maps, boxes)
        if pooled.requires_grad:
            # The losses of the stages are summed: the features get the mean of their gradients.
            pooled.register_hook(lambda gradient: gradient * (1.0 / len(self.box_predictor)))
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _move(
        self, stage: int, deltas: Tensor, boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Return the boxes (P, 4) of every image refined by a stage, clipped to the image and finite."""
        parts = zip(deltas.split([len(image_boxes) for image_boxes in boxes]), boxes, sizes, strict=True)
        decode = self.box_predictor[stage].coder.decode
        # NaN remains in the scores, which exclude it from the detections.
        return [clip_boxes(decode(part, image_boxes).nan_to_num(), size) for part, image_boxes, size in parts]


@torch.no_grad()
def _relabel(boxes: Tensor, target: Targets, matcher: Matcher, num_classes: int) -> Regions:
    """Relabel the boxes (P, 4) of one image; those without area and ignored ones are left out."""
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)]
    classes, matches = label_boxes(boxes, target, matcher, num_classes)
    kept = classes >= 0
    foreground = int((classes[kept] < num_classes).sum())
    return Regions(boxes[kept], classes[kept], matches[kept], foreground)


class Res5ROIHeads(ROIHeads):
    """Region heads that share the last stage of the ResNet: the C4 models of Mask R-CNN (He et al. 2017, figure 4).

    Detectron2's Res5ROIHeads. in_feature: the feature map that regions are pooled from. res5: blocks shared by boxes
    and masks. others: as in ROIHeads.
    """

    # A region has 14 x 14 x 1024 numbers, 0.8 MB, and as many again in res5.
    boxes_at_once = masks_at_once = 256
    box_head_name = "res5"

    def __init__(self, *, in_feature: str, pooler: Pooler, res5: nn.Module, **others: Any) -> None:
        super().__init__(in_features=(in_feature,), box_pooler=pooler, box_head=res5, **others)

    def losses(
        self, features: dict[str, Tensor], proposals: Sequence[Proposals], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """See ROIHeads; res5 is computed once for boxes and masks."""
        maps = self.box_pooler.prepare_all(features, self.in_features)
        regions = [
            self.sampling(image_proposals, target, self.num_classes)
            for image_proposals, target in zip(proposals, targets, strict=True)
        ]
        pooled = self._pool_for_masks(maps, [region.boxes for region in regions])
        losses = self.box_predictor.losses(*self.box_predictor(pooled.mean(dim=(2, 3))), regions, targets)
        if self.mask_head is not None:
            of_images = zip(pooled.split([len(region.boxes) for region in regions]), regions, strict=True)
            foreground = torch.cat([part[: region.foreground] for part, region in of_images])
            losses |= foreground_mask_losses(self.mask_head, self.quality_head, foreground, regions, targets)
        return losses

    def _score(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return self.box_predictor(self._pool_for_masks(maps, boxes).mean(dim=(2, 3)))

    def _pool_for_masks(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        return self.res5(self.box_pooler(maps, boxes))


def make_res5(*, res2_channels: int, width_per_group: int, groups: int, norm: str, stride_in_1x1: bool) -> nn.Module:
    """Return three bottleneck blocks of 8 * res2_channels, for a ResNet of any depth, as in Detectron2."""
    block = partial(
        BottleneckBlock,
        bottleneck_channels=groups * width_per_group * 8,
        norm=norm,
        stride_in_1x1=stride_in_1x1,
        groups=groups,
    )
    return make_stage(block, 3, in_channels=res2_channels * 4, out_channels=res2_channels * 8, stride=2)
