"""Learning-rate schedules with Detectron2's numbers, as pure functions of the iteration.

A schedule has no state: `schedule(iteration)` is the factor on every parameter group's own rate for that iteration
(0-based), so resuming needs the iteration alone. Inside, progress `t` is iteration / max_iter in [0, 1].

Detectron2 compares progress with a tolerance of 1e-6 (fvcore's ParamScheduler); the same tolerance is kept here, so
that changes happen at the same iteration.
"""

from __future__ import annotations

import bisect
import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from detseg.errors import ConfigError

if TYPE_CHECKING:
    from detseg.config import Config

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
