"""What is done with proposals: which object each is, where exactly, and its mask.

The contract of region heads, kept by cascade_heads.py and res5_heads.py too: `losses`, `detect` and `masks` as below,
and the attributes `num_classes` and `mask_head` (None for boxes alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from detseg.models.rcnn.box_head import BoxPredictor, Detections
from detseg.models.rcnn.mask_head import MaskHead
from detseg.models.rcnn.pooler import Pooler
from detseg.models.rcnn.region_masks import foreground_boxes, foreground_mask_loss, mask_probabilities
from detseg.models.rcnn.regions import BOXES_AT_ONCE, RegionSampling, by_portions
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
