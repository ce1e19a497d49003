"""Convolutions with normalization, and Detectron2's initializations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from detseg.config.options import Problems, key
from detseg.models.freezing import FrozenBatchNorm2d, scale_and_shift
from detseg.models.rcnn.fused import Cached, affine, convolve, fused_dtype, needs_gradient, pack

if TYPE_CHECKING:
    from typing_extensions import Self


class GroupNorm(nn.GroupNorm):
    """Group normalization (Wu and He 2018), fast and accurate for channels_last features on the CPU.

    PyTorch's own CPU kernel for that layout takes five to ten times as long in its backward pass and accumulates in
    single precision sequentially, with errors of 1e-5. Elsewhere PyTorch's kernels are used.
    """

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        if x.device.type != "cpu" or not channels_last:
            # Not F.group_norm, which refuses a map of one pixel: this normalizes it over the channels of its group.
            return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return _ChannelsLastGroupNorm.apply(x.float(), self.weight, self.bias, self.num_groups, self.eps).to(x.dtype)


class _ChannelsLastGroupNorm(torch.autograd.Function):
    """Sums over pixels are taken per channel, which PyTorch adds pairwise, and then combined to groups."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        ctx.groups = groups
        mean = _group_mean(x.mean(dim=(2, 3)), groups)
        centred = x - mean[:, :, None, None]
        variance = _group_mean((centred * centred).mean(dim=(2, 3)), groups)
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(centred, inverse, weight)
        return torch.addcmul(bias[:, None, None], centred, (inverse * weight)[:, :, None, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        centred, inverse, weight = ctx.saved_tensors
        pixels = centred.shape[2] * centred.shape[3]
        of_bias = gradient.sum(dim=(2, 3))
        of_scale = (gradient * centred).sum(dim=(2, 3))
        # d/dx: scale * (gradient - its mean over the group - normalised x * the mean of their product).
        constant = _group_mean(of_bias * weight / pixels, ctx.groups) * inverse
        slope = _group_mean(of_scale * weight / pixels, ctx.groups) * inverse**3
        of_x = torch.addcmul(-constant[:, :, None, None], centred, -slope[:, :, None, None])
        of_x.addcmul_(gradient, (inverse * weight)[:, :, None, None])
        return of_x, (of_scale * inverse).sum(dim=0), of_bias.sum(dim=0), None, None


def _group_mean(values: Tensor, groups: int) -> Tensor:
    """Replace each channel's value (B, C) by the mean over its group."""
    batch, channels = values.shape
    means = values.view(batch, groups, channels // groups).mean(dim=2, keepdim=True)
    return means.expand(batch, groups, channels // groups).reshape(batch, channels)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm with the mean and variance over the values of all processes in training; otherwise BatchNorm itself.

    Unlike torch.nn.SyncBatchNorm it works on every device, and a process may have no values (N = 0: no regions), as
    long as all processes call it equally often.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x) if len(x) else x * self.weight[:, None, None] + self.bias[:, None, None]
        values = x.float()
        local = x.numel() // x.shape[1]
        counted = _SumOverProcesses.apply(torch.cat((values.sum(dim=(0, 2, 3)), values.new_tensor([float(local)]))))
        count = counted[-1].detach()
        mean = counted[:-1] / count.clamp(min=1)
        # Mean first, then squared differences: E[x^2] - E[x]^2 in one pass would lose small variances.
        difference = values - mean[:, None, None]
        variance = _SumOverProcesses.apply(difference.square().sum(dim=(0, 2, 3))) / count.clamp(min=1)
        self._note(mean.detach(), variance.detach(), count)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (difference * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics like BatchNorm, with unbiased variance; unchanged without values."""
        share = self.momentum * (count > 0)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), share)
        self.num_batches_tracked += (count > 0).to(self.num_batches_tracked.dtype)


class _SumOverProcesses(torch.autograd.Function):
    """Sum over all processes; as every process's loss depends on it, its gradient is summed over them too."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class ChannelNorm(nn.Module):
    """Layer normalization of each pixel over its channels, Detectron2's LN.

    As in Detectron2, it is not a torch.nn.LayerNorm: its parameters get the weight decay of other weights, not that of
    normalizations.
    """

    eps = 1e-6

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        return self.weight[:, None, None] * (centred / torch.sqrt(variance + self.eps)) + self.bias[:, None, None]


GROUPS_OF_GROUP_NORM = 32
# Detectron2's names of normalizations -> function from number of channels to layer.
NORMS: dict[str, Callable[[int], nn.Module | None]] = {
    "": lambda channels: None,
    "BN": nn.BatchNorm2d,
    "SyncBN": SyncBatchNorm2d,
    "nnSyncBN": SyncBatchNorm2d,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: GroupNorm(GROUPS_OF_GROUP_NORM, channels),
    "LN": ChannelNorm,
}


def norm_key() -> Any:
    """Return the key NORM of a part."""
    return key("NORM", choices=tuple(NORMS), detectron2=("naiveSyncBN", "naiveSyncBN_N"))


def check_group_norm(problems: Problems, norm: str, channels_key: str, channels: int) -> None:
    """Report channels that are not divisible by the groups of GN; norm and channels_key: the two keys."""
    if problems.cfg[norm] == "GN" and channels % GROUPS_OF_GROUP_NORM:
        problems.add(
            channels_key, f"{norm} is GN, whose {GROUPS_OF_GROUP_NORM} groups do not divide {channels} channels"
        )


class ConvNorm(nn.Conv2d):
    """Convolution, normalization (one of NORMS, the submodule `norm`) and ReLU.

    bias: None: only without normalization.
    fast: fold a normalization with fixed statistics into the weights, which saves passes over the features and rounds
    differently. Without gradients, folded weights are cached until the originals change, and oneDNN uses them if it can
    (fused.py); with gradients, oneDNN computes 1 x 1 convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: str = "",
        relu: bool = False,
        bias: bool | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=norm == "" if bias is None else bias,
        )
        self.norm = NORMS[norm](out_channels)
        self.relu = relu
        self.fast = False
        self._folded = Cached()

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Return (B, C', H', W') of x (B, C, H, W); shortcut: same shape, added before the ReLU."""
        foldable = self.fast and (self.norm is None or self._has_fixed_statistics())
        dtype = fused_dtype(x) if foldable else None
        with_shortcut = () if shortcut is None else (shortcut,)
        if dtype is not None and not needs_gradient(x, *self._sources(), *with_shortcut):
            packed = self._folded(lambda: pack(self, *self._fold(), x, dtype), self._sources(), dtype)
            x = convolve(self, x.to(dtype), *packed, shortcut)
            return F.relu_(x) if self.relu or shortcut is not None else x
        if dtype is not None and self._is_pointwise() and x.is_contiguous(memory_format=torch.channels_last):
            weight, bias = self._fold()
            bias = None if bias is None else bias.to(dtype)
            x = affine(x.to(dtype), weight.flatten(1).to(dtype), bias, relu=self.relu)
            return x if shortcut is None else F.relu_(x + shortcut)  # autograd forbids changing x in place
        x = self._convolve(x, self._conv_forward)
        return x if shortcut is None else F.relu_(x.add_(shortcut))

    def _convolve(self, x: Tensor, convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Tensor:
        """Convolve by `convolve(x, weight, bias)`, normalize, and apply ReLU."""
        norm = self.norm
        if self.fast and self._has_fixed_statistics():
            x = convolve(x, *self._folded(self._fold, self._sources()))
        else:
            x = convolve(x, self.weight, self.bias)
            if norm is not None and (len(x) or isinstance(norm, SyncBatchNorm2d)):
                x = norm(x)
            elif norm is not None:
                # Without regions there are no statistics: BatchNorm would store NaN. Gradients are zero.
                x = x * norm.weight[:, None, None] + norm.bias[:, None, None]
        return F.relu_(x) if self.relu else x

    def train(self, mode: bool = True) -> Self:
        """See nn.Module.train."""
        self._folded = Cached()
        return super().train(mode)

    def _fold(self) -> tuple[Tensor, Tensor | None]:
        """Return weights and bias with the normalization, if any, folded in."""
        if self.norm is None:
            return self.weight, self.bias
        scale, shift = scale_and_shift(self.norm)
        return self.weight * scale[:, None, None, None], shift

    def _sources(self) -> list[Tensor]:
        """Return the tensors from which the folded weights are computed."""
        norm = self.norm
        if norm is None:
            return [self.weight] if self.bias is None else [self.weight, self.bias]
        return [self.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]

    def _is_pointwise(self) -> bool:
        """Whether every output pixel depends on a single input pixel."""
        return self.kernel_size == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1

    def _has_fixed_statistics(self) -> bool:
        if isinstance(self.norm, FrozenBatchNorm2d):
            return True
        return isinstance(self.norm, nn.BatchNorm2d) and not self.norm.training


def init_msra(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Normal by fan-out (He et al. 2015), Caffe2's MSRAFill."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    _zero_bias(layer)


def init_xavier(layer: nn.Conv2d | nn.Linear) -> None:
    """Uniform by fan-in, Caffe2's XavierFill."""
    nn.init.kaiming_uniform_(layer.weight, a=1)
    _zero_bias(layer)


def init_normal(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    """Normal with the given standard deviation, biases zero."""
    nn.init.normal_(layer.weight, std=std)
    _zero_bias(layer)


def _zero_bias(layer: nn.Module) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
