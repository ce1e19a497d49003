"""Backbone, RPN and region heads put together: Mask R-CNN and its relatives (Detectron2's GeneralizedRCNN)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from detseg.models.answers import RegionLook, RegionSegmenter
from detseg.models.rcnn.box_head import Detections
from detseg.models.rcnn.images import ImageInput
from detseg.models.rcnn.layers import ConvNorm
from detseg.models.rcnn.pooler import Pooler
from detseg.models.rcnn.rpn import RPN
from detseg.models.rcnn.targets import Targets
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from typing_extensions import Self


class GeneralizedRCNN(RegionSegmenter):
    """image_input makes the batch; the other parts bear the names that they have in Detectron2's state_dict."""

    def __init__(
        self, *, image_input: ImageInput, backbone: nn.Module, proposal_generator: RPN, roi_heads: nn.Module
    ) -> None:
        super().__init__()
        self.image_input = image_input
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads

    @property
    def trains_everything(self) -> bool:
        """See Segmenter: the RPN looks at whole feature maps, the region heads only where there are regions."""
        return set(self.backbone.channels) <= set(self.proposal_generator.in_features)

    def prefer_speed(self) -> Self:
        """See Segmenter.prefer_speed; norms with fixed statistics are folded, pooling is done by matrix products,
        wide 3 x 3 convolutions by Winograd's."""
        for module in self.modules():
            if isinstance(module, (ConvNorm, Pooler)):
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

    @torch.inference_mode()
    def look(
        self, images: Sequence[np.ndarray], *, output_sizes: Sequence[tuple[int, int]] | None = None
    ) -> RegionLook:
        """See Segmenter.look; the feature maps are kept."""
        if self.training:
            raise RuntimeError("predict() needs the model in evaluation mode: call model.eval() before")
        batch = self.image_input(images, self.device)
        features = self.backbone(batch.tensor)

        def detect() -> list[Detections]:
            proposals = self.proposal_generator.propose(self.proposal_generator(features), batch.sizes)
            return self.roi_heads.detect(features, proposals, batch.sizes)

        head = self.roi_heads.mask_head
        return RegionLook(
            sizes=batch.sizes,
            output_sizes=output_sizes,
            detect=detect,
            masks=None if head is None else functools.partial(self.roi_heads.masks, features),
            needs_classes=head is not None and not head.class_agnostic and self.roi_heads.num_classes > 1,
            device=self.device,
        )
