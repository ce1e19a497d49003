"""Pooling: the level of a box, and weighted pixels instead of torchvision's kernel."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from detseg.models.rcnn import roi_align as module
from detseg.models.rcnn.roi_align import Pooler, weighted_roi_align


def random_regions(count: int, height: int, width: int, largest: float) -> torch.Tensor:
    corner = torch.rand(count, 2) * torch.tensor([width, height]) - 3
    boxes = torch.cat((corner, corner + torch.rand(count, 2) * largest + 0.01), dim=1)
    return torch.cat((torch.randint(0, 2, (count, 1)).float(), boxes), dim=1)


def weighted(feature: torch.Tensor, regions: torch.Tensor, size: int, sampling_ratio: int) -> torch.Tensor:
    levels = torch.zeros(len(regions), dtype=torch.int64)
    return weighted_roi_align([feature], [4], levels, regions, size, sampling_ratio)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize(("size", "largest"), [(7, 8.0), (14, 40.0), (7, 300.0)])
def test_sums_of_weighted_pixels_are_roi_align(size: int, largest: float, sampling_ratio: int) -> None:
    torch.manual_seed(0)
    feature = torch.randn(2, 5, 24, 30).contiguous(memory_format=torch.channels_last).requires_grad_()
    regions = random_regions(200, 96, 120, largest)
    weights = torch.randn(200, 5, size, size)
    got = weighted(feature, regions, size, sampling_ratio)
    (of_got,) = torch.autograd.grad((got * weights).sum(), feature)
    expected = roi_align(feature, regions, size, 0.25, sampling_ratio, aligned=True)
    (of_expected,) = torch.autograd.grad((expected * weights).sum(), feature)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(of_got, of_expected, atol=1e-4, rtol=1e-4)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    feature, regions = torch.randn(2, 5, 24, 30), random_regions(50, 96, 120, 60.0)
    whole = weighted(feature, regions, 7, 0)
    monkeypatch.setattr(module, "NUMBERS_PER_CHUNK", 1)
    torch.testing.assert_close(weighted(feature, regions, 7, 0), whole)


@pytest.mark.parametrize("fast", [False, True])
def test_no_region(fast: bool) -> None:
    pooler = Pooler(output_size=7, strides=[4, 8], sampling_ratio=0)
    pooler.fast = fast
    features = [torch.randn(2, 3, 16, 16, requires_grad=True), torch.randn(2, 3, 8, 8, requires_grad=True)]
    pooled = pooler(features, [torch.zeros(0, 4), torch.zeros(0, 4)])
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert not features[0].grad.any()


def test_levels_of_boxes() -> None:
    pooler = Pooler(output_size=7, strides=[4, 8, 16, 32], sampling_ratio=0)
    sides = torch.tensor([1.0, 111, 112, 223, 224, 447, 448, 5000])
    boxes = torch.stack((torch.zeros(8), torch.zeros(8), sides, sides), dim=1)
    assert pooler.levels(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("fast", [False, True])
def test_regions_keep_their_order_and_their_image(fast: bool) -> None:
    pooler = Pooler(output_size=1, strides=[4, 8, 16], sampling_ratio=0)
    pooler.fast = fast
    value = torch.tensor([1.0, 2.0])[:, None, None, None]
    features = [(value * 10**level).expand(2, 1, 64 >> level, 64 >> level) for level in range(3)]
    big, small = [0.0, 0, 230, 230], [0.0, 0, 20, 20]
    pooled = pooler(features, [torch.tensor([big, small]), torch.tensor([small, big, small])])
    assert pooled.flatten().tolist() == pytest.approx([100, 1, 2, 200, 2], rel=1e-5)
