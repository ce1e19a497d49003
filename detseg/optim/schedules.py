"""Learning-rate schedules with Detectron2's numbers, as pure functions of the iteration.

A schedule has no state: `schedule(iteration)` is the factor on the initial rate of every parameter group in that
iteration (0-based), so resuming needs only the iteration. Internally, progress `t` is iteration / max_iter in [0, 1].
"""

from __future__ import annotations

import bisect
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from detseg.config.options import Options, Problems, key

logger = logging.getLogger(__name__)

Curve = Callable[[float], float]
"""Factor on the learning rate as a function of progress in [0, 1]."""

# Detectron2's tolerance when comparing progress (fvcore's ParamScheduler), which decides the iteration of a change.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class ScheduleOptions(Options):
    """Options of the learning-rate schedule."""

    section = "SOLVER"

    name: str = key("LR_SCHEDULER_NAME", choices=("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"))
    max_iter: int = key("MAX_ITER", at_least=1)
    base_lr: float = key("BASE_LR", above=0)
    base_lr_end: float = key("BASE_LR_END", at_least=0)
    steps: tuple[int, ...] = key("STEPS", at_least=0)
    gamma: float = key("GAMMA", above=0)
    num_decays: int = key("NUM_DECAYS", at_least=1)
    warmup_iters: int = key("WARMUP_ITERS", at_least=0)
    warmup_factor: float = key("WARMUP_FACTOR", at_least=0, at_most=1)
    warmup_method: str = key("WARMUP_METHOD", choices=("linear", "constant"))
    rescale: bool = key("RESCALE_INTERVAL")

    def check(self, problems: Problems) -> None:
        if any(later <= earlier for earlier, later in itertools.pairwise(self.steps)):
            problems.add("SOLVER.STEPS", "expected ascending iterations")
        if self.name == "WarmupCosineLR" and self.base_lr_end > self.base_lr:
            problems.add("SOLVER.BASE_LR_END", f"expected at most SOLVER.BASE_LR ({self.base_lr})")
        if not problems.training:  # the warnings below are logged once, before a training
            return
        late = [step for step in self.steps if step >= self.max_iter]
        if late and self.name == "WarmupMultiStepLR":
            logger.warning("SOLVER.STEPS %s are not reached: SOLVER.MAX_ITER is %d", late, self.max_iter)
        if self.warmup_iters > self.max_iter:
            logger.warning(
                "SOLVER.WARMUP_ITERS (%d) exceeds SOLVER.MAX_ITER (%d): the learning rate never reaches its full value",
                self.warmup_iters,
                self.max_iter,
            )


class Schedule:
    """Factor on the learning rates as a function of the iteration, for `max_iter` iterations."""

    def __init__(self, curve: Curve, max_iter: int) -> None:
        self.curve = curve
        self.max_iter = max_iter

    def __call__(self, iteration: int) -> float:
        return self.curve(iteration / self.max_iter)


def build_schedule(options: ScheduleOptions) -> Schedule:
    """Build the schedule."""
    max_iter = options.max_iter
    if options.name == "WarmupMultiStepLR":
        reached = [step for step in options.steps if step < max_iter]
        curve = multi_step(reached, options.gamma, max_iter)
    elif options.name == "WarmupCosineLR":
        curve = cosine(options.base_lr_end / options.base_lr)
    else:
        curve = fixed_gamma_steps(options.gamma, options.num_decays)
    warmed = with_warmup(
        curve,
        factor=options.warmup_factor,
        length=min(options.warmup_iters / max_iter, 1.0),
        method=options.warmup_method,
        rescale=options.rescale,
    )
    return Schedule(warmed, max_iter)


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
    """Prepend a warm-up to `curve`.

    Args:
        curve: the schedule that follows.
        factor: the warm-up starts at `factor * curve(0)`.
        length: fraction of the training, in [0, 1], for the warm-up.
        method: "linear" (up to where `curve` continues) or "constant".
        rescale: True compresses `curve` into the rest; False cuts off its beginning.
    """
    start = factor * curve(0.0)
    end = curve(0.0) if rescale else curve(length)
    rest = 1.0 - length
    rest_start = length + rest - rest  # Detectron2's order of operations, for bit-identical results

    def warmed(t: float) -> float:
        if t + TOLERANCE <= length:
            part = t / length
            return start if method == "constant" else end * part + start * (1.0 - part)
        if rescale and rest > 0.0:
            return curve((t - rest_start) / rest)
        return curve(t)

    return warmed
