"""Detectron2's DefaultTrainer with detseg's data, evaluation, files and hooks.

Detectron2's own step (SimpleTrainer or AMPTrainer) gets its samples from `StepBatches` and calls `StepLosses` as its
model. After each step `engine.training.Training` takes over, as in the native loop.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer, TrainerBase, hooks, launch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.multiprocessing import ProcessExitedException

from detseg.data.loader import LoaderOptions, Share, build_train_loader
from detseg.detectron2.config import to_cfg_node
from detseg.engine.state import TrainingState
from detseg.engine.training import Training
from detseg.errors import ConfigError
from detseg.optim.optimizer import gradient_norm, set_learning_rates
from detseg.optim.precision import Precision
from detseg.runs.distributed import TIMEOUT, no_sync
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset
    from detseg.config import Config


# Several processes on one machine, started by Detectron2's launch: one GPU each.

Command = Callable[[argparse.Namespace], None]


def launch_command(command: Command, arguments: argparse.Namespace, count: int) -> int:
    """Run `command(arguments)` in `count` new processes; return their exit status.

    command: importable by name; ends its process. arguments: have `num_gpus`, which is 1 in the new processes.

    Raises:
        ConfigError: there are fewer GPUs than processes.
    """
    if count < 1:
        raise ConfigError(f"--num-gpus is {count}; expected 1 or more")
    if torch.cuda.is_available() and count > torch.cuda.device_count():
        raise ConfigError(f"--num-gpus is {count}, but this machine has {torch.cuda.device_count()} GPUs")
    own = copy.copy(arguments)
    own.num_gpus = 1
    # Ctrl-C also reaches the new processes, which stop after the iteration; this process waits for them.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        launch(_work, count, dist_url="auto", args=(command, own, count), timeout=TIMEOUT)
    except ProcessExitedException as error:
        return error.exit_code
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def _work(command: Command, arguments: argparse.Namespace, count: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # undo the SIG_IGN inherited from the parent
    os.environ["DETSEG_LAUNCHED"] = "1"
    os.environ["LOCAL_RANK"] = str(comm.get_local_rank())
    os.environ["LOCAL_WORLD_SIZE"] = str(count)
    command(arguments)


logger = logging.getLogger(__name__)

Batches = Iterator[list[Sample]]

# Added to the seed so that PRECISE_BN uses other batches than the training.
_STATISTICS_SEED = 1


def build_loop(cfg: Config, data: CocoDataset, share: Share) -> Callable[[Training], None]:
    """Return the counterpart of `engine.train.run_iterations`; data and share are used for TEST.PRECISE_BN only."""
    node = to_cfg_node(cfg)

    def statistics_batches() -> Batches:
        """Return enough batches for an evaluation in every iteration, which takes NUM_ITER."""
        options = dataclasses.replace(LoaderOptions.from_config(cfg), workers=0)
        total = options.batch_size * node.TEST.PRECISE_BN.NUM_ITER * (node.SOLVER.MAX_ITER + 1)
        return iter(build_train_loader(options, data, 0, total, seed=cfg.SEED + _STATISTICS_SEED, share=share))

    def loop(training: Training) -> None:
        state = training.state
        state.model.train()
        if state.precision.dtype is not None and state.precision.device.type != "cuda":
            logger.info("Detectron2's mixed precision needs CUDA: full precision on %s", state.precision.device)
            state.precision = Precision(state.precision.device)
        Trainer(node, training, statistics_batches if node.TEST.PRECISE_BN.ENABLED else None).train()

    return loop


class Trainer(DefaultTrainer):
    """Detectron2's training loop.

    cfg: Detectron2's configuration. statistics_batches: returns new batches for TEST.PRECISE_BN, None if it is off.
    """

    def __init__(
        self, cfg: CfgNode, training: Training, statistics_batches: Callable[[], Batches] | None = None
    ) -> None:
        # DefaultTrainer's constructor is skipped: it needs registered data sets, and its checkpointer unpickles
        # untrusted files. Checkpoints are written by `Training`.
        TrainerBase.__init__(self)
        self.cfg = cfg
        self.training = training
        state = training.state
        self._statistics_batches = statistics_batches
        self.start_iter, self.max_iter = state.iteration, training.plan.max_iter
        self.batches = StepBatches(training)
        self.losses = StepLosses(training)
        step: dict[str, Any] = {
            "model": self.losses,
            "data_loader": self.batches,
            "optimizer": state.optimizer,
            "zero_grad_before_forward": True,
        }
        if state.precision.dtype is None:
            self._trainer = SimpleTrainer(**step)
        else:
            scaler = state.precision.scaler or torch.amp.GradScaler(state.precision.device.type, enabled=False)
            self._trainer = AMPTrainer(**step, grad_scaler=scaler, precision=state.precision.dtype)
        self.gradients = GradientHook(self)
        self._trainer.register_hooks([self.gradients])
        self.scheduler = self.build_lr_scheduler(cfg, state.optimizer)
        if state.iteration:
            self.scheduler.last_epoch = state.iteration
        set_learning_rates(state.optimizer, state.schedule(state.iteration))
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase | None]:
        """Return the hooks around each step, in their order."""
        state = self.training.state
        statistics = None
        if self._statistics_batches is not None:
            # With the bare model: with DDP its forward passes would synchronise the processes.
            period, count = self.training.plan.evaluation_period, self.cfg.TEST.PRECISE_BN.NUM_ITER
            statistics = hooks.PreciseBN(period, state.model, self._statistics_batches(), count)
        return [
            WaitingGroups(state),
            hooks.LRScheduler(),
            statistics,
            MovingAverageHook(state) if state.average is not None else None,
            ImageHook(self.training) if self.cfg.VIS_PERIOD > 0 else None,
            IterationHook(),
        ]

    def train(self) -> None:
        """Train until the last iteration, the early stop, or a signal.

        Raises:
            TrainingInterrupted: after a signal. RunError: a loss or gradient is not finite.
        """
        with _without_tracebacks(), suppress(StoppedEarlyError):
            super().train()


class StoppedEarlyError(Exception):
    """Leaves Detectron2's loop when TEST.EARLY_STOP_PATIENCE runs out."""


class StepBatches:
    """The data of each step: the SOLVER.ACCUMULATE batches of an iteration.

    latest: all samples of the current iteration. seconds: time spent waiting for them.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self.latest: list[Sample] = []
        self.seconds = 0.0

    def __iter__(self) -> StepBatches:
        return self

    def __next__(self) -> list[list[Sample]]:
        asked = time.perf_counter()
        with self._training.state.processes.together():
            batches = [next(self._training.batches) for _ in range(self._training.plan.loader.accumulate)]
        self.latest = [sample for batch in batches for sample in batch]
        self.seconds = time.perf_counter() - asked
        return batches


class StepLosses(nn.Module):
    """The model as Detectron2's step calls it, with the batches of one iteration.

    The gradients of all batches but the last are computed here; the backward pass of the returned losses adds those of
    the last one. Gradients must be zero before. latest: losses of the iteration, averaged over batches and processes.
    """

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.model = training.state.trained
        self._scaled = training.state.precision.scaled
        self._finite_losses = training.finite_losses
        self.latest: dict[str, float] = {}

    def forward(self, batches: list[list[Sample]]) -> dict[str, Tensor]:
        self.latest = {}
        earlier: dict[str, Tensor] = {}
        for samples in batches[:-1]:
            with no_sync(self.model):
                losses = self._losses(samples, len(batches))
                self._scaled(sum(losses.values())).backward()
            earlier = {name: earlier.get(name, 0.0) + loss.detach() for name, loss in losses.items()}
        losses = self._losses(batches[-1], len(batches))
        return {name: loss + earlier.get(name, 0.0) for name, loss in losses.items()}

    def _losses(self, samples: list[Sample], count: int) -> dict[str, Tensor]:
        losses = {name: loss / count for name, loss in self.model(samples).items()}
        for name, value in self._finite_losses(losses, samples).items():
            self.latest[name] = self.latest.get(name, 0.0) + value
        return losses


class GradientHook(HookBase):
    """Measures and clips the gradients after the backward pass. norm: L2 norm of all of them before clipping."""

    def __init__(self, owner: Trainer) -> None:
        self._owner = owner  # HookBase.trainer is the trainer of the step
        self.norm = 0.0

    def after_backward(self) -> None:
        training, state = self._owner.training, self._owner.training.state
        state.precision.unscale(state.optimizer)
        self.norm = gradient_norm(state.parameters).item()
        training.check_gradient(self.norm, self._owner.batches.latest, self._owner.losses.latest)
        if state.clipper is not None:
            state.clipper(state.parameters)


class WaitingGroups(HookBase):
    """SOLVER.HEAD_WARMUP_ITERS: a learning rate of 0 for waiting parameters, whatever the schedule."""

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
    """VIS_PERIOD: passes the images that Detectron2's models draw to the trackers."""

    def __init__(self, training: Training) -> None:
        self.trackers = training.session.trackers

    def after_step(self) -> None:
        storage = get_event_storage()
        for name, image, iteration in storage._vis_data:  # (3, H, W), uint8 or from 0 to 1
            picture = torch.as_tensor(image).permute(1, 2, 0)
            if picture.is_floating_point():
                picture = (picture * 255).clamp(0, 255).to(torch.uint8)
            self.trackers.images(iteration + 1, {name: picture.numpy()})
        storage.clear_images()


class IterationHook(HookBase):
    """After a step, in the order of the native loop: metrics, checkpoint, signal, evaluation, early stop."""

    def before_train(self) -> None:
        self._evaluate()
        self.trainer.training.progress.restart_clock()

    def after_step(self) -> None:
        trainer = self.trainer
        trainer.training.finish_iteration(
            trainer.losses.latest, gradient_norm=trainer.gradients.norm, data_seconds=trainer.batches.seconds
        )
        self._evaluate()

    def _evaluate(self) -> None:
        self.trainer.training.evaluate_if_due()
        if self.trainer.training.stops_early:
            raise StoppedEarlyError


@contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Suppress the tracebacks that Detectron2's loop logs; detseg prints its own messages."""
    loop = logging.getLogger("detectron2.engine.train_loop")

    def is_no_traceback(record: logging.LogRecord) -> bool:
        return record.exc_info is None

    loop.addFilter(is_no_traceback)
    try:
        yield
    finally:
        loop.removeFilter(is_no_traceback)
