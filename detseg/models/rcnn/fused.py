"""oneDNN's fused operators for prediction on processors: convolution with ReLU, fully connected layers.

torch's own fully connected layer in float32 is MKL's, which takes twice as long on AMD's processors; its convolutions
lay out their weights anew in every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class Cached:
    """What was computed from tensors, as long as they are the same; always computed anew for gradients."""

    def __init__(self) -> None:
        self._state: object = None
        self._value: Any = None

    def __call__(self, make: Callable[[], Any], sources: Sequence[Tensor], dtype: torch.dtype | None = None) -> Any:
        """What `make` gives for `sources` and, where it depends on that, a number format."""
        if torch.is_grad_enabled() or any(source.is_inference() for source in sources):
            return make()
        # Every change in place raises a tensor's version; other tensors have another address.
        state = [dtype, *((source.data_ptr(), source._version) for source in sources)]
        if self._state != state:
            self._state, self._value = state, make()
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        return Cached, ()  # copies of a model compute it themselves


@cache
def _formats() -> tuple[torch.dtype, ...]:
    """The number formats of the operators; none where this build of torch does not have them."""
    names = ("_convolution_pointwise", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    packing = hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
    if not torch.backends.mkldnn.is_available() or not packing:
        return ()
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return ()
    half = (torch.bfloat16,) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ()
    return (torch.float32, *half)


def fused_dtype(x: Tensor) -> torch.dtype | None:
    """The number format in which the operators compute with x, autocast's; None where they cannot."""
    if torch.is_grad_enabled() or x.device.type != "cpu" or x.numel() == 0:
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype if dtype in _formats() and x.dtype in _formats() else None


def pack(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, x: Tensor, dtype: torch.dtype) -> tuple[Any, ...]:
    """Weights as oneDNN lays them out for a convolution of x (B, C, H, W), and the bias."""
    geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
    packed = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to(dtype).to_mkldnn(), *geometry, x.shape)
    return packed, None if bias is None else bias.to(dtype)


def convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """The convolution of x, in the number format of the weights that `pack` gave, and ReLU."""
    geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, "relu" if relu else "none", [], "")


class Linear(nn.Linear):
    """A fully connected layer. fast: whether oneDNN computes it in prediction, with other rounding."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.fast = False
        self._cast = Cached()

    def forward(self, x: Tensor) -> Tensor:
        dtype = fused_dtype(x) if self.fast else None
        if dtype is None:
            return super().forward(x)
        both = [self.weight, self.bias]
        weight, bias = self._cast(lambda: [source.detach().to(dtype) for source in both], both, dtype)
        return torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, "none", [], "")
