"""ROIAlign along one axis: the weights with which the pixels of a crop enter each cell of a region.

ROIAlign averages bilinear samples on a grid that lies parallel to the axes, so it is separable: a pooled region is
`rows (s, S) @ crop (S, S) @ columns (S, s)`, with a crop just large enough for the region. Sample positions and borders
are those of torchvision's roi_align with aligned=True.
"""

from __future__ import annotations

import torch
from torch import Tensor


def crop_side(low: Tensor, high: Tensor, step: int) -> Tensor:
    """Return (M,) int64: how many pixels, rounded up to a multiple of `step`, regions [low, high) (M,) can reach."""
    return ((high - low + 3) / step).ceil().long().clamp(min=1) * step


def axis_weights(
    low: Tensor, high: Tensor, *, length: int, size: int, side: int, sampling_ratio: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights (M, size, side), the first pixel (M,) int64 of each crop, and the samples a cell (M,) float32.

    low, high: (M,) ends of the regions in pixels of a map of `length` pixels. size: number of cells. side: of the
    crops, at least `crop_side`. sampling_ratio: samples a cell, 0 for ceil(cell). The weights of a cell add up to the
    number of its samples that lie on the map or at most one pixel outside; they are not yet divided by the number of
    samples.
    """
    start, cell = low - 0.5, (high - low) / size
    samples = cell.ceil() if sampling_ratio == 0 else torch.full_like(cell, sampling_ratio)
    number = torch.arange(max(int(samples.max()), 1), device=low.device)
    position = torch.arange(size, device=low.device)[:, None] * cell[:, None, None] + start[:, None, None]
    position = position + (number + 0.5) * cell[:, None, None] / samples.clamp(min=1)[:, None, None]
    # Beyond one pixel outside there is nothing; nearer to the map its border goes on.
    exists = (number < samples[:, None, None]) & (position >= -1) & (position <= length)
    position = position.clamp(min=0)
    below = position.long().clamp(max=length - 1)
    above = (below + 1).clamp(max=length - 1)
    upper = torch.where(below == length - 1, torch.zeros_like(position), position - below)
    first = start.floor().long().clamp(0, length - 1)
    weights = torch.zeros((len(low), size, side), device=low.device)
    for pixel, weight in ((below, 1 - upper), (above, upper)):
        place = (pixel - first[:, None, None]).clamp(0, side - 1)
        weights.scatter_add_(2, place, weight * exists)
    return weights, first, samples


def crop_pixels(first: Tensor, side: int, length: int) -> Tensor:
    """Return the pixels (M, side) int64 of crops that begin at `first` (M,); those beyond the map have no weight."""
    return (first[:, None] + torch.arange(side, device=first.device)).clamp(max=length - 1)
