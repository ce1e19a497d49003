"""What the mask head should answer: regions cut straight out of label layers, without making any full-size mask.

Equal to torchvision's roi_align (aligned, adaptive number of samples) of the masks `layers == id`, thresholded at 0.5.
Regions of similar size are computed together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detseg.models.rcnn.axis_weights import axis_weights, crop_pixels, crop_side

THRESHOLD = 0.5
# Pixels of crops held at once.
PIXELS_PER_CHUNK = 2_000_000
CROP_STEP = 16


@torch.no_grad()
def sample_masks(layers: Tensor, layer_of: Tensor, ids: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return (M, size, size) bool: in each cell, whether at least half of it belongs to the region's object.

    layers: (L, H, W) int32. layer_of: (M,) int64 and ids: (M,) int32, the object of each region. boxes: (M, 4) regions.
    """
    masks = torch.zeros((len(boxes), size, size), dtype=torch.bool, device=boxes.device)
    if len(boxes) == 0 or layers.numel() == 0:
        return masks
    sides = torch.maximum(*(crop_side(boxes[:, axis], boxes[:, axis + 2], CROP_STEP) for axis in (0, 1)))
    with torch.autocast(boxes.device.type, enabled=False):
        for side in sorted(set(sides.tolist())):
            group = torch.nonzero(sides == side).squeeze(1)
            for part in group.split(max(1, PIXELS_PER_CHUNK // side**2)):
                masks[part] = _sample(layers, layer_of[part], ids[part], boxes[part], size, side)
    return masks


def _sample(layers: Tensor, layer_of: Tensor, ids: Tensor, boxes: Tensor, size: int, side: int) -> Tensor:
    _, height, width = layers.shape
    columns, left, in_x = axis_weights(boxes[:, 0], boxes[:, 2], length=width, size=size, side=side)
    rows, top, in_y = axis_weights(boxes[:, 1], boxes[:, 3], length=height, size=size, side=side)
    y, x = crop_pixels(top, side, height), crop_pixels(left, side, width)
    pixels = layers[layer_of[:, None, None], y[:, :, None], x[:, None, :]]
    sums = rows @ (pixels == ids[:, None, None]).float() @ columns.transpose(1, 2)
    return sums / (in_x * in_y).clamp(min=1)[:, None, None] >= THRESHOLD
