"""Pixel losses, averaged over the pixels that count: not in ignored regions, not in the padding of a batch.

Symbols: B images of H x W pixels, C pixel classes with the background first. share: (B, H, W) float32, the weight of
every pixel in the loss, usually 1; pixels with 0 do not count at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detseg.config.options import Options, key

CROSS_ENTROPY, FOCAL, DICE = "cross_entropy", "focal", "dice"
_FOCUS = 2.0  # the exponent of Lin et al., Focal Loss for Dense Object Detection, ICCV 2017


@dataclass(frozen=True)
class LossOptions(Options):
    """names: losses that are summed. class_weights: of cross-entropy and focal loss; empty for 1 each."""

    section = "MODEL.UNET"

    names: tuple[str, ...] = key("LOSSES", choices=(CROSS_ENTROPY, FOCAL, DICE), not_empty=True)
    class_weights: tuple[float, ...] = key("CLASS_WEIGHTS", above=0)


def as_classes(logits: Tensor) -> Tensor:
    """Convert foreground logits (B, 1, H, W) to logits of background and foreground (B, 2, H, W)."""
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def class_losses(
    name: str, logits: Tensor, target: Tensor, share: Tensor, names: Sequence[str], weights: Sequence[float] = ()
) -> dict[str, Tensor]:
    """Return loss_NAME and others, as in LossOptions.

    logits: (B, C, H, W). target: (B, H, W) int64. weights: one per class, or none.
    """
    logits = logits.float()
    losses = {}
    if CROSS_ENTROPY in names or FOCAL in names:
        entropy = F.cross_entropy(logits, target, reduction="none")
        of_class = logits.new_tensor(weights)[target] if weights else None
        if CROSS_ENTROPY in names:
            losses[f"loss_{name}"] = mean_loss(entropy, share, of_class)
        if FOCAL in names:
            wrong = -torch.expm1(-entropy)  # 1 - the probability of the true class
            losses[f"loss_{name}_focal"] = mean_loss(entropy * wrong**_FOCUS, share, of_class)
    if DICE in names:
        losses[f"loss_{name}_dice"] = dice_loss(logits.softmax(dim=1), target, share)
    return losses


def dice_loss(probabilities: Tensor, target: Tensor, share: Tensor) -> Tensor:
    """Return 1 - 2 sum(p y) / (sum(p) + sum(y)) over the pixels of the batch, averaged over the classes without
    background (Milletari et al., V-Net, 3DV 2016). A class that is neither present nor predicted has no loss.
    """
    losses = []
    for number in range(1, probabilities.shape[1]):
        p, y = probabilities[:, number], (target == number).float()
        losses.append(1 - (2 * (p * y * share).sum() + 1) / (((p + y) * share).sum() + 1))
    return torch.stack(losses).mean()


def mean_loss(values: Tensor, share: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean of values (B, H, W) over the pixels that count, 0 if there are none; weights: (B, H, W)."""
    counts = (share > 0).float() if weights is None else (share > 0) * weights
    return (values * share * counts).sum() / counts.sum().clamp(min=1)


@torch.no_grad()
def pixel_ious(logits: Tensor, target: Tensor, share: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return iou_NAME of every class except background, over the batch; 1 if neither present nor predicted."""
    predicted = logits.argmax(dim=1)
    ious = {}
    for number, name in enumerate(names, start=1):
        p, y = (predicted == number) & (share > 0), (target == number) & (share > 0)
        union = (p | y).sum()
        ious[f"iou_{name}"] = ((p & y).sum() + (union == 0)) / union.clamp(min=1)
    return ious
