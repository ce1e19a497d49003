"""What a step costs in which a mean teacher labels unlabelled images, beside one of labelled images alone.

    python benchmarks/mean_teacher.py --config dsb2018/mask_rcnn_lite0_FPN.yaml --weights RUN/checkpoints/best.pth \
        --images IMAGES [KEY VALUE ...]

Both steps train one model in turns, each on batches of its own, loading included. The weights have to be trained: what
a teacher finds, and so what its labels cost, depends on them. Goal: at most 2.2 times as long at a ratio of 1:1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from measuring import machine, take_turns, verdict

from detseg.config import load_config
from detseg.data.loader import Share, build_train_loader
from detseg.engine.data_sets import load_training_set, load_unlabeled
from detseg.engine.mean_teacher.teacher import build_mean_teacher
from detseg.engine.plan import TrainingPlan
from detseg.engine.state import TrainingState, deterministic
from detseg.engine.train import train_step
from detseg.engine.training import Training
from detseg.engines.build import build_model
from detseg.models.devices import choose_device
from detseg.models.weights import load_weights
from detseg.optim.optimizer import MovingAverage, build_clipper, build_optimizer
from detseg.optim.precision import build_precision
from detseg.optim.schedules import build_schedule
from detseg.runs.distributed import SINGLE

GOAL = 2.2
SEED = 1


def forever(batches: Sequence[list[Any]]) -> Iterator[list[Any]]:
    while True:
        yield from batches


def build_training(config: str, weights: str, overrides: Sequence[str]) -> Training:
    """A training of the weights, after the burn-in, with its teacher."""
    keys = ["SEMI.BURN_IN", "0", "SEMI.RAMP", "0", "DATALOADER.NUM_WORKERS", "0", "SOLVER.EMA.ENABLED", "True"]
    cfg = load_config(config, [*keys, *overrides])
    plan = TrainingPlan.from_config(cfg)
    data = load_training_set(cfg)
    model = build_model(cfg)
    load_weights(model, weights, fine_tune=True, cfg=cfg)
    model.to(choose_device(cfg.MODEL.DEVICE)).prefer_speed().train()
    state = TrainingState(
        model=model,
        optimizer=build_optimizer(plan.optimizer, model),
        schedule=build_schedule(plan.schedule),
        precision=build_precision(plan.precision, choose_device(cfg.MODEL.DEVICE)),
        clipper=build_clipper(plan.clipping),
        average=MovingAverage(model, plan.average.decay),
        images_per_iteration=plan.images_per_iteration,
        about={},
        processes=SINGLE,
    )
    for group in state.optimizer.param_groups:  # what is measured does not change under way
        group["lr"] = 1e-7
    loader = build_train_loader(plan.loader, data, 0, 10**6, seed=SEED)
    state.teacher = build_mean_teacher(plan, state, load_unlabeled(cfg).images, seed=SEED, share=Share())
    return Training(None, plan, state, iter(loader), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--weights", required=True, metavar="PTH", help="of a trained model of this configuration")
    parser.add_argument("--images", required=True, metavar="DATA", help="the unlabelled images: SEMI.UNLABELED")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    arguments = parser.parse_args()
    keys = ["SEMI.UNLABELED", f"[{arguments.images}]", *arguments.overrides]
    training = build_training(arguments.config, arguments.weights, keys)
    state, teacher = training.state, training.state.teacher
    found: list[float] = []

    def step(with_teacher: bool) -> None:
        state.teacher = teacher if with_teacher else None
        train_step(training)
        if with_teacher:
            found.append(teacher.numbers["pseudo_objects"])

    with deterministic(state.device):
        variants = {"labelled alone": lambda: step(False), "with teacher": lambda: step(True)}
        clock = time.perf_counter if state.device.type == "cuda" else time.process_time
        timing = take_turns(variants, arguments.rounds, clock=clock)
    ratio, least, most = timing.ratio("with teacher", "labelled alone")
    print(machine("torch"), f"{torch.get_num_threads()} threads")
    for name in variants:
        print(f"{name:16s} {timing.median(name):.3f} s")
    print(f"labels a view    {sum(found) / len(found):.1f}")
    print(f"ratio            {ratio:.2f} ({least:.2f} to {most:.2f}), goal {GOAL}: {verdict(ratio <= GOAL)}")


if __name__ == "__main__":
    main()
