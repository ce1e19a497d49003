"""Freezing of parameters by name patterns, and BatchNorm with fixed statistics."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.errors import ConfigError


def freeze_by_name(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Freeze every parameter whose name matches one of `patterns` (`*` any text, `?` one character).

    A BatchNorm whose weight and bias are frozen keeps its statistics too: it becomes a FrozenBatchNorm2d.

    Returns:
        the names of what was frozen.

    Raises:
        ConfigError: a pattern that matches no parameter: a typing error would train what shall stay.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        if not fnmatch.filter(parameters, pattern):
            parts = sorted({".".join(name.split(".")[:2]) + ".*" for name in parameters})
            raise ConfigError(
                f"MODEL.FREEZE has {pattern!r}, which matches no parameter of the model; its parts are "
                + ", ".join(parts)
            )
    frozen = [name for name in parameters if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    for name in frozen:
        parameters[name].requires_grad = False
    freeze_norms(model)
    return frozen


def freeze(module: nn.Module) -> None:
    """Stop the training of everything inside `module`; its BatchNorms keep their statistics too."""
    module.requires_grad_(False)
    freeze_norms(module)


def freeze_norms(model: nn.Module, *, all_of_them: bool = False) -> None:
    """Replace every BatchNorm inside `model` whose weight and bias are frozen by a FrozenBatchNorm2d.

    all_of_them: also those that are being trained.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            is_affine_norm = isinstance(child, nn.BatchNorm2d) and child.affine
            if is_affine_norm and (all_of_them or (not child.weight.requires_grad and not child.bias.requires_grad)):
                setattr(module, name, FrozenBatchNorm2d.from_batch_norm(child))


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm with statistics and affine parameters that never change: four buffers (C,), no parameters.

    act: what follows it, where the BatchNorm did that itself, as timm's do.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.act: nn.Module | None = None
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
        frozen.act = getattr(norm, "act", None)
        return frozen

    def forward(self, x: Tensor) -> Tensor:
        # Detectron2's two ways, which round differently: the second is faster, the first has a gradient to x alone.
        if x.requires_grad:
            scale, shift = scale_and_shift(self)
            x = x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)
        else:
            x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return x if self.act is None else self.act(x)


def scale_and_shift(norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return scale (C,) and shift (C,) by which a BatchNorm with fixed statistics acts: x * scale + shift."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale
