"""Regions cut out of label layers against roi_align of whole masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from detseg.models.rcnn import targets
from detseg.models.rcnn.targets import sample_masks
from detseg.structures.label_layers import LabelLayers


def overlapping_disks(count: int, height: int, width: int, radius: tuple[float, float], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    masks = [
        (y - rng.uniform(0, height)) ** 2 + (x - rng.uniform(0, width)) ** 2 < rng.uniform(*radius) ** 2
        for _ in range(count)
    ]
    return np.stack([mask for mask in masks if mask.any()])


def by_whole_masks(masks: np.ndarray, index: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    regions = torch.cat((index[:, None].float(), boxes), dim=1)
    return roi_align(torch.from_numpy(masks)[:, None].float(), regions, size, 1.0, 0, aligned=True)[:, 0]


@pytest.mark.parametrize("radius", [(2, 6), (8, 20), (40, 90)])
@pytest.mark.parametrize("size", [14, 28])
def test_equal_to_roi_align_of_whole_masks(radius: tuple[float, float], size: int) -> None:
    height, width = 120, 150
    masks = overlapping_disks(25, height, width, radius, seed=size)
    layers = LabelLayers.from_masks(masks)
    assert layers.num_layers > 1, "the disks should overlap"
    rng = np.random.default_rng(1)
    index = torch.from_numpy(rng.integers(0, len(masks), 300))
    boxes = torch.from_numpy(layers.boxes())[index] + torch.from_numpy(rng.normal(0, 3, (300, 4))).float()
    boxes[:50] = torch.from_numpy(layers.boxes())[index[:50]]
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 0.3)
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
    got = sample_masks(
        torch.from_numpy(layers.layers), torch.from_numpy(layers.layer_index())[index], (index + 1).int(), boxes, size
    )
    expected = by_whole_masks(masks, index, boxes, size)
    # Where the average is one half but for rounding, either answer is right.
    clear = (expected - 0.5).abs() > 1e-5
    assert torch.equal(got[clear], (expected >= 0.5)[clear])
    assert clear.float().mean() > 0.97
    assert (got != (expected >= 0.5)).sum() <= 1e-4 * got.numel()


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = LabelLayers.from_masks(overlapping_disks(12, 64, 64, (4, 20), seed=0))
    arguments = [
        torch.from_numpy(layers.layers),
        torch.from_numpy(layers.layer_index()),
        torch.arange(1, len(layers) + 1, dtype=torch.int32),
        torch.from_numpy(layers.boxes()),
    ]
    whole = sample_masks(*arguments, 28)
    monkeypatch.setattr(targets, "PIXELS_PER_CHUNK", 1)
    assert torch.equal(sample_masks(*arguments, 28), whole)


def test_a_box_around_a_square_is_full() -> None:
    layers = torch.zeros((1, 40, 50), dtype=torch.int32)
    layers[0, 10:20, 30:44] = 7
    boxes = torch.tensor([[30.0, 10.0, 44.0, 20.0], [16.0, 10.0, 44.0, 20.0], [0.0, 0.0, 10.0, 10.0]])
    nothing = torch.zeros(3, dtype=torch.int64)
    got = sample_masks(layers, nothing, nothing.int() + 7, boxes, 28)
    assert got[0].all()
    assert got[1].sum(dim=1).tolist() == [14] * 28, "the object fills the right half"
    assert not got[2].any()


def test_nothing_to_sample() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert sample_masks(torch.zeros((1, 8, 8), dtype=torch.int32), none, none.int(), torch.zeros(0, 4), 28).shape == (
        0,
        28,
        28,
    )
