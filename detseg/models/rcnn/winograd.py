"""3 x 3 convolutions of stride 1 with fewer multiplications: Winograd's F(4 x 4, 3 x 3) of Lavin and Gray 2016.

Tiles of 4 x 4 outputs are computed from 6 x 6 inputs by 36 products instead of 144. The transforms are sums of strided
views, the products one matrix product for each of the 36 positions, in portions that stay in the cache. In float32 the
error is 4 to 5 times that of the direct sum, around 5e-6 of the largest output: for use where speed counts. Training
gets the gradient to the input the same way, that to the filters by the direct sum.

C input and K output channels; input tiles overlap by two pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 4
# Input bytes of one portion: its 36 transformed copies are a little more than twice that, and still in the cache.
_PORTION = 2**21
# Below these the transforms cost what the products save.
MIN_CHANNELS = 128
MIN_TILES = 64

# Rows: the six points 0, 1, -1, 2, -2 and infinity, applied to the three taps of a filter.
_FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


def transform_weight(weight: Tensor) -> Tensor:
    """Return the filters (K, C, 3, 3) as 36 matrices (36, C, K)."""
    out_channels, channels = weight.shape[:2]
    points = torch.tensor(_FILTER, dtype=weight.dtype, device=weight.device)
    taps = weight.permute(2, 3, 1, 0).reshape(9, channels * out_channels)
    return (torch.kron(points, points) @ taps).view(36, channels, out_channels)


def pays(x: Tensor, out_channels: int) -> bool:
    """Whether it is faster than the direct way for features (N, C, H, W): wide, large and of float32 on a processor."""
    count, channels, height, width = x.shape
    tiles = count * -(-height // TILE) * -(-width // TILE)
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and min(channels, out_channels) >= MIN_CHANNELS
        and tiles >= MIN_TILES
    )


def convolve(x: Tensor, transformed: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution of x (N, C, H, W) with padding 1: (N, K, H, W), channels last in memory.

    transformed: of `transform_weight`. bias: (K,). See Convolution for gradients.
    """
    count, channels, height, width = x.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    padding = (0, 0, 1, TILE * columns - width + 1, 1, TILE * rows - height + 1)
    padded = F.pad(x.permute(0, 2, 3, 1), padding)
    shape = (count, transformed.shape[2], height, width)
    result = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    pixels = result.permute(0, 2, 3, 1)
    # So many rows of tiles at once; whole images where they are small.
    portion = max(_PORTION // (TILE * TILE * columns * channels * x.element_size()), 1)
    images = max(portion // rows, 1)
    portion = min(portion, rows)
    for first in range(0, count, images):
        some = slice(first, first + images)
        for row in range(0, rows, portion):
            top, bottom = TILE * row, TILE * min(row + portion, rows)
            _convolve_portion(padded[some, top : bottom + 2], transformed, bias, pixels[some, top:bottom])
    return result


class Convolution(torch.autograd.Function):
    """`convolve` with gradients: apply(x (N, C, H, W), weight (K, C, 3, 3), bias (K,) or None)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return convolve(x, transform_weight(weight), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        to_x = to_weight = None
        if needs_x:
            # The convolution with the filters turned by 180 degrees, inputs and outputs exchanged.
            to_x = convolve(gradient, transform_weight(weight.flip(2, 3).transpose(0, 1)), None)
        if needs_weight:
            ones = (1, 1)
            _, to_weight, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, ones, ones, ones, False, (0, 0), 1, (False, True, False)
            )
        return to_x, to_weight, gradient.sum((0, 2, 3)) if needs_bias else None


def _convolve_portion(padded: Tensor, transformed: Tensor, bias: Tensor | None, result: Tensor) -> None:
    """Convolve whole tiles, padded (n, 4 r + 2, 4 c + 2, C); the part of the result inside the image is written."""
    count, height, width, channels = padded.shape
    rows, columns = height // TILE, width // TILE
    half = padded.new_empty((6, count, rows, width, channels))
    _transform_input([padded[:, k : k + TILE * rows - 3 : TILE] for k in range(6)], list(half))
    tiles = padded.new_empty((6, 6, count, rows, columns, channels))
    _transform_input([half[:, :, :, k : k + TILE * columns - 3 : TILE] for k in range(6)], list(tiles.unbind(1)))
    products = torch.bmm(tiles.view(36, -1, channels), transformed).view(6, 6, count, rows, columns, -1)
    for y, row in enumerate(_transform_output(products)):
        for x, values in enumerate(_transform_output(row)):
            target = result[:, y::TILE, x::TILE]
            inside = values[:, : target.shape[1], : target.shape[2]]
            if bias is None:
                target.copy_(inside)
            else:
                torch.add(inside, bias, out=target)


def _transform_input(d: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Six inputs to six sums, in terms that several of them share."""
    even, odd = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(even, d[2], out=out[0]).add_(d[0], alpha=4)
    even, odd = d[4] - d[2], d[3] - d[1]
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.sub(d[5], d[3], out=out[5]).sub_(odd, alpha=4)


def _transform_output(m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Six products m (6, ...) to four outputs."""
    near_sum, near_difference = m[1] + m[2], m[1] - m[2]
    far_sum, far_difference = m[3] + m[4], m[3] - m[4]
    return (
        (near_sum + m[0]).add_(far_sum),
        torch.add(near_difference, far_difference, alpha=2),
        torch.add(near_sum, far_sum, alpha=4),
        torch.add(near_difference, far_difference, alpha=8).add_(m[5]),
    )
