"""Losses of boxes; everything in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detseg.models.rcnn.box_coding import BoxCoder

BOX_LOSSES = ("smooth_l1", "giou")


def box_regression_loss(
    *, coder: BoxCoder, sources: Tensor, deltas: Tensor, targets: Tensor, loss_type: str, beta: float
) -> Tensor:
    """Return the summed loss of predicted deltas (n, 4) that should move sources (n, 4) to targets (n, 4)."""
    deltas = deltas.float()
    if loss_type == "smooth_l1":
        return smooth_l1_sum(deltas, coder.encode(sources, targets), beta)
    if loss_type == "giou":
        return giou_loss(coder.decode(deltas, sources), targets).sum()
    raise ValueError(f"unknown box loss {loss_type!r}; known: {', '.join(BOX_LOSSES)}")


def smooth_l1_sum(input: Tensor, target: Tensor, beta: float) -> Tensor:
    """Summed Huber loss, divided by beta; absolute difference for beta = 0, which torch's own loss does not know."""
    if beta < 1e-5:
        return (input - target).abs().sum()
    return F.smooth_l1_loss(input, target, reduction="sum", beta=beta)


def giou_loss(boxes: Tensor, targets: Tensor, eps: float = 1e-7) -> Tensor:
    """Return 1 - generalized IoU (n,) of boxes (n, 4) and targets (n, 4) (Rezatofighi et al. 2019)."""
    inner = (torch.minimum(boxes[:, 2:], targets[:, 2:]) - torch.maximum(boxes[:, :2], targets[:, :2])).clamp(min=0)
    outer = torch.maximum(boxes[:, 2:], targets[:, 2:]) - torch.minimum(boxes[:, :2], targets[:, :2])
    intersection = inner[:, 0] * inner[:, 1]
    hull = outer[:, 0] * outer[:, 1]
    union = _area(boxes) + _area(targets) - intersection
    iou = intersection / (union + eps)
    return 1 - (iou - (hull - union) / (hull + eps))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
