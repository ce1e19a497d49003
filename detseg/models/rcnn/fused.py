"""oneDNN operators on CPUs: convolution with prepacked weights and a shortcut, and matrix products.

PyTorch's own fully connected layer in float32 uses MKL, which takes twice as long on AMD processors, and so do its 1 x
1 convolutions with a single thread; its other convolutions repack their weights in every call. oneDNN's fused ReLU is
not
used: it replaces NaN by 0, which would hide errors, and saves no time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Cached:
    """Cache of a value computed from tensors, valid as long as they are unchanged; unused if they need gradients."""

    def __init__(self) -> None:
        self._state: object = None
        self._value: Any = None

    def __call__(self, make: Callable[[], Any], sources: Sequence[Tensor], dtype: torch.dtype | None = None) -> Any:
        """Return `make` for `sources` and, if it depends on it, a dtype."""
        if needs_gradient(*sources) or any(source.is_inference() for source in sources):
            return make()
        # In-place changes increase a tensor's version; other tensors have other addresses.
        state = [dtype, *((source.data_ptr(), source._version) for source in sources)]
        if self._state != state:
            self._state, self._value = state, make()
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        return Cached, ()  # copies of a model start with an empty cache


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether computations with these tensors are recorded for the backward pass."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


@cache
def _formats() -> tuple[torch.dtype, ...]:
    """Return the dtypes that the operators support; empty if this build of PyTorch lacks them."""
    names = ("_convolution_pointwise", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    packing = hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
    if not torch.backends.mkldnn.is_available() or not packing:
        return ()
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return ()
    half = (torch.bfloat16,) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ()
    return (torch.float32, *half)


def fused_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype in which the operators compute with x (autocast's, if enabled); None if they cannot."""
    if x.device.type != "cpu" or x.numel() == 0 or torch.compiler.is_compiling():
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype if dtype in _formats() and x.dtype in _formats() else None


def pack(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, x: Tensor, dtype: torch.dtype) -> tuple[Any, ...]:
    """Return weights packed by oneDNN for a convolution of x (B, C, H, W), and the bias."""
    geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
    packed = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to(dtype).to_mkldnn(), *geometry, x.shape)
    return packed, None if bias is None else bias.to(dtype)


def convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None = None) -> Tensor:
    """Return the convolution of x, in the dtype of the weights from `pack`, plus the shortcut."""
    geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
    if shortcut is None:
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, "none", [], "")
    sum_of = torch.ops.mkldnn._convolution_pointwise.binary
    return sum_of(x, shortcut.to(x.dtype), weight, bias, *geometry, "add", 1.0, None, [], None)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool = False) -> Tensor:
    """Multiply the channels of x, (M, C) or channels_last (B, C, H, W), by a matrix (O, C), optionally with ReLU.

    Differentiable; all in one dtype of `fused_dtype`.
    """
    return _Affine.apply(x, weight, bias, relu)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        answer = _product(_rows(x), weight, bias)
        if relu:
            answer.relu_()
        if x.dim() == 4:
            answer = answer.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
        ctx.save_for_backward(x, weight, answer if relu else None)
        return answer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, answer = ctx.saved_tensors
        if answer is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, answer, 0)
        gradient, of_x = _rows(gradient), None
        if ctx.needs_input_grad[0]:
            of_x = _product(gradient, weight.t())
            if x.dim() == 4:
                of_x = of_x.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
        of_weight = _product(gradient.t(), _rows(x).t()) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, gradient.sum(dim=0) if ctx.needs_input_grad[2] else None, None


def _rows(x: Tensor) -> Tensor:
    """(M, C), or (B, C, H, W) as (B * H * W, C)."""
    return x if x.dim() == 2 else x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


class Linear(nn.Linear):
    """A fully connected layer. fast: whether oneDNN computes it, with other rounding."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.fast = False
        self._cast = Cached()

    def forward(self, x: Tensor) -> Tensor:
        dtype = fused_dtype(x) if self.fast else None
        if dtype is None:
            return super().forward(x)
        both = [self.weight, self.bias]
        return affine(x.to(dtype), *self._cast(lambda: [source.to(dtype) for source in both], both, dtype))
