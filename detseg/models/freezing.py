"""Parameters that a training leaves as they are, chosen by the patterns of their names."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

from detseg.errors import ConfigError
from detseg.models.rcnn.layers import FrozenBatchNorm2d


def freeze_by_name(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Freeze every parameter whose name matches one of `patterns` (`*` any text, `?` one character).

    A BatchNorm whose weight and bias are frozen keeps its statistics too: it becomes a FrozenBatchNorm2d.

    Returns:
        the names of what was frozen.

    Raises:
        ConfigError: a pattern that matches no parameter: a typing error would train what shall stay.
    """
    frozen = []
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            parts = sorted({".".join(name.split(".")[:2]) + ".*" for name in names})
            raise ConfigError(
                f"MODEL.FREEZE has {pattern!r}, which matches no parameter of the model; its parts are "
                + ", ".join(parts)
            )
    for name, parameter in model.named_parameters():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad = False
            frozen.append(name)
    _freeze_statistics(model)
    return frozen


def _freeze_statistics(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if (
                isinstance(child, nn.BatchNorm2d)
                and child.affine
                and not any(p.requires_grad for p in child.parameters())
            ):
                setattr(module, name, FrozenBatchNorm2d.from_batch_norm(child))
