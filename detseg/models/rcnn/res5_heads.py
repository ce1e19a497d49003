"""Region heads that share the last stage of the ResNet: the C4 models of Mask R-CNN (He et al. 2017, figure 4 left)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from detseg.models.rcnn.box_head import BoxPredictor, Detections
from detseg.models.rcnn.mask_head import MaskHead
from detseg.models.rcnn.pooler import Pooler
from detseg.models.rcnn.region_masks import foreground_mask_loss, mask_probabilities
from detseg.models.rcnn.regions import RegionSampling, by_portions
from detseg.models.rcnn.resnet import BottleneckBlock, make_stage
from detseg.models.rcnn.rpn import Proposals
from detseg.models.rcnn.targets import Targets

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
