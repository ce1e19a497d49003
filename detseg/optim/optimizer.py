"""SGD and AdamW with Detectron2's parameter groups, and gradient clipping."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from detseg.config.options import Options, Problems, key
from detseg.errors import ConfigError, WeightsError

Clipper = Callable[[Sequence[nn.Parameter]], Any]
"""Clips the gradients of parameters in place."""

# _NormBase: all of BatchNorm, SyncBatchNorm and InstanceNorm
NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class OptimizerOptions(Options):
    """The optimizer, and the rate and weight decay of each kind of parameter."""

    section = "SOLVER"

    name: str = key("OPTIMIZER", choices=("SGD", "AdamW"))
    base_lr: float = key("BASE_LR", above=0)
    momentum: float = key("MOMENTUM", at_least=0, below=1)
    nesterov: bool = key("NESTEROV")
    betas: tuple[float, float] = key("BETAS", at_least=0, below=1, length=2)
    weight_decay: float = key("WEIGHT_DECAY", at_least=0)
    weight_decay_norm: float | None = key("WEIGHT_DECAY_NORM", at_least=0)
    weight_decay_bias: float | None = key("WEIGHT_DECAY_BIAS", at_least=0)
    bias_lr_factor: float = key("BIAS_LR_FACTOR", at_least=0)
    backbone_multiplier: float = key("BACKBONE_MULTIPLIER", at_least=0)
    head_warmup_iters: int = key("HEAD_WARMUP_ITERS", at_least=0)

    def check(self, problems: Problems) -> None:
        if self.nesterov and self.momentum == 0:
            problems.add("SOLVER.NESTEROV", "needs SOLVER.MOMENTUM above 0")


def parameter_groups(
    model: nn.Module, options: OptimizerOptions, new_entries: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Group trainable parameters by learning rate and weight decay.

    Parameters of normalization layers decay by `weight_decay_norm`; those named "bias" learn at `base_lr *
    bias_lr_factor` and decay by `weight_decay_bias`, which overrides `weight_decay_norm`. None means `weight_decay`.
    The rates of the model's pretrained part are multiplied by `backbone_multiplier`. If `new_entries` is given, all
    other parameters wait for `head_warmup_iters` iterations.

    Returns:
        Groups for a torch optimizer with keys params, name, lr, initial_lr, weight_decay, waits_until, in order of
        first occurrence; a shared parameter is in one of them once. Names: "base", "backbone", "bias",
        "backbone_bias", with the prefix "waiting_" if they wait.
    """
    groups: dict[tuple[str, float, float, int], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    pretrained = getattr(model, "pretrained_prefix", "backbone.")
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            full_name = f"{prefix}.{name}"
            rate, decay = options.base_lr, options.weight_decay
            own = []
            if full_name.startswith(pretrained):
                rate *= options.backbone_multiplier
                own += ["backbone"] if options.backbone_multiplier != 1 else []
            if isinstance(module, NORM_LAYERS) and options.weight_decay_norm is not None:
                decay = options.weight_decay_norm
            if name == "bias":
                rate *= options.bias_lr_factor
                own += ["bias"] if options.bias_lr_factor != 1 else []
                if options.weight_decay_bias is not None:
                    decay = options.weight_decay_bias
            waits = 0 if new_entries is None or full_name in new_entries else options.head_warmup_iters
            label = ("waiting_" if waits else "") + ("_".join(own) or "base")
            groups.setdefault((label, rate, decay, waits), []).append(parameter)
    return [
        {"params": members, "name": label, "lr": rate, "initial_lr": rate, "weight_decay": decay, "waits_until": waits}
        for (label, rate, decay, waits), members in groups.items()
    ]


def build_optimizer(
    options: OptimizerOptions, model: nn.Module, new_entries: Collection[str] | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer of the trainable parameters of a model.

    Args:
        new_entries: names of the parameters without pretrained weights; None: irrelevant.

    Raises:
        ConfigError: a model without trainable parameters, or without new ones for SOLVER.HEAD_WARMUP_ITERS.
    """
    groups = parameter_groups(model, options, new_entries)
    if not groups:
        raise ConfigError("the model has no parameter to train: lower MODEL.BACKBONE.FREEZE_AT or check MODEL.FREEZE")
    if options.head_warmup_iters and all(group["waits_until"] for group in groups):
        raise ConfigError(
            "MODEL.WEIGHTS provides everything that is trained, nothing is new: set SOLVER.HEAD_WARMUP_ITERS to 0"
        )
    # A fused step is one pass over all parameters, if PyTorch has it: for floating-point parameters on these devices.
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    if options.name == "SGD":
        return torch.optim.SGD(
            groups, lr=options.base_lr, momentum=options.momentum, nesterov=options.nesterov, fused=fused
        )
    return torch.optim.AdamW(groups, lr=options.base_lr, betas=options.betas, fused=fused)


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return all parameters of `optimizer`, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float, iteration: int | None = None) -> float:
    """Set each group's rate to its initial rate times `factor`, or to 0 while it waits (iteration: 0-based).

    Returns:
        the base rate times `factor`, to be logged.
    """
    for group in optimizer.param_groups:
        waits = iteration is not None and iteration < group.get("waits_until", 0)
        group["lr"] = 0.0 if waits else group["initial_lr"] * factor
    return optimizer.defaults["lr"] * factor


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Return the L2 norm over all gradients, a float32 scalar tensor; 0 without gradients."""
    norms = [torch.linalg.vector_norm(p.grad.detach().float()) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


@dataclass(frozen=True)
class ClippingOptions(Options):
    """How gradients are clipped: each element ("value"), each parameter's norm ("norm"), or the norm of all of them."""

    section = "SOLVER.CLIP_GRADIENTS"

    enabled: bool = key("ENABLED")
    kind: str = key("CLIP_TYPE", choices=("value", "norm", "full_model"))
    limit: float = key("CLIP_VALUE", above=0)
    norm_type: float = key("NORM_TYPE", above=0)


def build_clipper(options: ClippingOptions) -> Clipper | None:
    """Build the function that clips gradients, None without clipping.

    "value" clips each element to +-limit and "norm" each parameter's gradient to that norm, both as in Detectron2;
    "full_model" clips the norm over all gradients together.
    """
    limit, norm_type = options.limit, options.norm_type
    if not options.enabled:
        return None
    if options.kind == "value":
        return lambda parameters: nn.utils.clip_grad_value_(parameters, limit)
    if options.kind == "norm":
        return lambda parameters: [nn.utils.clip_grad_norm_(one, limit, norm_type) for one in parameters]
    return lambda parameters: nn.utils.clip_grad_norm_(parameters, limit, norm_type)


# Exponential moving average of a model's weights and buffers.


@dataclass(frozen=True)
class AverageOptions(Options):
    """Whether averaged weights are kept, evaluated and stored as the best."""

    section = "SOLVER.EMA"

    enabled: bool = key("ENABLED")
    decay: float = key("DECAY", at_least=0, below=1)


class MovingAverage:
    """Average of everything in a model's state_dict, BatchNorm statistics included.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that short trainings are not dominated by their
    random start. Integer buffers (BatchNorm's counter) are copied.

    Args:
        model: the model whose current state starts the average.
        decay: in [0, 1); 0.999 averages over about the last 1,000 updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the model's state."""
        self.updates += 1
        weight = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in model.state_dict().items():
            average = self.average[name]
            if average.is_floating_point():
                average.lerp_(tensor.detach(), weight)
            else:
                average.copy_(tensor)

    def restart(self, model: nn.Module) -> None:
        """Restart from the model's current state."""
        self.updates = 0
        for name, tensor in model.state_dict().items():
            self.average[name].copy_(tensor)

    def network(self, model: nn.Module) -> nn.Module:
        """Return a copy of the model, in evaluation mode, that shares the memory of the averages."""
        network = copy.deepcopy(model).eval().requires_grad_(False)
        network.load_state_dict(self.average)
        self.average = dict(network.state_dict())  # which shares its memory
        return network

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged state inside the context; its own is restored afterwards, bit for bit."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.average, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's average; raises WeightsError if it belongs to another model."""
        if state["model"].keys() != self.average.keys():
            different = sorted(state["model"].keys() ^ self.average.keys())
            raise WeightsError(
                f"the averaged weights in the checkpoint belong to another model: {different[:5]} differ"
            )
        self.updates = state["updates"]
        for name, tensor in state["model"].items():
            self.average[name].copy_(tensor)
