"""Training, from a configuration to a trained and scored model.

`run_iterations` is the native engine's whole loop, in the order in which things happen; `train` does everything before
and after it, also for Detectron2's trainer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from detseg.coco.catalog import with_input_keys
from detseg.data.folds import weights_name
from detseg.data.loader import Share, build_train_loader
from detseg.data.trained_images import TrainedImages
from detseg.engine.data_sets import TrainingData, load_training_data
from detseg.engine.evaluation import build_quick_evaluation, evaluate_weights
from detseg.engine.mean_teacher.teacher import build_mean_teacher
from detseg.engine.plan import ComputeOptions, TrainingPlan
from detseg.engine.progress import Progress
from detseg.engine.state import TrainingState, begin_rng, build_state, deterministic
from detseg.engine.training import Training, single_values_explained
from detseg.engine.validation import validate_config
from detseg.engines.build import build_model
from detseg.models.base import total_loss
from detseg.models.weights import load_weights
from detseg.optim.optimizer import gradient_norm, set_learning_rates
from detseg.optim.precision import compile_backbone
from detseg.runs.distributed import SINGLE, Processes, no_sync
from detseg.runs.run_folder import RunFolder
from detseg.runs.session import Session, training_session
from detseg.runs.trackers import Trackers

if TYPE_CHECKING:
    from detseg.config import Config
    from detseg.models.base import Segmenter
    from detseg.structures.sample import Sample

logger = logging.getLogger(__name__)

BuildModel = Callable[["Config"], "Segmenter"]


def train(
    cfg: Config,
    run: RunFolder,
    *,
    resume: bool = False,
    build: BuildModel | None = None,
    processes: Processes = SINGLE,
    trackers: Trackers | None = None,
) -> dict[str, Any]:
    """Train and evaluate, with all results in the run folder.

    Args:
        cfg: the configuration, validated.
        run: the opened folder.
        resume: continue from its checkpoints/last.pth, if it exists.
        build: makes the model; None builds MODEL.META_ARCHITECTURE.
        processes: those that train together; each of them calls this.
        trackers: receive numbers and pictures; None takes those of the configuration.

    Returns:
        the content of final_metrics.json; {} without DATASETS.TEST.

    Raises:
        TrainingInterrupted: a signal was received; `resume` continues.
        DetsegError: invalid data, weights or configuration, or a non-finite loss.
    """
    with (
        run.logging(),
        training_session(_with_input_of_data(cfg), run, processes, trackers) as session,
        ComputeOptions.from_config(session.cfg).applied() as compute,
    ):
        cfg, plan = session.cfg, TrainingPlan.from_config(session.cfg)
        with processes.together():
            plan.check_processes(processes.count)
            data = load_training_data(cfg, is_main=processes.is_main)
            if processes.is_main:
                session.beginning["data"] = data.fingerprints
            classes = data.train.class_names
            state = start_state(session, plan, data, build, compile=compute.compile)
        saved = state.restore(run.last) if resume and processes.from_main(run.last.is_file) else None
        state.exchange_gradients()
        with processes.together():
            evaluate = None
            if data.test and plan.evaluation_period:
                name, validation_set = next(iter(data.test.items()))
                typical = None if data.diameters is None else data.diameters.median
                evaluate = build_quick_evaluation(
                    session, validation_set, classes, plan.best_metric, name, typical_diameter=typical
                )
            share = Share(processes.rank, processes.count)
            total = plan.max_iter * plan.images_per_iteration
            loader = build_train_loader(plan.loader, data.train, state.position, total, seed=compute.seed, share=share)
            loop: Callable[[Training], None] = run_iterations
            if session.engine.name == "detectron2":
                loop = import_module("detseg.engine.detectron2.trainer").build_loop(cfg, data.train, share)
            if plan.teacher is not None:
                state.teacher = build_mean_teacher(
                    plan, state, data.unlabeled.images, saved and saved.get("teacher"), seed=compute.seed, share=share
                )
            batches = iter(loader)
            session.iteration, session.last_evaluation = state.iteration, state.best.last_evaluation
            session.record_beginning()
            session.trackers.start(session)
        if state.iteration and processes.is_main:
            logger.info("resumed after iteration %d of %d", state.iteration, plan.max_iter)
        # After loader and trackers, which may draw: a resumed training must continue with exactly the next numbers.
        begin_rng(compute.seed, processes.rank, saved)
        progress = Progress(
            session,
            state.window,
            max_iter=plan.max_iter,
            log_period=plan.log_period,
            images=plan.images_per_iteration,
            device=state.device,
        )
        with deterministic(state.device), session.stop:
            with loader.watched(), progress:
                loop(Training(session, plan, state, batches, progress, evaluate))
            if state.best.iteration == 0:  # never evaluated: keep the newest weights
                state.save_best(run.best, {})
            if data.test:
                session.summary = evaluate_weights(
                    session, state.model, run.best, data.test, classes, iteration=state.iteration
                )
            else:
                logger.warning("there is no DATASETS.TEST: the last weights are kept as %s, without a score", run.best)
    return session.summary


def _with_input_of_data(cfg: Config) -> Config:
    """Add the input settings recorded in the data sets to the configuration; validate it again if that changes it."""
    changed = with_input_keys(cfg)
    if changed is not cfg:
        validate_config(changed, training=False)
    return changed


def start_state(
    session: Session, plan: TrainingPlan, data: TrainingData, build: BuildModel | None = None, *, compile: bool = False
) -> TrainingState:
    """Return the state before the first iteration: model from the seed or MODEL.WEIGHTS, new optimizer."""
    cfg = session.cfg
    device = session.processes.device(cfg.MODEL.DEVICE)
    torch.manual_seed(cfg.SEED)
    model = (build or build_model)(cfg)
    new_entries, seen = None, data.trained_images
    if cfg.MODEL.WEIGHTS:
        report = load_weights(model, weights_name(cfg), fine_tune=True, cfg=cfg)
        new_entries = set(report.new)
        if seen is not None:  # images of the training that made the weights count as seen
            seen |= TrainedImages.from_stored(report.trained_images)
    model.to(device).prefer_speed()
    if compile:
        compile_backbone(model, len(cfg.MODEL.PIXEL_MEAN))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info("%s on %s: %.2f million parameters to train", cfg.MODEL.META_ARCHITECTURE, device, trained / 1e6)
    about: dict[str, Any] = {}  # properties of the training images, for prediction
    if data.intensities is not None:
        about["intensities"] = data.intensities.to_plain()
    if seen is not None:
        about["trained_images"] = torch.from_numpy(seen.keys)
    if data.diameters is not None:
        about["object_diameter"] = data.diameters.median
    return build_state(session, plan, model, data.train.class_names, new_entries, about)


def run_iterations(training: Training) -> None:
    """Train until the end, an early stop or a signal.

    Raises:
        TrainingInterrupted: a signal was received; the state was saved.
        RunError: a loss or gradient is not finite; the batch was saved for inspection.
    """
    state = training.state
    state.model.train()
    while True:
        training.evaluate_if_due()
        if training.stops_early or state.iteration >= training.plan.max_iter:
            break
        set_learning_rates(state.optimizer, state.schedule(state.iteration), state.iteration)
        losses, norm, data_seconds = train_step(training)
        training.finish_iteration(losses, gradient_norm=norm, data_seconds=data_seconds)


def train_step(training: Training) -> tuple[dict[str, float], float, float]:
    """Perform one optimizer step over SOLVER.ACCUMULATE batches.

    Returns:
        the losses by name, averaged over batches and processes; the L2 norm of all gradients before clipping; seconds
        spent waiting for data.
    """
    state, accumulate = training.state, training.plan.loader.accumulate
    means: dict[str, float] = {}
    seen: list[Sample] = []
    data_seconds = 0.0
    state.optimizer.zero_grad(set_to_none=True)
    for number in range(1, accumulate + 1):
        asked = time.perf_counter()
        with state.processes.together():
            samples = next(training.batches)
        data_seconds += time.perf_counter() - asked
        seen += samples
        unlabeled: dict[str, float] = {}
        if state.teacher is not None:
            unlabeled, seconds = state.teacher.learn(training, samples)
            data_seconds += seconds
        with nullcontext() if number == accumulate else no_sync(state.trained):
            with state.precision.autocast(), single_values_explained(len(samples)):
                losses = state.trained(samples)
            for name, value in (training.finite_losses(losses, samples) | unlabeled).items():
                means[name] = means.get(name, 0.0) + value / accumulate
            state.precision.scaled(total_loss(losses) / accumulate).backward()
    state.precision.unscale(state.optimizer)
    norm = gradient_norm(state.parameters).item()
    training.check_gradient(norm, seen, means)
    if state.clipper is not None:
        state.clipper(state.parameters)
    state.precision.step(state.optimizer)
    if state.average is not None:
        state.average.update(state.model)
    return means, norm, data_seconds
