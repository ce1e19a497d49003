"""Convolutions with their normalisation, and the ways in which Detectron2 draws initial weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.models.rcnn import winograd
from detseg.models.rcnn.group_norm import GroupNorm
from detseg.models.rcnn.sync_batch_norm import SyncBatchNorm2d

if TYPE_CHECKING:
    from typing_extensions import Self

GROUPS_OF_GROUP_NORM = 32
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN")


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm with statistics and affine parameters that never change: four buffers (C,), no parameters."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        # As in Detectron2, so that an untouched layer is the identity.
        self.register_buffer("running_var", torch.ones(channels) - eps)

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
        """Freeze a BatchNorm as it is now."""
        frozen = cls(norm.num_features, norm.eps)
        frozen.load_state_dict({name: norm.state_dict()[name] for name in frozen.state_dict()})
        return frozen

    def forward(self, x: Tensor) -> Tensor:
        # Detectron2's two ways, which round differently: the second is faster, the first has a gradient to x alone.
        if x.requires_grad:
            scale, shift = scale_and_shift(self)
            return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def scale_and_shift(norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return scale (C,) and shift (C,) by which a BatchNorm with fixed statistics acts: x * scale + shift."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def make_norm(name: str, channels: int) -> nn.Module | None:
    """Return a normalisation layer by Detectron2's name, None for ""."""
    if name == "":
        return None
    if name == "BN":
        return nn.BatchNorm2d(channels)
    if name == "SyncBN":
        return SyncBatchNorm2d(channels)
    if name == "FrozenBN":
        return FrozenBatchNorm2d(channels)
    if name == "GN":
        return GroupNorm(GROUPS_OF_GROUP_NORM, channels)
    raise ValueError(f"unknown normalisation {name!r}; known: {', '.join(repr(known) for known in NORMS)}")


class ConvNorm(nn.Conv2d):
    """Convolution, normalisation (named `norm`) and ReLU; a bias only where there is no normalisation.

    fast: whether a normalisation with fixed statistics is multiplied into the weights, which saves passes over the
    features, and whether wide 3 x 3 convolutions are Winograd's; both round differently. Where no gradients are asked
    for what is made of the weights is kept until they change.
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
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=norm == "",
        )
        self.norm = make_norm(norm, out_channels)
        self.relu = relu
        self.fast = False
        self._winograd_fits = kernel_size == 3 and stride == dilation == groups == 1
        self._folded_weight = _Kept()
        self._winograd_weight = _Kept()

    def forward(self, x: Tensor) -> Tensor:
        wide = self.fast and self._winograd_fits and winograd.pays(x, self.out_channels)
        wide = wide and not torch.is_autocast_enabled(x.device.type)
        return self._convolve(x, self._by_winograd if wide else self._conv_forward)

    def _by_winograd(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled():
            return winograd.Convolution.apply(x, weight, bias)
        transformed = self._winograd_weight(lambda: winograd.transform_weight(weight), self._sources())
        return winograd.convolve(x, transformed, bias)

    def _convolve(self, x: Tensor, convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Tensor:
        """Convolve by `convolve(x, weight, bias)`, normalise and cut."""
        if self.fast and self._has_fixed_statistics():
            x = convolve(x, *self._folded())
        else:
            x = convolve(x, self.weight, self.bias)
            if self.norm is not None:
                x = self.norm(x) if len(x) or isinstance(self.norm, SyncBatchNorm2d) else _affine(x, self.norm)
        return F.relu_(x) if self.relu else x

    def train(self, mode: bool = True) -> Self:
        """See nn.Module.train."""
        self._folded_weight, self._winograd_weight = _Kept(), _Kept()
        return super().train(mode)

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Weights and bias with the normalisation in them."""
        return self._folded_weight(lambda: _fold(self.weight, self.norm), self._sources())

    def _sources(self) -> list[Tensor]:
        """What the weights are made of, the normalisation's part included where its statistics are fixed."""
        norm = self.norm
        if not self._has_fixed_statistics():
            return [self.weight]
        return [self.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]

    def _has_fixed_statistics(self) -> bool:
        if isinstance(self.norm, FrozenBatchNorm2d):
            return True
        return isinstance(self.norm, nn.BatchNorm2d) and not self.norm.training

    def freeze(self) -> None:
        """Stop the training of these weights; a BatchNorm becomes a FrozenBatchNorm2d."""
        for parameter in self.parameters():
            parameter.requires_grad = False
        if isinstance(self.norm, nn.BatchNorm2d):
            self.norm = FrozenBatchNorm2d.from_batch_norm(self.norm)


class _Kept:
    """What was made of tensors, as long as they are the same; always made anew where gradients are asked for."""

    def __init__(self) -> None:
        self._state: object = None
        self._value: Any = None

    def __call__(self, make: Callable[[], Any], sources: Sequence[Tensor]) -> Any:
        if torch.is_grad_enabled() or any(source.is_inference() for source in sources):
            return make()
        # Every change in place raises a tensor's version; other tensors lie elsewhere.
        state = [(source.data_ptr(), source._version) for source in sources]
        if self._state != state:
            self._state, self._value = state, make()
        return self._value


def _fold(weight: Tensor, norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weights and bias of the convolution and the norm in one."""
    scale, shift = scale_and_shift(norm)
    return weight * scale[:, None, None, None], shift


def _affine(x: Tensor, norm: nn.Module) -> Tensor:
    """Normalise nothing, (0, C, H, W): there are no statistics, BatchNorm would store NaN; gradients are zero."""
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]


def init_msra(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """He et al. 2015, normal, by fan-out; the initial weights of Caffe2's MSRAFill."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    _zero_bias(layer)


def init_xavier(layer: nn.Conv2d | nn.Linear) -> None:
    """Uniform by fan-in; the initial weights of Caffe2's XavierFill."""
    nn.init.kaiming_uniform_(layer.weight, a=1)
    _zero_bias(layer)


def init_normal(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    """Normal with the given standard deviation, biases zero."""
    nn.init.normal_(layer.weight, std=std)
    _zero_bias(layer)


def _zero_bias(layer: nn.Module) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
