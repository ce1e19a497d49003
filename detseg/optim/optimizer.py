"""SGD and AdamW over parameter groups chosen as Detectron2 chooses them, and gradient clipping."""

from __future__ import annotations

import bisect
import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from detseg.errors import ConfigError

if TYPE_CHECKING:
    from detseg.config import Config


# Learning-rate schedules with Detectron2's numbers, as pure functions of the iteration.
#
# A schedule has no state: `schedule(iteration)` is the factor on every parameter group's own rate for that iteration
# (0-based), so resuming needs the iteration alone. Inside, progress `t` is iteration / max_iter in [0, 1].
#
# Detectron2 compares progress with a tolerance of 1e-6 (fvcore's ParamScheduler); the same tolerance is kept here, so
# that changes happen at the same iteration.

logger = logging.getLogger(__name__)

Curve = Callable[[float], float]
"""Factor on the learning rate as a function of progress in [0, 1]."""

TOLERANCE = 1e-6


def multi_step(steps: Sequence[int], gamma: float, max_iter: int) -> Curve:
    """Multiply by `gamma` at each of the ascending iterations `steps`."""

    def curve(t: float) -> float:
        iteration = int((t + TOLERANCE) * max_iter)
        return gamma ** bisect.bisect_right(steps, iteration)

    return curve


def cosine(end_factor: float) -> Curve:
    """Half a cosine from 1 down to `end_factor` (Loshchilov and Hutter 2017, without restarts)."""

    def curve(t: float) -> float:
        return end_factor + 0.5 * (1.0 - end_factor) * (1.0 + math.cos(math.pi * t))

    return curve


def fixed_gamma_steps(gamma: float, num_decays: int) -> Curve:
    """Multiply by `gamma` `num_decays` times, after equal parts of the training."""
    values = [1.0]
    for _ in range(num_decays):
        values.append(values[-1] * gamma)

    def curve(t: float) -> float:
        return values[min(int((t + TOLERANCE) * len(values)), num_decays)]

    return curve


def with_warmup(curve: Curve, *, factor: float, length: float, method: str, rescale: bool) -> Curve:
    """Put a warm-up before `curve`.

    Args:
        curve: what follows.
        factor: the warm-up starts at `factor * curve(0)`.
        length: part of the training, in [0, 1], that the warm-up takes.
        method: "linear" (up to where `curve` continues) or "constant".
        rescale: True squeezes the whole of `curve` into what remains; False cuts its beginning off.

    Raises:
        ConfigError: unknown method.
    """
    if method not in ("linear", "constant"):
        raise ConfigError(f"SOLVER.WARMUP_METHOD is {method!r}; expected 'linear' or 'constant'")
    start = factor * curve(0.0)
    end = curve(0.0) if rescale else curve(length)
    rest = 1.0 - length
    rest_start = length + rest - rest  # in Detectron2's order of operations, so that the last bit agrees too

    def warmed(t: float) -> float:
        if t + TOLERANCE <= length:
            part = t / length
            return start if method == "constant" else end * part + start * (1.0 - part)
        if rescale and rest > 0.0:
            return curve((t - rest_start) / rest)
        return curve(t)

    return warmed


class Schedule:
    """Factor on the learning rates at an iteration.

    Args:
        curve: factor as a function of progress.
        max_iter: iterations of the whole training.
    """

    def __init__(self, curve: Curve, max_iter: int) -> None:
        self.curve = curve
        self.max_iter = max_iter

    def __call__(self, iteration: int) -> float:
        return self.curve(iteration / self.max_iter)


def build_schedule(cfg: Config) -> Schedule:
    """The schedule that SOLVER.LR_SCHEDULER_NAME and its companions ask for.

    Raises:
        ConfigError: unknown name, or numbers that make no schedule.
    """
    solver = cfg.SOLVER
    max_iter = solver.MAX_ITER
    if max_iter < 1:
        raise ConfigError(f"SOLVER.MAX_ITER is {max_iter}; training needs at least 1 iteration")
    if max_iter < solver.WARMUP_ITERS:
        logger.warning(
            "SOLVER.WARMUP_ITERS (%d) exceeds SOLVER.MAX_ITER (%d): the learning rate never reaches its full value",
            solver.WARMUP_ITERS,
            max_iter,
        )
    curve = with_warmup(
        _decay_curve(solver, max_iter),
        factor=solver.WARMUP_FACTOR,
        length=min(solver.WARMUP_ITERS / max_iter, 1.0),
        method=solver.WARMUP_METHOD,
        rescale=solver.RESCALE_INTERVAL,
    )
    return Schedule(curve, max_iter)


def _decay_curve(solver: Config, max_iter: int) -> Curve:
    name = solver.LR_SCHEDULER_NAME
    if name == "WarmupMultiStepLR":
        steps = list(solver.STEPS)
        if steps != sorted(set(steps)):
            raise ConfigError(f"SOLVER.STEPS is {steps}; expected ascending iterations")
        reached = [step for step in steps if step < max_iter]
        if len(reached) < len(steps):
            logger.warning("SOLVER.STEPS %s beyond SOLVER.MAX_ITER %d have no effect", steps[len(reached) :], max_iter)
        return multi_step(reached, solver.GAMMA, max_iter)
    if name == "WarmupCosineLR":
        end_factor = solver.BASE_LR_END / solver.BASE_LR if solver.BASE_LR else 0.0
        if not 0.0 <= end_factor <= 1.0:
            raise ConfigError(
                f"SOLVER.BASE_LR_END is {solver.BASE_LR_END}; expected between 0 and SOLVER.BASE_LR ({solver.BASE_LR})"
            )
        return cosine(end_factor)
    if name == "WarmupStepWithFixedGammaLR":
        if solver.NUM_DECAYS < 1:
            raise ConfigError(f"SOLVER.NUM_DECAYS is {solver.NUM_DECAYS}; expected 1 or more")
        return fixed_gamma_steps(solver.GAMMA, solver.NUM_DECAYS)
    raise ConfigError(
        f"SOLVER.LR_SCHEDULER_NAME is {name!r}; expected WarmupMultiStepLR, WarmupCosineLR or "
        "WarmupStepWithFixedGammaLR"
    )


Clipper = Callable[[Sequence[nn.Parameter]], None]

NORM_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float | None,
    weight_decay_bias: float | None,
    bias_lr_factor: float,
    backbone_multiplier: float = 1.0,
    new_entries: Collection[str] | None = None,
    head_warmup_iters: int = 0,
) -> list[dict[str, Any]]:
    """Trainable parameters grouped by their learning rate and weight decay.

    Parameters of normalization layers decay by `weight_decay_norm`; those named "bias" learn at `base_lr *
    bias_lr_factor` and decay by `weight_decay_bias`, which goes before `weight_decay_norm`. None means `weight_decay`.
    The rates of the backbone's network are multiplied by `backbone_multiplier`. Parameters that are not among
    `new_entries`, where these are given, wait for `head_warmup_iters` iterations.

    Returns:
        Groups for a torch optimizer with keys params, lr, initial_lr, weight_decay, waits_until, in order of first
        occurrence; a parameter that two modules share is in one of them once.
    """
    groups: dict[tuple[float, float, int], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    backbone = backbone_prefix(model)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            full_name = f"{prefix}.{name}"
            rate, decay = base_lr, weight_decay
            if full_name.startswith(backbone):
                rate *= backbone_multiplier
            if isinstance(module, NORM_LAYERS) and weight_decay_norm is not None:
                decay = weight_decay_norm
            if name == "bias":
                rate *= bias_lr_factor
                decay = decay if weight_decay_bias is None else weight_decay_bias
            waits = 0 if new_entries is None or full_name in new_entries else head_warmup_iters
            groups.setdefault((rate, decay, waits), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay, "waits_until": waits}
        for (rate, decay, waits), parameters in groups.items()
    ]


def backbone_prefix(model: nn.Module) -> str:
    """How the names of the network begin that was pretrained for classification; a feature pyramid is no part of it."""
    for prefix in ("backbone.bottom_up.", "backbone.body."):
        if any(name.startswith(prefix) for name, _ in model.named_parameters()):
            return prefix
    return "backbone."


def build_optimizer(cfg: Config, model: nn.Module, new_entries: Collection[str] | None = None) -> torch.optim.Optimizer:
    """The optimizer that SOLVER.OPTIMIZER names.

    Args:
        new_entries: names of the parameters that no pretrained weights were given for; None: does not matter.

    Raises:
        ConfigError: unknown optimizer, or a model without trainable parameters.
    """
    solver = cfg.SOLVER
    groups = parameter_groups(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        backbone_multiplier=solver.BACKBONE_MULTIPLIER,
        new_entries=new_entries,
        head_warmup_iters=solver.HEAD_WARMUP_ITERS,
    )
    if not groups:
        raise ConfigError("the model has no parameter to train: lower MODEL.BACKBONE.FREEZE_AT or look at MODEL.FREEZE")
    if solver.HEAD_WARMUP_ITERS and all(group["waits_until"] for group in groups):
        raise ConfigError("MODEL.WEIGHTS gives all that is trained, nothing is new: set SOLVER.HEAD_WARMUP_ITERS to 0")
    fused = _can_be_fused(groups)
    if solver.OPTIMIZER == "SGD":
        return torch.optim.SGD(
            groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, fused=fused
        )
    if solver.OPTIMIZER == "AdamW":
        return torch.optim.AdamW(groups, lr=solver.BASE_LR, betas=tuple(solver.BETAS), fused=fused)
    raise ConfigError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; expected SGD or AdamW")


def _can_be_fused(groups: Sequence[dict[str, Any]]) -> bool:
    """Whether a step can be one pass over all parameters: they are numbers of a device that PyTorch has it for."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    floating = all(parameter.is_floating_point() for group in groups for parameter in group["params"])
    return floating and devices <= {"cpu", "cuda"}


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters that `optimizer` moves, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float, iteration: int | None = None) -> float:
    """Set each group's rate to its initial rate times `factor`, and to 0 where it waits in this iteration (0-based).

    Returns:
        the base rate times `factor`, to be logged.
    """
    for group in optimizer.param_groups:
        waits = iteration is not None and iteration < group.get("waits_until", 0)
        group["lr"] = 0.0 if waits else group["initial_lr"] * factor
    return optimizer.defaults["lr"] * factor


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """L2 norm over all gradients together: a float32 scalar tensor, 0 where nothing has a gradient."""
    norms = [torch.linalg.vector_norm(p.grad.detach().float()) for p in parameters if p.grad is not None]
    if not norms:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(norms))


def build_clipper(cfg: Config) -> Clipper | None:
    """How SOLVER.CLIP_GRADIENTS limits gradients, None where it is off.

    CLIP_TYPE "value" limits each element to +-CLIP_VALUE and "norm" each parameter's gradient to that norm, both as
    Detectron2; "full_model" limits the norm over all gradients together.

    Raises:
        ConfigError: unknown CLIP_TYPE.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return None
    limit, norm_type = clip.CLIP_VALUE, clip.NORM_TYPE
    if clip.CLIP_TYPE == "value":
        return lambda parameters: nn.utils.clip_grad_value_(parameters, limit)
    if clip.CLIP_TYPE == "norm":
        return lambda parameters: _clip_each_norm(parameters, limit, norm_type)
    if clip.CLIP_TYPE == "full_model":
        return lambda parameters: _clip_norm(parameters, limit, norm_type)
    raise ConfigError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; expected value, norm or full_model")


def _clip_each_norm(parameters: Sequence[nn.Parameter], limit: float, norm_type: float) -> None:
    for parameter in parameters:
        nn.utils.clip_grad_norm_(parameter, limit, norm_type)


def _clip_norm(parameters: Sequence[nn.Parameter], limit: float, norm_type: float) -> None:
    nn.utils.clip_grad_norm_(parameters, limit, norm_type)
