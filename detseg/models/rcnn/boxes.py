"""Boxes relative to other boxes: the (dx, dy, dw, dh) that R-CNN regresses (Girshick et al. 2014, appendix C)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detseg.config.options import Options, key

# exp(dw) beyond this would overflow early in training; Detectron2's value.
LARGEST_LOG_SCALE = math.log(1000.0 / 16)
# Losses of the boxes themselves, with torchvision's functions: the formulas of Detectron2 and fvcore.
BOX_LOSSES = {"giou": "generalized_box_iou_loss", "diou": "distance_box_iou_loss", "ciou": "complete_box_iou_loss"}


@dataclass(frozen=True)
class BoxRegressionOptions(Options):
    """Options of box regression; section: that of the head.

    weights: of dx, dy, dw, dh. beta: where smooth L1 becomes linear. loss_weight: relative to the other losses.
    """

    weights: tuple[float, ...] = key("BBOX_REG_WEIGHTS", length=4, above=0)
    loss: str = key("BBOX_REG_LOSS_TYPE", choices=("smooth_l1", *BOX_LOSSES))
    beta: float = key("SMOOTH_L1_BETA", at_least=0)
    loss_weight: float = key("BBOX_REG_LOSS_WEIGHT", at_least=0)


class BoxCoder:
    """Deltas between boxes, and their loss.

    weights: factors on dx, dy, dw, dh, to give them unit variance. loss: "smooth_l1" of the deltas
    with `beta`, or one of BOX_LOSSES of the boxes.
    """

    def __init__(self, weights: Sequence[float], *, loss: str = "smooth_l1", beta: float = 0.0) -> None:
        self.weights = tuple(float(weight) for weight in weights)
        self.loss = loss
        self.beta = beta

    def encode(self, sources: Tensor, targets: Tensor) -> Tensor:
        """Return deltas (n, 4) that move sources (n, 4) to targets (n, 4); all sides must be positive."""
        source_x, source_y, source_width, source_height = _centres_and_sides(sources)
        target_x, target_y, target_width, target_height = _centres_and_sides(targets)
        wx, wy, ww, wh = self.weights
        return torch.stack(
            (
                wx * (target_x - source_x) / source_width,
                wy * (target_y - source_y) / source_height,
                ww * torch.log(target_width / source_width),
                wh * torch.log(target_height / source_height),
            ),
            dim=1,
        )

    def decode(self, deltas: Tensor, sources: Tensor) -> Tensor:
        """Return boxes (n, k * 4) float32 from deltas (n, k * 4) and sources (n, 4)."""
        deltas = deltas.float().reshape(len(deltas), deltas.shape[1] // 4, 4)
        x, y, width, height = (value[:, None] for value in _centres_and_sides(sources.float()))
        wx, wy, ww, wh = self.weights
        centre_x = deltas[..., 0] / wx * width + x
        centre_y = deltas[..., 1] / wy * height + y
        new_width = torch.exp((deltas[..., 2] / ww).clamp(max=LARGEST_LOG_SCALE)) * width
        new_height = torch.exp((deltas[..., 3] / wh).clamp(max=LARGEST_LOG_SCALE)) * height
        corners = (
            centre_x - 0.5 * new_width,
            centre_y - 0.5 * new_height,
            centre_x + 0.5 * new_width,
            centre_y + 0.5 * new_height,
        )
        return torch.stack(corners, dim=-1).flatten(1)

    def summed_loss(self, deltas: Tensor, sources: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the summed loss, in float32, of deltas (n, 4) that should move sources (n, 4) to targets (n, 4).

        weights: (n,), factors on the losses; None for 1.
        """
        deltas = deltas.float()
        reduction = "sum" if weights is None else "none"
        if self.loss in BOX_LOSSES:
            import torchvision.ops  # see torchvision_ops: import only once it is known to work

            loss = getattr(torchvision.ops, BOX_LOSSES[self.loss])
            losses = loss(self.decode(deltas, sources), targets, reduction=reduction)
        else:
            losses = F.smooth_l1_loss(deltas, self.encode(sources, targets), beta=self.beta, reduction=reduction)
        if weights is None:
            return losses
        return ((losses.sum(dim=1) if losses.ndim == 2 else losses) * weights).sum()


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes (..., 4) clipped to the border of an image of size (height, width)."""
    height, width = size
    x = boxes[..., 0::2].clamp(min=0, max=width)
    y = boxes[..., 1::2].clamp(min=0, max=height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def _centres_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width = boxes[:, 2] - boxes[:, 0]
    height = boxes[:, 3] - boxes[:, 1]
    return boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height, width, height
