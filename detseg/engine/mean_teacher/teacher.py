"""The teacher in the training loop: it labels a batch of unlabelled images, and the student learns from it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from detseg.coco.records import ImageRecord
from detseg.data.loader import Share, TrainLoader, possible_workers
from detseg.data.views import Views, ViewStream
from detseg.engine.mean_teacher.options import MeanTeacherOptions
from detseg.engine.mean_teacher.pseudo_labels import Labeler
from detseg.engine.plan import TrainingPlan
from detseg.engine.state import TrainingState
from detseg.engine.training import Training, single_values_explained
from detseg.optim.precision import automatic_dtype
from detseg.runs.distributed import no_sync
from detseg.structures.sample import Sample

LOSS = "loss_unlabeled"


@dataclass
class MeanTeacher:
    """The mean teacher of a training.

    labeler: labels views with the average of the student's weights. batches: views from the current iteration on.
    dtype: number format of the teacher, None for float32. numbers: values of the last iteration for the log, by name.
    """

    options: MeanTeacherOptions
    labeler: Labeler
    batches: Iterator[list[Views]]
    dtype: torch.dtype | None = None
    numbers: dict[str, float] = field(default_factory=dict)

    def learn(self, training: Training, labeled: Sequence[Sample]) -> tuple[dict[str, float], float]:
        """Add the gradients of a batch of unlabelled images to those of the student.

        Called before the backward pass of the labelled images: that pass exchanges gradients between processes, and
        these are then exchanged with them.

        labeled: the labelled samples of the same step.

        Returns:
            the loss by name, and the seconds spent waiting for views.
        """
        state, options = training.state, self.options
        if state.iteration < options.burn_in:
            return {LOSS: 0.0}, 0.0
        asked = time.perf_counter()
        with state.processes.together():
            views = next(self.batches)
        seconds = time.perf_counter() - asked
        if state.iteration == options.burn_in and options.start == "student":
            state.average.restart(state.model)
        with nullcontext() if self.dtype is None else torch.autocast(state.device.type, dtype=self.dtype):
            labels = self.labeler(views, labeled)
        samples = [one.sample for one in labels if one.sample is not None]
        self.numbers = {
            "pseudo_images": len(samples) / len(views),
            "pseudo_objects": sum(one.found for one in labels) / len(views),
            "pseudo_ignored": sum(one.unsure for one in labels) / len(views),
            "pseudo_threshold": float(self.labeler.thresholds.values.mean()),
        }
        loss = torch.zeros((), device=state.device)
        if samples:
            # Images without a label take no part; the loss of the others is not scaled up for them.
            factor = options.weight_at(state.iteration) * len(samples) / len(views)
            with no_sync(state.trained), kept_statistics(state.model):
                with state.precision.autocast(), single_values_explained(len(samples)):
                    loss = sum(state.trained(samples).values()) * factor
                state.precision.scaled(loss / training.plan.loader.accumulate).backward()
        return training.finite_losses({LOSS: loss}, samples), seconds

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores besides the average: adapted thresholds."""
        return {"thresholds": self.labeler.thresholds.state_dict()}


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics of BatchNorm unchanged by forward passes in training mode.

    Strong views, with noise and hidden rectangles, have other statistics than real images.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def build_mean_teacher(
    plan: TrainingPlan,
    state: TrainingState,
    records: Sequence[ImageRecord],
    saved: Mapping[str, Any] | None = None,
    *,
    seed: int,
    share: Share,
) -> MeanTeacher:
    """Build the teacher of a training at its current iteration.

    records: the unlabelled images. saved: the teacher's state from a checkpoint. share: this process's share of the
    data, as for the labelled images.
    """
    options, loader = plan.teacher, plan.loader
    labeler = Labeler(state.average.network(state.model), options.labels)
    if saved:
        labeler.thresholds.load_state_dict(saved["thresholds"])
    batch_size = options.ratio * loader.batch_size

    def position(iteration: int) -> int:
        """Return the number of views used before an iteration; none in the burn-in."""
        return max(iteration - options.burn_in, 0) * batch_size * loader.accumulate

    batches = TrainLoader(
        ViewStream(records, preprocess=loader.preprocess, policy=loader.policy, changes=options.changes, seed=seed),
        batch_size=batch_size,
        start_position=position(state.iteration),
        total=position(plan.max_iter),
        workers=possible_workers(loader.workers),
        share=share,
    )
    return MeanTeacher(options, labeler, iter(batches), automatic_dtype(state.device))
