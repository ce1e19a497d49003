"""The mask-quality head, which predicts how well each mask covers its object.

Mask Scoring R-CNN (Huang et al., CVPR 2019): a class score describes the content of a box, not the quality of its mask.
A small head gets the features of the region together with the predicted mask and learns the IoU of that mask with the
object. Predictions are then ranked by class score x quality.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detseg.config.options import Options, Problems, key
from detseg.models.rcnn.box_head import ConvFCHead
from detseg.models.rcnn.fused import Linear
from detseg.models.rcnn.layers import check_group_norm, init_normal

# Threshold on mask probabilities, as for pasted predictions.
MASK_THRESHOLD = 0.5


@dataclass(frozen=True)
class QualityOptions(Options):
    """num_conv 3 x 3 convolutions, the last of which halves the region, then num_fc fully connected layers.

    rescores: whether predictions get qualities, by which their scores are multiplied.
    """

    section = "MODEL.ROI_MASK_HEAD.QUALITY"

    num_conv: int = key("NUM_CONV", at_least=1)
    conv_channels: int = key("CONV_DIM", at_least=1)
    num_fc: int = key("NUM_FC", at_least=0)
    fc_channels: int = key("FC_DIM", at_least=1)
    class_agnostic: bool = key("CLS_AGNOSTIC")
    loss_weight: float = key("LOSS_WEIGHT", at_least=0)
    rescores: bool = key("RESCORE")

    def check(self, problems: Problems) -> None:
        check_group_norm(problems, "MODEL.ROI_MASK_HEAD.NORM", f"{self.section}.CONV_DIM", self.conv_channels)


class QualityHead(ConvFCHead):
    """in_channels and size: of the pooled regions (M, in_channels, size, size). norm: of the convolutions.

    class_agnostic: one quality for all classes instead of one for each. rescores: see QualityOptions.
    """

    def __init__(
        self, options: QualityOptions, *, in_channels: int, size: int, num_classes: int, norm: str = ""
    ) -> None:
        super().__init__(
            in_channels=in_channels + 1,  # the mask
            size=size,
            conv_channels=[options.conv_channels] * options.num_conv,
            fc_channels=[options.fc_channels] * options.num_fc,
            norm=norm,
            last_stride=2,
        )
        self.class_agnostic, self.rescores = options.class_agnostic, options.rescores
        self.loss_weight = options.loss_weight
        predictor = Linear(self.out_channels, 1 if self.class_agnostic else num_classes)
        init_normal(predictor, std=0.01)
        self.add_module("predictor", predictor)

    def quality_of(self, pooled: Tensor, probabilities: Tensor, classes: Tensor) -> Tensor:
        """Return the expected IoU (M,) float32, above 0 and up to 1, of masks of classes (M,) with their objects.

        pooled: (M, C, size, size) input of the mask head. probabilities: (M, s, s) its output, which gets no gradient
        from here: masks are learnt from their own loss alone.
        """
        masks = F.max_pool2d(probabilities.detach()[:, None], probabilities.shape[-1] // pooled.shape[-1])
        logits = self(torch.cat((pooled, masks.to(pooled.dtype)), dim=1)).float()
        own = logits[:, 0] if self.class_agnostic else logits.gather(1, classes[:, None])[:, 0]
        return own.sigmoid()


@torch.no_grad()
def mask_ious(probabilities: Tensor, truth: Tensor, boxes: Tensor, areas: Tensor) -> Tensor:
    """Return the IoU (M,) float32 of predicted masks with whole objects, including parts outside the boxes.

    probabilities: (M, s, s). truth: (M, s, s) bool, the objects within boxes (M, 4). areas: (M,) pixels of the objects.
    """
    masks = probabilities >= MASK_THRESHOLD
    sides = boxes[:, 2:] - boxes[:, :2]
    pixels_per_cell = sides[:, 0] * sides[:, 1] / (masks.shape[1] * masks.shape[2])
    shared, predicted, inside = (part.sum(dim=(1, 2)) * pixels_per_cell for part in (masks & truth, masks, truth))
    # By rounding in cells, an object may have more area than pixels.
    union = predicted + torch.maximum(areas, inside) - shared
    return shared / union.clamp(min=1e-6)


def quality_loss(quality: Tensor, ious: Tensor, counted: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of qualities (M,) against the masks' IoUs (M,); zero, with gradients of zero, for none.

    counted: (M,) bool, the masks whose IoU is known; None for all. weights: (M,), factors on their losses, by which the
    mean is not divided; None for 1.
    """
    loss = (quality - ious).square()
    loss = loss if weights is None else loss * weights
    counted = torch.ones_like(loss) if counted is None else counted.to(loss.dtype)
    return (loss * counted).sum() / counted.sum().clamp(min=1)
