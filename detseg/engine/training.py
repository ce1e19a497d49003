"""A training in progress: the objects both engines' loops use, and what both do after every iteration."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detseg.engine.plan import TrainingPlan
from detseg.engine.progress import Progress
from detseg.engine.state import TrainingState
from detseg.errors import ConfigError, RunError
from detseg.files.atomic import write_atomically, write_text
from detseg.runs.checkpoint import save_checkpoint
from detseg.runs.interrupt import TrainingInterrupted
from detseg.runs.session import Session
from detseg.runs.threads import follow_load
from detseg.runs.tracker import EVALUATION, finite
from detseg.structures.sample import Sample

logger = logging.getLogger(__name__)

Evaluate = Callable[[nn.Module, int], dict[str, Any]]
"""Scores a model on the validation images; gets the number of finished iterations."""


@dataclass
class Training:
    """All objects that a training loop needs.

    batches: samples for `state`. evaluate: None if there is nothing to evaluate on.
    """

    session: Session
    plan: TrainingPlan
    state: TrainingState
    batches: Iterator[list[Sample]]
    progress: Progress
    evaluate: Evaluate | None = None

    @property
    def evaluation_due(self) -> bool:
        """Whether this state must be evaluated and has not been yet, also right after resuming."""
        period, iteration = self.plan.evaluation_period, self.state.iteration
        if not period or iteration <= self.state.best.last_evaluation:
            return False
        return iteration % period == 0 or iteration == self.plan.max_iter

    @property
    def stops_early(self) -> bool:
        """Whether TEST.EARLY_STOP_PATIENCE is exhausted, which is logged."""
        if not self.state.best.exhausted(self.plan.patience):
            return False
        logger.info("stopped early: %d evaluations without a better %s", self.plan.patience, self.plan.best_metric)
        return True

    def evaluate_if_due(self) -> None:
        """Evaluate the model now if an evaluation is due; save it as the best checkpoint if it is."""
        if self.evaluate is None or not self.evaluation_due:
            return
        state, plan, run = self.state, self.plan, self.session.run
        with state.model_to_evaluate() as model:
            scores = self.evaluate(model, state.iteration)
        self.session.trackers.log(state.iteration, EVALUATION, scores)
        value = scores.get(plan.best_metric)
        improved = state.best.update(state.iteration, value)
        if improved:
            state.save_best(run.best, scores)
        state.save_last(run.last, plan.checkpoint_keep)
        logger.info(
            "iteration %d: %s %s%s%s",
            state.iteration,
            plan.best_metric,
            "undefined" if value is None else f"{value:.4f}",
            "".join(f", {name} {score:.4f}" for name, score in scores.items() if name.startswith("iou_")),
            ", the best so far" if improved else f" (best in iteration {state.best.iteration})",
        )
        self.progress.restart_clock()

    def finish_iteration(self, losses: Mapping[str, float], *, gradient_norm: float, data_seconds: float) -> None:
        """Count a finished iteration, log its numbers, and save a checkpoint if due.

        Raises:
            TrainingInterrupted: a signal was received; the state was saved.
        """
        state, plan, last = self.state, self.plan, self.session.run.last
        rates = {"lr": state.learning_rate, **{f"lr/{name}": rate for name, rate in state.learning_rates.items()}}
        if state.teacher is not None:
            rates |= state.teacher.numbers
        state.iteration += 1
        follow_load()
        self.progress.update(state.iteration, losses, gradient_norm=gradient_norm, data_seconds=data_seconds, **rates)
        signal = state.processes.stop_signal(self.session.stop)
        is_last = state.iteration == plan.max_iter
        # Before an evaluation too, which may fail.
        if signal or is_last or self.evaluation_due or state.iteration % plan.checkpoint_period == 0:
            state.save_last(last, plan.checkpoint_keep)
            self.progress.restart_clock()
        if signal:
            raise TrainingInterrupted(f"stopped after iteration {state.iteration}, which is saved in {last}", signal)

    def finite_losses(self, losses: Mapping[str, Tensor], samples: Sequence[Sample]) -> dict[str, float]:
        """Return the losses of a batch as numbers, averaged over all processes.

        Raises:
            RunError: a loss is not finite in any of the processes.
        """
        own = torch.stack([loss.detach().float() for loss in losses.values()])
        means = self.state.processes.mean(own).tolist()
        if not all(map(math.isfinite, means)):
            self.stop_not_finite("loss", samples, dict(zip(losses, own.tolist(), strict=True)))
        return dict(zip(losses, means, strict=True))

    def check_gradient(self, norm: float, samples: Sequence[Sample], losses: Mapping[str, float]) -> None:
        """Raise RunError if the gradients are not finite, unless float16 loss scaling handles that."""
        if not math.isfinite(norm) and self.state.precision.scaler is None:
            self.stop_not_finite("gradient", samples, losses)

    def stop_not_finite(self, what: str, samples: Sequence[Sample], losses: Mapping[str, float]) -> None:
        """End the training in all processes; those with non-finite numbers save their batch and the model.

        A folder in `non_finite` gets one NPZ per sample (image, layers, classes, ignore as in Sample), `report.json`
        and `model.pth`, the model state before the batch.

        Args:
            what: "loss" or "gradient".
            samples: this process's batch.
            losses: of this process, by name.

        Raises:
            RunError: always; names the images.
            RunError: always; it names the images.
        """
        with self.state.processes.together():
            if what == "gradient" or not all(map(math.isfinite, losses.values())):
                self._dump_not_finite(what, samples, losses)

    def _dump_not_finite(self, what: str, samples: Sequence[Sample], losses: Mapping[str, float]) -> None:
        state, rank = self.state, self.state.processes.rank
        iteration, learning_rate = state.iteration + 1, state.learning_rate
        name = f"iteration_{iteration:07d}" + (f"_process_{rank}" if rank else "")
        folder = self.session.run.non_finite / name
        for index, sample in enumerate(samples):
            arrays = {"image": sample.image, "classes": sample.classes}
            if sample.layers is not None:
                arrays["layers"] = sample.layers.layers
            if sample.ignore is not None:
                arrays["ignore"] = sample.ignore
            path = folder / f"sample_{index}.npz"
            write_atomically(path, lambda file, arrays=arrays: np.savez_compressed(file, **arrays))
        report = {
            "what": what,
            "iteration": iteration,
            "learning_rate": learning_rate,
            "losses": finite(dict(losses)),
            "not_finite": [name for name, value in losses.items() if not math.isfinite(value)],
            "images": [{"image_id": s.image_id, "file_name": s.file_name, "objects": len(s.classes)} for s in samples],
        }
        write_text(folder / "report.json", json.dumps(report, indent=2, default=str) + "\n")
        save_checkpoint(folder / "model.pth", {"model": dict(state.model.state_dict()), "iteration": state.iteration})
        named = ", ".join(str(sample.file_name or sample.image_id) for sample in samples)
        parts = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        raise RunError(
            f"the {what} is not finite in iteration {iteration} (learning rate {learning_rate:.3g}; {parts}). "
            f"Images of this batch: {named}. The batch and the model are in {folder}. Look at the images; if they are "
            "right, lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or set SOLVER.CLIP_GRADIENTS.ENABLED True"
        )


@contextmanager
def single_values_explained(images: int) -> Iterator[None]:
    """Raise ConfigError if a BatchNorm has a single value per channel. images: in a process's batch."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            f"a BatchNorm has only one value per channel, in a batch of {images} image"
            f"{'' if images == 1 else 's'} per process: set SOLVER.IMS_PER_BATCH so that each process has more, take "
            "larger images or crops, or set MODEL.RESNETS.NORM to SyncBN (of several processes), GN or FrozenBN "
            "(MODEL.TIMM.NORM to FrozenBN)"
        ) from None
