"""The training, from a configuration to a trained and scored model.

`run_iterations` is the native engine's whole loop, in the order in which things happen; `train` puts around it, or
around Detectron2's trainer, what it needs.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import torch

from detseg.coco.catalog import with_input_keys
from detseg.data.loader import LoaderOptions, Share, build_train_loader
from detseg.engine.data_sets import load_test_sets, load_training_set
from detseg.engine.evaluation import build_quick_evaluation
from detseg.engine.progress import Progress, Silence, Stopwatch
from detseg.engine.reproducibility import begin_rng, deterministic, stop_not_finite
from detseg.engine.session import BuildModel, check_shares, compute_settings, finish, recorded_run, start_state
from detseg.engine.state import TrainingState
from detseg.engine.validation import validate_config
from detseg.engines.choice import choose_engine
from detseg.optim.optimizer import gradient_norm, set_learning_rates
from detseg.runs.distributed import ALONE, Processes, held_back
from detseg.runs.interrupt import StopRequest, TrainingInterrupted
from detseg.runs.run_folder import RunFolder
from detseg.runs.trackers import EVALUATION, MetricLog
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset
    from detseg.config import Config

logger = logging.getLogger(__name__)

Batches = Iterator[list[Sample]]


def train(
    cfg: Config,
    run: RunFolder,
    *,
    resume: bool = False,
    build: BuildModel | None = None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Train, evaluate and leave everything in the run folder.

    Args:
        cfg: the configuration, validated.
        run: the opened folder.
        resume: continue from its checkpoints/last.pth, where there is one.
        build: makes the model; None takes MODEL.META_ARCHITECTURE.
        processes: those that train together, each of which calls this.

    Returns:
        what final_metrics.json holds; {} without DATASETS.TEST.

    Raises:
        TrainingInterrupted: a signal came; `resume` continues.
        DetsegError: data, weights or configuration are wrong, or a loss is not finite.
    """
    with (
        run.logging() as log_file,
        recorded_run(_with_input_of_data(cfg), run, processes) as cfg,
        compute_settings(cfg),
    ):
        with processes.together():
            check_shares(cfg, processes)
            data = load_training_set(cfg)
            test_sets = load_test_sets(cfg, data.class_names)
            state = start_state(cfg, data.class_names, build, processes)
        saved = state.restore(run.last) if resume and processes.from_main(run.last.is_file) else None
        state.exchange_gradients()
        plan = Plan.from_config(cfg)
        with processes.together():
            evaluate = None
            if test_sets and plan.evaluation_period:
                evaluate = build_quick_evaluation(cfg, next(iter(test_sets.values())), data.class_names, processes)
            share = Share(processes.rank, processes.count)
            total = plan.max_iter * state.images_per_iteration
            options = LoaderOptions.from_config(cfg)
            loader = build_train_loader(options, data, state.position, total, seed=cfg.SEED, share=share)
            batches = iter(loader)
            loop = choose_loop(cfg, data, share)
        # After the loader, which may draw: a resumed model must go on with the very numbers that were next.
        begin_rng(cfg.SEED, processes.rank, saved)
        device = next(state.model.parameters()).device
        with deterministic(device), StopRequest(patient=processes.count > 1) as stop:
            with loader.watched():
                iterate(loop, state, batches, plan, run, evaluate, stop, cfg.SOLVER.LOG_PERIOD, log_file)
            return finish(cfg, state, run, test_sets, stop)


def _with_input_of_data(cfg: Config) -> Config:
    """The configuration with what the data sets say of their images, checked again where that changes it."""
    changed = with_input_keys(cfg)
    if changed is not cfg:
        validate_config(changed, training=False)
    return changed


def choose_loop(cfg: Config, data: CocoDataset, share: Share) -> Loop:
    """What trains: `run_iterations`, or Detectron2's trainer."""
    if choose_engine(cfg).name == "native":
        return run_iterations
    return import_module("detseg.engine.detectron2.trainer").build_loop(cfg, data, share)


def iterate(
    loop: Loop,
    state: TrainingState,
    batches: Batches,
    plan: Plan,
    run: RunFolder,
    evaluate: Evaluate | None,
    stop: StopRequest,
    log_period: int,
    log_file: logging.Handler,
) -> None:
    """Run a loop with its metrics and its progress opened and closed."""
    if not state.processes.is_main:
        loop(state, batches, plan=plan, run=run, progress=Silence(), evaluate=evaluate, stop=stop)
        return
    if state.iteration:
        logger.info("resumed after iteration %d of %d", state.iteration, plan.max_iter)
    metrics = MetricLog(
        run.metrics,
        tensorboard=run.tensorboard,
        iteration=state.iteration,
        last_evaluation=state.best.last_evaluation,
    )
    progress = Progress(
        metrics=metrics,
        window=state.window,
        iteration=state.iteration,
        max_iter=plan.max_iter,
        log_period=log_period,
        log_file=log_file,
    )
    try:
        with progress:
            loop(state, batches, plan=plan, run=run, progress=progress, evaluate=evaluate, stop=stop)
    finally:
        metrics.close()


class Evaluate(Protocol):
    """Scores a model on the validation images; `stop` is looked at between images."""

    def __call__(self, model: torch.nn.Module, stop: StopRequest) -> dict[str, Any]: ...


class Loop(Protocol):
    """Trains `state` to the end, to the early stop, or to a signal; see `run_iterations`."""

    def __call__(
        self,
        state: TrainingState,
        batches: Batches,
        *,
        plan: Plan,
        run: RunFolder,
        progress: Progress | Silence,
        evaluate: Evaluate | None,
        stop: StopRequest,
    ) -> None: ...


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know. Periods are in iterations, 0 for never; `best_metric` is a key of the metrics."""

    max_iter: int
    accumulate: int
    checkpoint_period: int
    checkpoint_keep: int
    evaluation_period: int
    best_metric: str
    patience: int

    @classmethod
    def from_config(cls, cfg: Config) -> Plan:
        return cls(
            max_iter=cfg.SOLVER.MAX_ITER,
            accumulate=cfg.SOLVER.ACCUMULATE,
            checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
            checkpoint_keep=cfg.SOLVER.CHECKPOINT_KEEP,
            evaluation_period=cfg.TEST.EVAL_PERIOD,
            best_metric=cfg.TEST.BEST_METRIC,
            patience=cfg.TEST.EARLY_STOP_PATIENCE,
        )

    def evaluation_due(self, state: TrainingState) -> bool:
        """Whether this state has to be evaluated, and was not yet: also right after resuming."""
        if not self.evaluation_period or state.iteration <= state.best.last_evaluation:
            return False
        return state.iteration % self.evaluation_period == 0 or state.iteration == self.max_iter

    def checkpoint_due(self, state: TrainingState) -> bool:
        """Whether this state has to be on the disk: always before an evaluation, because that may fail."""
        periodic = self.checkpoint_period > 0 and state.iteration % self.checkpoint_period == 0
        return periodic or state.iteration == self.max_iter or self.evaluation_due(state)


def run_iterations(
    state: TrainingState,
    batches: Batches,
    *,
    plan: Plan,
    run: RunFolder,
    progress: Progress | Silence,
    evaluate: Evaluate | None,
    stop: StopRequest,
) -> None:
    """Train `state` to the end, to the early stop, or to a signal.

    Raises:
        TrainingInterrupted: a signal came; the state was saved.
        RunError: a loss or gradient is not finite; the batch was dumped.
    """
    state.model.train()
    watch = Stopwatch()
    while True:
        if evaluate is not None and plan.evaluation_due(state):
            score_and_keep_best(state, plan, run, progress.metrics, evaluate, stop)
            watch.skip()
        if state.best.exhausted(plan.patience):
            logger.info("stopped early: %d evaluations without a better %s", plan.patience, plan.best_metric)
            break
        if state.iteration >= plan.max_iter:
            break
        learning_rate = set_learning_rates(state.optimizer, state.schedule(state.iteration), state.iteration)
        losses, norm, data_seconds = train_step(state, batches, plan.accumulate, run, learning_rate)
        state.iteration += 1
        progress.update(
            state.iteration,
            losses,
            lr=learning_rate,
            gradient_norm=norm,
            seconds=watch.read(),
            data_seconds=data_seconds,
        )
        signal = state.processes.stop_signal(stop)
        if signal or plan.checkpoint_due(state):
            state.save_last(run.last, plan.checkpoint_keep)
            watch.skip()
        if signal:
            said = f"stopped after iteration {state.iteration}, which is saved in {run.last}"
            raise TrainingInterrupted(said, signal)


def train_step(
    state: TrainingState, batches: Batches, accumulate: int, run: RunFolder, learning_rate: float
) -> tuple[dict[str, float], float, float]:
    """One step of the optimizer over `accumulate` batches.

    Returns:
        the losses by name, averaged over the batches and processes; the L2 norm of all gradients before clipping;
        seconds spent waiting for data.
    """
    means: dict[str, float] = {}
    seen: list[Sample] = []
    data_seconds = 0.0
    state.optimizer.zero_grad(set_to_none=True)
    for number in range(1, accumulate + 1):
        asked = time.perf_counter()
        with state.processes.together():
            samples = next(batches)
        data_seconds += time.perf_counter() - asked
        seen += samples
        with held_back(state.trained, number < accumulate):
            with state.precision.autocast():
                named = state.trained(samples)
            own = torch.stack([loss.detach().float() for loss in named.values()])
            values = state.processes.mean(own).tolist()
            if not all(map(math.isfinite, values)):
                dump_not_finite(state, "loss", samples, dict(zip(named, own.tolist(), strict=True)), run, learning_rate)
            state.precision.backward(sum(named.values()) / accumulate)
        for name, value in zip(named, values, strict=True):
            means[name] = means.get(name, 0.0) + value / accumulate
    state.precision.unscale(state.optimizer)
    norm = gradient_norm(state.parameters).item()
    # With float16 the scaler meets overflowing gradients as a matter of course: it skips the step and lowers its scale.
    if not math.isfinite(norm) and state.precision.scaler is None:
        dump_not_finite(state, "gradient", seen, means, run, learning_rate)
    if state.clipper is not None:
        state.clipper(state.parameters)
    state.precision.step(state.optimizer)
    if state.average is not None:
        state.average.update(state.model)
    return means, norm, data_seconds


def score_and_keep_best(
    state: TrainingState, plan: Plan, run: RunFolder, metrics: MetricLog, evaluate: Evaluate, stop: StopRequest
) -> None:
    """Evaluate the model as it is now; keep it as the best checkpoint where it is."""
    with state.model_to_evaluate() as model:
        scores = evaluate(model, stop)
    metrics.write(state.iteration, EVALUATION, scores)
    value = scores.get(plan.best_metric)
    improved = state.best.update(state.iteration, value)
    if improved:
        state.save_best(run.best, scores)
    state.save_last(run.last, plan.checkpoint_keep)
    logger.info(
        "iteration %d: %s %s%s",
        state.iteration,
        plan.best_metric,
        "undefined" if value is None else f"{value:.4f}",
        ", the best so far" if improved else f" (best in iteration {state.best.iteration})",
    )


def dump_not_finite(
    state: TrainingState,
    what: str,
    samples: list[Sample],
    losses: dict[str, float],
    run: RunFolder,
    learning_rate: float,
) -> None:
    """End the training in all processes; those whose own numbers are not finite dump their images."""
    with state.processes.together():
        if what == "gradient" or not all(map(math.isfinite, losses.values())):
            stop_not_finite(
                what,
                iteration=state.iteration + 1,
                samples=samples,
                losses=losses,
                model=state.model,
                folder=run.non_finite,
                learning_rate=learning_rate,
                rank=state.processes.rank,
            )
