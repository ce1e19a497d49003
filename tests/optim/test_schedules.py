"""Schedules against closed forms of Detectron2's, worked out by hand."""

from __future__ import annotations

import math

import pytest

from detseg.config import get_default_config
from detseg.config.options import Problems
from detseg.errors import ConfigError
from detseg.optim.schedules import ScheduleOptions, build_schedule


def schedule(**solver: object):
    cfg = get_default_config()
    for key, value in solver.items():
        cfg.set(f"SOLVER.{key}", value)
    problems = Problems(cfg, training=True)
    options = ScheduleOptions.read(problems)
    problems.raise_if_any()
    return build_schedule(options)


def test_multi_step_is_one_then_gamma_at_each_step() -> None:
    factor = schedule(MAX_ITER=100, STEPS=[60, 80], GAMMA=0.1, WARMUP_ITERS=0)
    assert [factor(i) for i in (0, 59, 60, 79, 80, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01], rel=1e-12)


def test_linear_warmup_goes_from_the_factor_to_the_schedule() -> None:
    # factor(i) = (i / W) * 1 + (1 - i / W) * 0.001 for i < W, and the schedule itself from i = W on
    factor = schedule(MAX_ITER=1000, STEPS=[900], WARMUP_ITERS=100, WARMUP_FACTOR=0.001)
    for i in (0, 1, 50, 99):
        assert factor(i) == pytest.approx(i / 100 + (1 - i / 100) * 0.001, rel=1e-12)
    assert factor(100) == 1.0


def test_constant_warmup_stays_at_the_factor() -> None:
    # The tolerance of 1e-6 ends a warm-up exactly at WARMUP_ITERS
    factor = schedule(MAX_ITER=1000, STEPS=[900], WARMUP_ITERS=100, WARMUP_FACTOR=0.25, WARMUP_METHOD="constant")
    assert [factor(i) for i in (0, 99, 100)] == pytest.approx([0.25, 0.25, 1.0])


def test_warmup_ends_on_a_step_that_lies_inside_it() -> None:
    # A step at 50 inside a warm-up of 100: the ramp ends at 0.1, where the schedule is at 100
    factor = schedule(MAX_ITER=1000, STEPS=[50], WARMUP_ITERS=100, WARMUP_FACTOR=0.0)
    assert factor(80) == pytest.approx(0.8 * 0.1)


def test_cosine_falls_to_base_lr_end() -> None:
    # e + (1 - e) / 2 * (1 + cos(pi i / N)) with e = BASE_LR_END / BASE_LR
    factor = schedule(LR_SCHEDULER_NAME="WarmupCosineLR", MAX_ITER=200, BASE_LR=0.02, BASE_LR_END=0.002, WARMUP_ITERS=0)
    for i in (0, 50, 100, 199, 200):
        assert factor(i) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * i / 200)), rel=1e-12)


def test_cosine_after_warmup_continues_at_its_own_place() -> None:
    # Not rescaled: the ramp leads up to cosine(W / N), then the cosine goes on in its own time
    factor = schedule(LR_SCHEDULER_NAME="WarmupCosineLR", MAX_ITER=200, WARMUP_ITERS=50, WARMUP_FACTOR=0.1)
    at_50 = 0.5 * (1 + math.cos(math.pi * 0.25))
    assert factor(25) == pytest.approx(0.5 * at_50 + 0.5 * 0.1, rel=1e-12)
    assert factor(50) == pytest.approx(at_50, rel=1e-12)


def test_rescaled_cosine_begins_when_the_warmup_ends() -> None:
    # RESCALE_INTERVAL: the whole cosine in the remaining 150 iterations, the ramp up to 1
    factor = schedule(
        LR_SCHEDULER_NAME="WarmupCosineLR", MAX_ITER=200, WARMUP_ITERS=50, WARMUP_FACTOR=0.1, RESCALE_INTERVAL=True
    )
    assert factor(25) == pytest.approx(0.5 + 0.5 * 0.1, rel=1e-12)
    assert factor(50) == pytest.approx(1.0, rel=1e-12)
    assert factor(125) == pytest.approx(0.5, rel=1e-9)


def test_fixed_gamma_decays_after_equal_parts() -> None:
    # NUM_DECAYS 3 makes four parts of 30 iterations, each gamma times the last
    factor = schedule(
        LR_SCHEDULER_NAME="WarmupStepWithFixedGammaLR", MAX_ITER=120, NUM_DECAYS=3, GAMMA=0.1, WARMUP_ITERS=0
    )
    values = [factor(i) for i in (0, 29, 30, 59, 60, 89, 90, 119)]
    assert values == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rel=1e-12)


def test_warmup_longer_than_the_training_is_a_ramp_over_all_of_it(caplog: pytest.LogCaptureFixture) -> None:
    factor = schedule(MAX_ITER=20, STEPS=[], WARMUP_ITERS=1000, WARMUP_FACTOR=0.0)
    assert factor(10) == pytest.approx(0.5)
    assert "WARMUP_ITERS" in caplog.text


def test_steps_beyond_the_end_are_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    factor = schedule(MAX_ITER=20, STEPS=[10, 30000], WARMUP_ITERS=0)
    assert factor(19) == pytest.approx(0.1)
    assert "[30000]" in caplog.text


@pytest.mark.parametrize(
    "solver",
    [
        {"LR_SCHEDULER_NAME": "StepLR"},
        {"WARMUP_METHOD": "cubic"},
        {"STEPS": [80, 60]},
        {"MAX_ITER": 0},
        {"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR": 0.01, "BASE_LR_END": 0.1},
        {"LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR", "NUM_DECAYS": 0},
    ],
)
def test_impossible_schedules_are_refused(solver: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="SOLVER"):
        schedule(**solver)
