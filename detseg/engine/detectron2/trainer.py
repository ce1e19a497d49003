"""Detectron2's DefaultTrainer with detseg's data, evaluation, files and hooks."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import get_event_storage
from torch import nn

from detseg.data.loader import LoaderOptions, Share, build_train_loader
from detseg.detectron2.config import to_cfg_node
from detseg.engine.detectron2.steps import NotFiniteError, StepBatches, build_step
from detseg.engine.progress import Progress, Silence, Stopwatch
from detseg.engine.state import TrainingState
from detseg.engine.train import Batches, Evaluate, Loop, Plan, dump_not_finite, score_and_keep_best
from detseg.models.weights.files import read_weights
from detseg.models.weights.names import names_of_model
from detseg.models.weights.sources import resolve_weights
from detseg.optim.optimizer import set_learning_rates
from detseg.optim.precision import Precision
from detseg.runs.interrupt import StopRequest, TrainingInterrupted
from detseg.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset
    from detseg.config import Config


# Detectron2's checkpointer with detseg's files: its own reading unpickles whatever a file holds.


class SafeCheckpointer(DetectionCheckpointer):
    """Reads tensors and plain values only, from every address that MODEL.WEIGHTS takes; writes detseg's checkpoints.

    state: what is written. folder: where. keep: SOLVER.CHECKPOINT_KEEP.
    """

    def __init__(self, state: TrainingState, folder: Path, *, keep: int = 1) -> None:
        super().__init__(state.model, str(folder), save_to_disk=state.processes.is_main)
        self._state = state
        self._keep = keep

    def save(self, name: str, **_: Any) -> None:
        """Write NAME.pth with everything that continuing needs. Of several processes all call this, the main writes."""
        self._state.save_last(Path(self.save_dir) / f"{name}.pth", self._keep)

    def load(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Load weights into the model.

        Raises:
            WeightsError: no such file, or one with more in it than tensors and plain values.
        """
        return super().load(str(resolve_weights(path)) if path else path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        path = Path(filename)
        return {"model": names_of_model(read_weights(path), self.model.state_dict(), path.name).state}


logger = logging.getLogger(__name__)


class StoppedEarlyError(Exception):
    """TEST.EARLY_STOP_PATIENCE ran out: the way out of Detectron2's loop."""


class Trainer(DefaultTrainer):
    """Trains a TrainingState in Detectron2's loop.

    cfg: Detectron2's configuration. state: model, optimizer and so on, new or restored. The other arguments are those
    of `engine.train.run_iterations`. statistics_batches: gives fresh batches for TEST.PRECISE_BN, None where it is off.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        state: TrainingState,
        batches: Batches,
        plan: Plan,
        run: RunFolder,
        progress: Progress | Silence,
        evaluate: Evaluate | None,
        stop: StopRequest,
        statistics_batches: Callable[[], Batches] | None = None,
    ) -> None:
        # Not DefaultTrainer's own constructor: it builds from registered data sets and reads files by unpickling.
        TrainerBase.__init__(self)
        self.cfg = cfg
        self.state, self.plan, self.run = state, plan, run
        self.progress, self.evaluate, self.stop = progress, evaluate, stop
        self._statistics_batches = statistics_batches
        self.start_iter, self.max_iter = state.iteration, plan.max_iter
        self.batches = self.build_train_loader(batches)
        self._trainer = build_step(state, self.batches, plan.accumulate)
        self.scheduler = self.build_lr_scheduler(cfg, state.optimizer)
        if state.iteration:
            self.scheduler.last_epoch = state.iteration
        set_learning_rates(state.optimizer, state.schedule(state.iteration))
        self.checkpointer = SafeCheckpointer(state, run.checkpoints, keep=plan.checkpoint_keep)
        self.register_hooks(self.build_hooks())

    def build_train_loader(self, batches: Batches) -> StepBatches:
        """detseg's samples, so many batches a step as SOLVER.ACCUMULATE says."""
        return StepBatches(batches, self.plan.accumulate, self.state)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Any) -> Any:
        """Detectron2's own."""
        return build_lr_scheduler(cfg, optimizer)

    def test(self, cfg: CfgNode, model: nn.Module) -> None:
        """Score the model by detseg's evaluation and keep it where it is the best."""
        score_and_keep_best(self.state, self.plan, self.run, self.progress.metrics, self.evaluate, self.stop)

    def build_hooks(self) -> list[HookBase | None]:
        """What happens around each step, in this order."""
        return [
            WaitingGroups(self.state),
            hooks.LRScheduler(),
            self._precise_statistics(),
            MovingAverageHook(self.state) if self.state.average is not None else None,
            ImageHook(self.progress.metrics) if self.cfg.VIS_PERIOD > 0 else None,
            IterationHook(),
        ]

    def _precise_statistics(self) -> HookBase | None:
        if self._statistics_batches is None:
            return None
        # Of the model itself: each process would else wait for the others in its training passes.
        return hooks.PreciseBN(
            self.plan.evaluation_period,
            self.state.model,
            self._statistics_batches(),
            self.cfg.TEST.PRECISE_BN.NUM_ITER,
        )

    def train(self) -> None:
        """Train to the end, to the early stop, or to a signal.

        Raises:
            TrainingInterrupted: a signal came. NotFiniteError: a loss or gradient is not finite.
        """
        with _without_tracebacks():
            try:
                super().train()
            except StoppedEarlyError:
                logger.info(
                    "stopped early: %d evaluations without a better %s", self.plan.patience, self.plan.best_metric
                )


class WaitingGroups(HookBase):
    """SOLVER.HEAD_WARMUP_ITERS: parameters that wait do not move, whatever the schedule says."""

    def __init__(self, state: TrainingState) -> None:
        self.groups = [group for group in state.optimizer.param_groups if group.get("waits_until", 0)]

    def before_step(self) -> None:
        for group in self.groups:
            if self.trainer.iter < group["waits_until"]:
                group["lr"] = 0.0


class MovingAverageHook(HookBase):
    """SOLVER.EMA."""

    def __init__(self, state: TrainingState) -> None:
        self.state = state

    def after_step(self) -> None:
        self.state.average.update(self.state.model)


class ImageHook(HookBase):
    """VIS_PERIOD: the images that Detectron2's models draw go to TensorBoard."""

    def __init__(self, metrics: Any) -> None:
        self.metrics = metrics

    def after_step(self) -> None:
        storage = get_event_storage()
        for name, image, iteration in storage._vis_data:  # as Detectron2's own writer takes them
            self.metrics.write_image(name, image, iteration + 1)
        storage.clear_images()


class IterationHook(HookBase):
    """What follows a step, in the native loop's order: numbers, checkpoint, signal, evaluation, early stop."""

    def __init__(self) -> None:
        self.watch = Stopwatch()

    def before_train(self) -> None:
        self._evaluate()
        self.watch.skip()

    def after_step(self) -> None:
        trainer = self.trainer
        state, step = trainer.state, trainer._trainer
        learning_rate = state.optimizer.defaults["lr"] * state.schedule(state.iteration)
        state.iteration += 1
        trainer.progress.update(
            state.iteration,
            step.losses,
            lr=learning_rate,
            gradient_norm=step.gradients.norm,
            seconds=self.watch.read(),
            data_seconds=step.data_seconds,
        )
        signal = state.processes.stop_signal(trainer.stop)
        if signal or trainer.plan.checkpoint_due(state):
            trainer.checkpointer.save("last")
            self.watch.skip()
        if signal:
            said = f"stopped after iteration {state.iteration}, which is saved in {trainer.run.last}"
            raise TrainingInterrupted(said, signal)
        self._evaluate()

    def _evaluate(self) -> None:
        trainer = self.trainer
        if trainer.evaluate is not None and trainer.plan.evaluation_due(trainer.state):
            trainer.test(trainer.cfg, trainer.model)
            self.watch.skip()
        if trainer.state.best.exhausted(trainer.plan.patience):
            raise StoppedEarlyError


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Detectron2's loop logs the traceback of whatever ends it; here that is a message of its own, or none at all."""
    loop = logging.getLogger("detectron2.engine.train_loop")

    def is_no_traceback(record: logging.LogRecord) -> bool:
        return record.exc_info is None

    loop.addFilter(is_no_traceback)
    try:
        yield
    finally:
        loop.removeFilter(is_no_traceback)


# Detectron2's trainer in the place of the native loop: see `engine.train.run_iterations`.

# The batches that PRECISE_BN looks at are others than those of training.
_STATISTICS_SEED = 1


def build_loop(cfg: Config, data: CocoDataset, share: Share) -> Loop:
    """The loop of a training by Detectron2; data and share are looked at for TEST.PRECISE_BN alone."""
    node = to_cfg_node(cfg)

    def statistics_batches() -> Batches:
        """Endless enough: each evaluation takes NUM_ITER batches."""
        options = dataclasses.replace(LoaderOptions.from_config(cfg), workers=0)
        images = cfg.SOLVER.IMS_PER_BATCH * cfg.TEST.PRECISE_BN.NUM_ITER
        total = images * (cfg.SOLVER.MAX_ITER + 1)
        return iter(build_train_loader(options, data, 0, total, seed=cfg.SEED + _STATISTICS_SEED, share=share))

    def loop(
        state: TrainingState,
        batches: Batches,
        *,
        plan: Plan,
        run: RunFolder,
        progress: Progress | Silence,
        evaluate: Evaluate | None,
        stop: StopRequest,
    ) -> None:
        state.model.train()
        if state.precision.dtype is not None and state.precision.device.type != "cuda":
            logger.info("Detectron2's mixed precision needs CUDA: full precision on %s", state.precision.device)
            state.precision = Precision(state.precision.device, None)
        trainer = Trainer(
            node,
            state=state,
            batches=batches,
            plan=plan,
            run=run,
            progress=progress,
            evaluate=evaluate,
            stop=stop,
            statistics_batches=statistics_batches if cfg.TEST.PRECISE_BN.ENABLED else None,
        )
        try:
            trainer.train()
        except NotFiniteError as error:
            learning_rate = state.optimizer.defaults["lr"] * state.schedule(state.iteration)
            dump_not_finite(state, error.what, trainer.batches.latest, error.losses, run, learning_rate)

    return loop
