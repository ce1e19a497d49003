"""Backbone, RPN and region heads combined: Mask R-CNN and its relatives (Detectron2's GeneralizedRCNN)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from detseg.models.base import check_finite
from detseg.models.depthwise import DepthwiseConv2d
from detseg.models.image_input import ImageInput
from detseg.models.rcnn.fused import Linear
from detseg.models.rcnn.layers import ConvNorm
from detseg.models.rcnn.mask_head import MaskHead
from detseg.models.rcnn.roi_align import Pooler
from detseg.models.rcnn.rpn import RPN, Proposals
from detseg.models.rcnn.targets import Targets
from detseg.models.region_segmenter import Detections, RegionMasks, RegionSegmenter
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from typing_extensions import Self


class GeneralizedRCNN(RegionSegmenter):
    """image_input makes batches; the other parts have their names of Detectron2's state_dict."""

    def __init__(
        self, *, image_input: ImageInput, backbone: nn.Module, proposal_generator: RPN, roi_heads: nn.Module
    ) -> None:
        super().__init__()
        self.image_input = image_input
        self.backbone = backbone
        if hasattr(backbone, "bottom_up"):
            self.pretrained_prefix = "backbone.bottom_up."
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads

    @property
    def trains_everything(self) -> bool:
        """See Segmenter: the RPN uses whole feature maps, the region heads only regions of them."""
        return set(self.backbone.channels) <= set(self.proposal_generator.in_features)

    @property
    def largest_object(self) -> float:
        """See Segmenter: as large as the largest anchors."""
        return self.proposal_generator.anchor_generator.largest_size

    def prefer_speed(self) -> Self:
        """See Segmenter.prefer_speed; norms with fixed statistics are folded, pooling uses weighted sums, and depthwise
        convolutions their own backward pass."""
        for module in self.modules():
            if isinstance(module, (ConvNorm, DepthwiseConv2d, Linear, MaskHead, Pooler)):
                module.fast = True
        return super().prefer_speed()

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return loss_rpn_cls and loss_rpn_loc of a batch, and the losses of the region heads."""
        device = self.device
        targets = [Targets.from_sample(sample, self.roi_heads.num_classes, device) for sample in samples]
        batch = self.image_input([sample.image for sample in samples], device)
        features = self.backbone(batch.tensor)
        output = self.proposal_generator(features)
        losses = self.proposal_generator.losses(output, batch.sizes, targets)
        proposals = self.proposal_generator.propose(output, batch.sizes)
        losses.update(self.roi_heads.losses(features, proposals, targets))
        return losses

    @property
    def has_mask_head(self) -> bool:
        """See RegionSegmenter."""
        return self.roi_heads.mask_head is not None

    def extract(self, images: Sequence[np.ndarray]) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
        """See RegionSegmenter.extract: feature maps by name, and the (height, width) of every image."""
        batch = self.image_input(images, self.device)
        return self.backbone(batch.tensor), batch.sizes

    def detect(self, features: tuple[dict[str, Tensor], list[tuple[int, int]]]) -> list[Detections]:
        """See RegionSegmenter.detect."""
        return self.roi_heads.detect(features[0], self.propose(features), features[1])

    def propose(self, features: tuple[dict[str, Tensor], list[tuple[int, int]]]) -> list[Proposals]:
        """Return the proposals of every image, from the features of `extract`."""
        maps, sizes = features
        check_finite("feature maps (backbone)", *maps.values())
        output = self.proposal_generator(maps)
        check_finite("proposals (proposal_generator)", *output.objectness, *output.deltas)
        return self.proposal_generator.propose(output, sizes)

    def region_masks(
        self,
        features: tuple[dict[str, Tensor], list[tuple[int, int]]],
        boxes: list[Tensor],
        classes: list[Tensor],
    ) -> list[RegionMasks]:
        """See RegionSegmenter.region_masks."""
        return self.roi_heads.masks(features[0], boxes, classes)
