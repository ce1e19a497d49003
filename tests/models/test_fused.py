"""oneDNN's fused operators: the same function as the plain layers, whatever is kept between calls."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from detseg.models.freezing import freeze
from detseg.models.rcnn import fused, mask_head
from detseg.models.rcnn.fused import Linear
from detseg.models.rcnn.layers import ConvNorm
from detseg.models.rcnn.mask_head import MaskHead

pytestmark = pytest.mark.skipif(not fused._formats(), reason="this build of torch has no fused operators")

# Of values around 1: float32, and bfloat16 with its 8 bits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def both(
    layer: nn.Module, x: torch.Tensor, dtype: torch.dtype, *shortcut: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer gives plainly in float32, and fused in a number format."""
    layer.fast = False
    with torch.inference_mode():
        plain = layer(x, *shortcut)
        layer.fast = True
        with nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype=dtype):
            answer = layer(x, *shortcut)
    assert answer.dtype == dtype
    return plain, answer.float()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "norm": "FrozenBN", "relu": True},
        {"kernel_size": 3, "relu": True, "dilation": 2},
        {"kernel_size": 3, "norm": "BN", "groups": 4, "stride": 2},
        {"kernel_size": 1, "bias": False},
    ],
)
def test_convolutions(settings: dict, dtype: torch.dtype) -> None:
    if dtype not in fused._formats():
        pytest.skip("this processor has no bfloat16")
    torch.manual_seed(0)
    layer = ConvNorm(32, 48, **settings).eval()
    if layer.norm is not None:
        layer.norm.running_mean.uniform_(-1, 1)
        layer.norm.running_var.uniform_(0.5, 2)
    # Weights are laid out for the first of these sizes.
    for shape in ((1, 32, 20, 24), (3, 32, 7, 5), (1, 32, 40, 31)):
        plain, answer = both(layer, torch.randn(shape), dtype)
        torch.testing.assert_close(answer, plain, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_changed_weights_count_at_once_and_copies_compute_the_same() -> None:
    torch.manual_seed(0)
    for layer, x in ((ConvNorm(8, 8, 3, norm="FrozenBN"), torch.randn(1, 8, 6, 6)), (Linear(8, 4), torch.randn(5, 8))):
        before = both(layer, x, torch.float32)[1]
        with torch.no_grad():
            layer.weight.mul_(2)
        plain, answer = both(layer, x, torch.float32)
        torch.testing.assert_close(answer, plain)
        assert not torch.allclose(answer, before)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            torch.testing.assert_close(both(other, x, torch.float32)[1], plain)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_fully_connected_layers(dtype: torch.dtype) -> None:
    if dtype not in fused._formats():
        pytest.skip("this processor has no bfloat16")
    torch.manual_seed(0)
    layer = Linear(200, 30)
    for rows in (1, 40):
        plain, answer = both(layer, torch.randn(rows, 200), dtype)
        torch.testing.assert_close(answer, plain, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    with torch.inference_mode():
        assert layer(torch.zeros(0, 200)).shape == (0, 30)


def gradients(layer: nn.Module, inputs: list[torch.Tensor], fast: bool, dtype: torch.dtype) -> list[torch.Tensor]:
    """What a layer gives in training, and the gradients to its inputs and parameters."""
    for module in layer.modules():
        module.fast = fast
    inputs = [x.clone().requires_grad_() for x in inputs]
    with nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype=dtype):
        answer = layer(*inputs).float()
    weights = torch.linspace(-1, 1, answer.numel()).view(answer.shape)  # no symmetry hides a wrong order
    wanted = [*inputs, *(p for p in layer.parameters() if p.requires_grad)]
    return [answer.detach(), *torch.autograd.grad((answer * weights).sum(), wanted)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "kind", ["1 x 1", "1 x 1 of a row", "1 x 1 and shortcut", "3 x 3 and shortcut", "fully connected", "masks"]
)
def test_gradients_are_those_of_the_plain_layers(kind: str, dtype: torch.dtype) -> None:
    if dtype not in fused._formats():
        pytest.skip("this processor has no bfloat16")
    torch.manual_seed(0)
    x = torch.randn(2, 24, 5, 7).contiguous(memory_format=torch.channels_last)
    shortcut = torch.randn(2, 40, 5, 7).contiguous(memory_format=torch.channels_last)
    settings = {"in_channels": 24, "num_classes": 3, "conv_channels": [], "deconv_channels": 8}
    layer, inputs = {
        "1 x 1": lambda: (ConvNorm(24, 40, 1, norm="FrozenBN", relu=True), [x]),
        "1 x 1 of a row": lambda: (ConvNorm(24, 40, 1), [x[:, :, :1]]),
        "1 x 1 and shortcut": lambda: (ConvNorm(24, 40, 1, norm="FrozenBN"), [x, shortcut]),
        "3 x 3 and shortcut": lambda: (ConvNorm(24, 40, 3), [x, shortcut]),
        "fully connected": lambda: (Linear(24, 40), [x[:, :, 0, 0]]),
        "masks": lambda: (MaskHead(class_agnostic=False, **settings), [x]),
    }[kind]()
    if kind == "masks":
        nn.init.normal_(layer.predictor.weight, std=0.2)
    for plain, fast in zip(*(gradients(layer, inputs, fast, dtype) for fast in (False, True)), strict=True):
        scale = plain.abs().max()
        torch.testing.assert_close(fast / scale, plain / scale, atol=TOLERANCE[dtype], rtol=0)


def test_frozen_layers_in_training_are_those_of_prediction() -> None:
    torch.manual_seed(0)
    layer, x = ConvNorm(8, 8, 3, norm="FrozenBN", relu=True), torch.randn(1, 8, 6, 6)
    layer.fast = True
    with torch.no_grad():
        expected = layer(x)
    assert layer(x).requires_grad
    freeze(layer)
    answer = layer(x)
    assert not answer.requires_grad
    assert torch.equal(answer, expected)
    trained = torch.randn(1, 8, 6, 6, requires_grad=True)  # a frozen layer passes gradients on
    layer(trained).sum().backward()
    assert trained.grad is not None
    assert layer(torch.zeros(0, 8, 6, 6)).shape == (0, 8, 6, 6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [1, 3])
def test_shortcuts(size: int, dtype: torch.dtype) -> None:
    if dtype not in fused._formats():
        pytest.skip("this processor has no bfloat16")
    torch.manual_seed(0)
    layer = ConvNorm(16, 24, size, norm="FrozenBN").eval()
    x, shortcut = torch.randn(2, 16, 9, 6), torch.randn(2, 24, 9, 6)
    before = shortcut.clone()
    plain, answer = both(layer, x, dtype, shortcut)
    torch.testing.assert_close(answer, plain, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert (plain >= 0).all()
    assert (plain == 0).any()
    assert torch.equal(shortcut, before), "other layers need the shortcut as it is"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_cells_of_masks_stay_in_their_places(class_agnostic: bool, dtype: torch.dtype) -> None:
    if dtype not in fused._formats():
        pytest.skip("this processor has no bfloat16")
    torch.manual_seed(0)
    head = MaskHead(
        in_channels=8, num_classes=3, conv_channels=[6], deconv_channels=6, class_agnostic=class_agnostic
    ).eval()
    torch.nn.init.normal_(head.predictor.weight)
    torch.nn.init.normal_(head.deconv.bias)
    # Neither square nor of equal rows, so that a transposed or shifted mask is another one.
    # The first is computed in portions, the last of them smaller.
    for shape in ((mask_head.PIXELS_AT_ONCE // 28 + 5, 8, 4, 7), (1, 8, 3, 3)):
        plain, answer = both(head, torch.randn(shape), dtype)
        assert answer.shape == plain.shape
        torch.testing.assert_close(answer, plain, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    with torch.no_grad():
        head.deconv.weight.mul_(2)  # weights that were laid out before are no longer used
    torch.testing.assert_close(*both(head, torch.randn(2, 8, 3, 3), torch.float32), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_what_is_not_a_number_stays_so(training: bool) -> None:
    settings = {"in_channels": 8, "num_classes": 2, "conv_channels": [8], "deconv_channels": 8}
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    layers = [ConvNorm(8, 8, 1, relu=True), ConvNorm(8, 8, 3, relu=True), MaskHead(class_agnostic=True, **settings)]
    for layer in layers:
        with torch.no_grad():
            next(layer.parameters()).fill_(float("nan"))
        for module in layer.modules():
            module.fast = True
        with torch.set_grad_enabled(training):
            assert layer(x).isnan().all()
            if isinstance(layer, ConvNorm):
                assert layer(x, x).isnan().all()
