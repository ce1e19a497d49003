"""What the mask head should answer: regions cut straight out of label layers, without making any full-size mask.

Equal to torchvision's roi_align (aligned, adaptive number of samples) of the masks `layers == id`, thresholded at 0.5.
That average of bilinear samples is separable, so a region is `rows (s, S) @ crop (S, S) @ columns (S, s)` with a crop
of the label layer just large enough for the box; regions of similar size are computed together.
"""

from __future__ import annotations

import torch
from torch import Tensor

THRESHOLD = 0.5
# Pixels of crops held at once.
PIXELS_PER_CHUNK = 2_000_000
SMALLEST_CROP = 16


@torch.no_grad()
def sample_masks(layers: Tensor, layer_of: Tensor, ids: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return (M, size, size) bool: in each cell, whether at least half of it belongs to the region's object.

    layers: (L, H, W) int32. layer_of: (M,) int64 and ids: (M,) int32, the object of each region. boxes: (M, 4) regions.
    """
    masks = torch.zeros((len(boxes), size, size), dtype=torch.bool, device=boxes.device)
    if len(boxes) == 0 or layers.numel() == 0:
        return masks
    sides = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
    # A crop holds the pixels from below the first sample to above the last one.
    crop_sides = _crop_sides(sides, max(layers.shape[1:]))
    with torch.autocast(boxes.device.type, enabled=False):
        for crop_side in sorted(set(crop_sides.tolist())):
            group = torch.nonzero(crop_sides == crop_side).squeeze(1)
            for part in group.split(max(1, PIXELS_PER_CHUNK // crop_side**2)):
                masks[part] = _sample(layers, layer_of[part], ids[part], boxes[part], size, crop_side)
    return masks


def _crop_sides(sides: Tensor, largest: int) -> Tensor:
    """Return (M,) int64: the side of the crop for each box, a power of two unless the image is smaller."""
    exponent = torch.log2((sides + 3).clamp(min=SMALLEST_CROP)).ceil()
    return (2**exponent).clamp(max=largest).long()


def _sample(layers: Tensor, layer_of: Tensor, ids: Tensor, boxes: Tensor, size: int, crop_side: int) -> Tensor:
    _, height, width = layers.shape
    columns, left, column_samples = _axis_weights(boxes[:, 0], boxes[:, 2], width, size, crop_side)
    rows, top, row_samples = _axis_weights(boxes[:, 1], boxes[:, 3], height, size, crop_side)
    reach = torch.arange(crop_side, device=boxes.device)
    y = (top[:, None] + reach).clamp(max=height - 1)
    x = (left[:, None] + reach).clamp(max=width - 1)
    pixels = layers[layer_of[:, None, None], y[:, :, None], x[:, None, :]]
    crops = (pixels == ids[:, None, None]).float()
    sums = rows @ crops @ columns.transpose(1, 2)
    return sums / (row_samples * column_samples).clamp(min=1)[:, None, None] >= THRESHOLD


def _axis_weights(low: Tensor, high: Tensor, length: int, size: int, crop_side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the pixels along one axis, not yet divided by the number of samples.

    low, high: (M,) ends of the boxes. length: of the image. Returns weights (M, size, crop_side), the first pixel (M,)
    int64 of the crop and the number of samples (M,) in each of the `size` cells. Sample positions are computed as in
    roi_align.
    """
    start, cell = low - 0.5, (high - low) / size
    samples = cell.ceil()
    number = torch.arange(max(int(samples.max()), 1), device=low.device)
    position = torch.arange(size, device=low.device)[:, None] * cell[:, None, None] + start[:, None, None]
    position = position + (number + 0.5) * cell[:, None, None] / samples.clamp(min=1)[:, None, None]
    # Beyond one pixel outside the image there is nothing; nearer to it the border goes on.
    exists = (number < samples[:, None, None]) & (position >= -1) & (position <= length)
    position = position.clamp(min=0)
    below = position.long().clamp(max=length - 1)
    above = (below + 1).clamp(max=length - 1)
    upper = torch.where(below == length - 1, torch.zeros_like(position), position - below)
    first = start.floor().long().clamp(0, length - 1)
    weights = torch.zeros((len(low), size, crop_side), device=low.device)
    for pixel, weight in ((below, 1 - upper), (above, upper)):
        place = (pixel - first[:, None, None]).clamp(0, crop_side - 1)
        weights.scatter_add_(2, place, weight * exists)
    return weights, first, samples
