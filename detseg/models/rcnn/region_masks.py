"""The masks of regions: their loss and their prediction, the same for every kind of region heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detseg.models.rcnn.mask_head import MaskHead, mask_loss
from detseg.models.rcnn.mask_targets import sample_masks
from detseg.models.rcnn.regions import Regions, in_portions
from detseg.models.rcnn.targets import Targets

# The mask head's layers hold 28 x 28 x channels numbers a region: thousands of regions are predicted in portions.
MASKS_AT_ONCE = 512


def foreground_boxes(regions: Sequence[Regions]) -> list[Tensor]:
    """Return the boxes of every image whose masks are trained: those on objects."""
    return [region.boxes[: region.foreground] for region in regions]


def foreground_mask_loss(
    mask_head: MaskHead, pooled: Tensor, regions: Sequence[Regions], targets: Sequence[Targets]
) -> Tensor:
    """Return the loss of the masks of `foreground_boxes`, of which `pooled` (M, C, s, s) are the features."""
    boxes = foreground_boxes(regions)
    logits = mask_head.logits_of(pooled, torch.cat([region.classes[: region.foreground] for region in regions]))
    size = logits.shape[-1]
    truth, counted = [], []
    for image_boxes, region, target in zip(boxes, regions, targets, strict=True):
        objects = region.objects[: region.foreground]
        truth.append(sample_masks(target.layers, target.layer_of[objects], target.ids[objects], image_boxes, size))
        counted.append(_counted_pixels(target, image_boxes, size))
    anything_ignored = any(target.ignore is not None for target in targets)
    return mask_loss(logits, torch.cat(truth), torch.cat(counted) if anything_ignored else None)


def mask_probabilities(
    mask_head: MaskHead,
    pool: Callable[[Sequence[Tensor]], Tensor],
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    at_once: int = MASKS_AT_ONCE,
) -> list[Tensor]:
    """Return the mask probabilities (N, s, s) float32 for boxes (N, 4) and classes (N,) of every image.

    pool: gives the features (M, C, s, s) for the boxes of every image.
    """
    of_portions = torch.cat(list(classes)).split(at_once)
    probabilities = [
        mask_head.logits_of(pool(portion), portion_classes).sigmoid()
        for portion, portion_classes in zip(in_portions(boxes, at_once), of_portions, strict=True)
    ]
    return list(torch.cat(probabilities).split([len(image_boxes) for image_boxes in boxes]))


def _counted_pixels(target: Targets, boxes: Tensor, size: int) -> Tensor:
    """Return (M, size, size) bool: the cells that enter the mask loss, those that are not ignored."""
    if target.ignore is None:
        return torch.ones((len(boxes), size, size), dtype=torch.bool, device=boxes.device)
    nothing = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    return ~sample_masks(target.ignore[None].int(), nothing, nothing.int() + 1, boxes, size)
