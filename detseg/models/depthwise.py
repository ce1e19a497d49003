"""Depthwise convolutions with a fast backward pass on CPUs.

On CPUs PyTorch's backward pass has two slow paths. The weight gradient of kernels larger than 3 x 3 does not use
oneDNN's fast kernel, and in bfloat16 neither does the input gradient of a strided convolution: up to fifty times as
long as the forward pass. Here the first is assembled from 3 x 3 parts, and the second is computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_backward = torch.ops.aten.convolution_backward


class DepthwiseConv2d(nn.Conv2d):
    """One square filter per channel. `same`: pad as TensorFlow does, more on the right and at the bottom; `padding` is
    then 0. fast: use this module's backward pass on CPUs, which rounds differently.
    """

    same = False
    fast = False

    @classmethod
    def of(cls, layer: nn.Conv2d, *, same: bool) -> DepthwiseConv2d:
        """Replace a convolution for which `is_depthwise` holds, sharing its parameters."""
        with torch.device("meta"):  # does not draw initial weights
            own = cls(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,
                stride=layer.stride,
                padding=layer.padding,
                groups=layer.groups,
                bias=layer.bias is not None,
            )
        own.weight, own.bias, own.same = layer.weight, layer.bias, same
        return own.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            (bottom, right) = (
                max((-(-size // step) - 1) * step + kernel - size, 0)
                for size, step, kernel in zip(x.shape[2:], self.stride, self.kernel_size, strict=True)
            )
            x = F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))
        if not self.fast or x.device.type != "cpu" or not torch.is_grad_enabled():
            return self._conv_forward(x, self.weight, self.bias)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled("cpu"):  # autocast has no effect inside a Function
            dtype = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        return _Depthwise.apply(x, weight, bias, self.stride[0], self.padding)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a module is a convolution that DepthwiseConv2d can replace, apart from its padding."""
    return (
        isinstance(layer, nn.Conv2d)
        and 1 < layer.groups == layer.in_channels == layer.out_channels
        and layer.kernel_size[0] == layer.kernel_size[1] >= 3
        and layer.stride[0] == layer.stride[1]
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        of_x = of_weight = None
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if to_x:
            dtype = x.dtype if ctx.stride == 1 else torch.float32
            values = (gradient.to(dtype), x.to(dtype), weight.to(dtype))
            of_x = _gradients(*values, ctx.stride, ctx.padding, (True, False))[0].to(x.dtype)
        if to_weight and weight.shape[2] == 3:
            of_weight = _gradients(gradient, x, weight, ctx.stride, ctx.padding, (False, True))[1]
        elif to_weight:
            of_weight = _weight_gradient(gradient, x, weight, ctx.stride, ctx.padding)
        return of_x, of_weight, gradient.sum(dim=(0, 2, 3)) if to_bias else None, None, None


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: Sequence[int], wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Return the requested gradients of x and weight of a depthwise convolution."""
    steps = [stride, stride]
    mask = [*wanted, False]
    return _backward(gradient, x, weight, None, steps, padding, [1, 1], False, [0, 0], len(weight), mask)[:2]


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    """Return the gradient of weights (C, 1, k, k), k > 3: each 3 x 3 part is that of a convolution with such a kernel,
    over the part of the image that it sees. Parts overlap if 3 does not divide k, with equal values.
    """
    size = weight.shape[2]
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    height, width = ((length - 1) * stride + 3 for length in gradient.shape[2:])
    starts = sorted({*range(0, size - 2, 3), size - 3})
    whole, part = torch.empty_like(weight), weight[:, :, :3, :3]
    for top, left in product(starts, starts):
        seen = x[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
        values = _gradients(gradient, seen, part, stride, (0, 0), (False, True))[1]
        whole[:, :, top : top + 3, left : left + 3] = values
    return whole
