"""Winograd's 3 x 3 convolution against the direct sum in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from detseg.models.rcnn import winograd
from detseg.models.rcnn.layers import ConvNorm


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "shape", [(1, 3, 1, 1), (2, 5, 4, 4), (1, 8, 7, 9), (3, 16, 14, 14), (1, 4, 33, 2), (0, 4, 8, 8)]
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_the_direct_sum(shape: tuple[int, ...], with_bias: bool) -> None:
    x, weight = draw(*shape), draw(6, shape[1], 3, 3, seed=1)
    bias = draw(6, seed=2) if with_bias else None
    expected = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    result = winograd.convolve(x, winograd.transform_weight(weight), bias)
    assert result.shape == expected.shape
    assert (result - expected).abs().amax() <= 1e-5 * expected.abs().amax() if x.numel() else True


def test_portions_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    x, transformed = draw(5, 8, 30, 22), winograd.transform_weight(draw(8, 8, 3, 3, seed=1))
    whole = winograd.convolve(x, transformed, None)
    for size in (1, 8 * 22 * 4 * 4 * 3, 8 * 22 * 4 * 32 * 2):
        monkeypatch.setattr(winograd, "_PORTION", size)
        torch.testing.assert_close(winograd.convolve(x, transformed, None), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["", "FrozenBN", "BN"])
def test_a_fast_layer_gives_what_it_gives_otherwise_and_follows_its_weights(norm: str) -> None:
    torch.manual_seed(0)
    layer = ConvNorm(128, 128, 3, norm=norm, relu=True).eval()
    x = draw(1, 128, 40, 36)
    with torch.inference_mode():
        for _ in range(2):
            layer.fast = False
            expected = layer(x)
            layer.fast = True
            assert winograd.pays(x, layer.out_channels)
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
            assert not torch.equal(layer(x), expected), "this was not Winograd's way"
            layer.weight.mul_(1.5)


@pytest.mark.parametrize("frozen", ["nothing", "input", "weights"])
def test_gradients_are_those_of_the_direct_sum(frozen: str) -> None:
    layer = ConvNorm(128, 160, 3, relu=True)
    layer.requires_grad_(frozen != "weights")
    x = draw(2, 128, 30, 26).requires_grad_(frozen != "input")
    wanted = [tensor for tensor in (x, layer.weight, layer.bias) if tensor.requires_grad]
    found = []
    for fast in (False, True):
        layer.fast = fast
        y = layer(x)
        found.append((y, *torch.autograd.grad((y * draw(*y.shape, seed=3)).sum(), wanted)))
    assert not torch.equal(found[0][0], found[1][0]), "this was not Winograd's way"
    for direct, winograds in zip(*found, strict=True):
        assert direct.shape == winograds.shape
        assert (direct - winograds).abs().max() <= 2e-5 * direct.abs().max()


def test_small_features_and_other_formats_take_the_direct_way() -> None:
    layer = ConvNorm(128, 128, 3)
    layer.fast = True
    x = draw(1, 128, 40, 36)
    with torch.inference_mode():
        assert torch.equal(layer(x[:, :, :8, :8]), F.conv2d(x[:, :, :8, :8], layer.weight, layer.bias, padding=1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
