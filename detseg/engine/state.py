"""All state that changes during training, and how checkpoints store and restore it bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from detseg.engine.plan import TrainingPlan
from detseg.engine.progress import LossWindow
from detseg.errors import WeightsError
from detseg.optim.optimizer import Clipper, MovingAverage, build_clipper, build_optimizer, trained_parameters
from detseg.optim.precision import Precision, build_precision
from detseg.optim.schedules import Schedule, build_schedule
from detseg.runs.checkpoint import keep_numbered, load_checkpoint, save_checkpoint
from detseg.runs.distributed import Processes
from detseg.runs.run_folder import environment, warn_of_another_environment
from detseg.runs.session import Session
from detseg.structures.sample import Sample

logger = logging.getLogger(__name__)


def capture_rng() -> dict[str, Any]:
    """Return the states of torch's generators: (5056,) uint8 for the CPU, and one for each CUDA device in use."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "cuda": []}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = [torch.cuda.get_rng_state(device) for device in _cuda_devices()]
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Restore captured states of torch's generators."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == len(_cuda_devices()):
        for device, generator in zip(_cuda_devices(), state["cuda"], strict=True):
            torch.cuda.set_rng_state(generator, device)


def begin_rng(seed: int, rank: int, saved: dict[str, Any] | None) -> None:
    """Set torch's generators for the start or continuation of the training in process `rank`.

    Args:
        seed: of the run.
        rank: of this process; each draws its own numbers.
        saved: the checkpoint to continue. A process without a state in it starts from the seed.
    """
    states = [saved["rng"], *saved.get("rng_of_others", [])] if saved else []
    if rank < len(states):
        try:
            restore_rng(states[rank])
        except Exception as error:  # torch raises various errors for a damaged state
            raise WeightsError(f"the checkpoint's states of random generators are damaged ({error})") from error
    elif rank == 0:
        torch.manual_seed(seed + 1)
    else:
        drawn = np.random.SeedSequence((seed, rank, saved["iteration"] if saved else 0)).generate_state(1, np.uint64)
        torch.manual_seed(int(drawn[0] >> np.uint64(1)))


def _cuda_devices() -> list[int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return [torch.cuda.current_device()]  # reading the states of others would allocate memory there
    return list(range(torch.cuda.device_count()))


@contextmanager
def undisturbed_rng() -> Iterator[None]:
    """Restore the generators afterwards, so that draws inside (in an evaluation) do not change the training."""
    state = capture_rng()
    try:
        yield
    finally:
        restore_rng(state)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, sum gradients in a fixed order even if several threads add to the same element.

    CUDA is unchanged: some of its operators have no deterministic implementation.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # helps only to find bugs, and costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill


@dataclass
class BestScore:
    """The best evaluation so far, and the criterion for early stopping.

    value: the highest score so far, None before the first. iteration: of that evaluation. last_evaluation: iteration of
    the latest evaluation, 0 before the first. without_improvement: evaluations since the best one.
    """

    value: float | None = None
    iteration: int = 0
    last_evaluation: int = 0
    without_improvement: int = 0

    def update(self, iteration: int, value: float | None) -> bool:
        """Record an evaluation; return whether it is the best so far. The first always is, even if undefined."""
        self.last_evaluation = iteration
        first = self.iteration == 0
        if first or (value is not None and (self.value is None or value > self.value)):
            self.value, self.iteration, self.without_improvement = value, iteration, 0
            return True
        self.without_improvement += 1
        return False

    def exhausted(self, patience: int) -> bool:
        """Whether the last `patience` evaluations brought no improvement; always False for 0."""
        return 0 < patience <= self.without_improvement

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in asdict(self):
            setattr(self, name, state[name])


class Teacher(Protocol):
    """Learns from unlabelled images as well: see `mean_teacher.teacher`. numbers: to be logged, by name."""

    numbers: dict[str, float]

    def learn(self, training: Any, labeled: Sequence[Sample]) -> tuple[dict[str, float], float]:
        """Add to the student's gradients; return the losses by name, and the seconds spent waiting for data."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""


@dataclass
class TrainingState:
    """The state of a training between two iterations.

    iteration: number of finished ones. images_per_iteration: samples that one takes from the sampler's stream; the
    position in the stream is the product. about: config, classes and so on, stored unchanged in every checkpoint.
    teacher: for unlabelled images, set after the rest has been restored.

    Each of the `processes` that train together has its own state; all of them must call `save_last`, `save_best`,
    `restore` and `model_to_evaluate`; the state of the main process is saved and evaluated.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: Precision
    clipper: Clipper | None
    average: MovingAverage | None
    images_per_iteration: int
    about: dict[str, Any]
    processes: Processes
    iteration: int = 0
    best: BestScore = field(default_factory=BestScore)
    window: LossWindow = field(default_factory=LossWindow)
    teacher: Teacher | None = None

    def __post_init__(self) -> None:
        self.parameters = trained_parameters(self.optimizer)
        self.trained = self.model

    def exchange_gradients(self) -> None:
        """From here on, pass training batches through `trained`, which exchanges gradients between processes."""
        self.trained = self.processes.exchange_gradients(self.model)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    @property
    def position(self) -> int:
        """Number of samples taken from the sampler's stream so far."""
        return self.iteration * self.images_per_iteration

    @property
    def learning_rate(self) -> float:
        """The base learning rate of the next iteration."""
        return self.optimizer.defaults["lr"] * self.schedule(self.iteration)

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rates of the next iteration by name of the optimizer's group, if there are several groups."""
        factor = self.schedule(self.iteration)
        rates = {
            group["name"]: 0.0 if self.iteration < group["waits_until"] else group["initial_lr"] * factor
            for group in self.optimizer.param_groups
        }
        return rates if len(rates) > 1 else {}

    @contextmanager
    def model_to_evaluate(self) -> Iterator[nn.Module]:
        """Yield the model with the weights to evaluate (averaged, if any), in evaluation mode; then restore it."""
        with undisturbed_rng():
            self.model.eval()
            try:
                with nullcontext() if self.average is None else self.average.applied_to(self.model):
                    self.processes.share_state(self.model)
                    yield self.model
            finally:
                self.model.train()

    def save_last(self, path: Path, keep: int = 1) -> None:
        """Write everything needed to continue; keep: see SOLVER.CHECKPOINT_KEEP."""
        generators = self.processes.gather(capture_rng())

        def write() -> None:
            entries = {
                **self._weights(self.model.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "schedule": {"max_iter": self.schedule.max_iter, "iteration": self.iteration},
                "ema": None if self.average is None else self.average.state_dict(),
                "teacher": None if self.teacher is None else self.teacher.state_dict(),
                "scaler": self.precision.state_dict(),
                "position": self.position,
                "rng": generators[0],
                "rng_of_others": generators[1:],
                "progress": {"best": self.best.state_dict(), "window": self.window.state_dict()},
            }
            save_checkpoint(path, entries)
            keep_numbered(path, self.iteration, keep)

        self.processes.from_main(write)

    def save_best(self, path: Path, metrics: dict[str, Any]) -> None:
        """Write what prediction needs: the evaluated weights and their scores."""
        weights = self.model.state_dict() if self.average is None else self.average.average
        self.processes.from_main(lambda: save_checkpoint(path, {**self._weights(weights), "metrics": metrics}))

    def _weights(self, model: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {"model": dict(model), "iteration": self.iteration, "environment": environment(), **self.about}

    def restore(self, path: Path) -> dict[str, Any]:
        """Restore from `last.pth` and return its content. Differences in versions or threads are logged.

        The caller restores the random generators (the entry "rng") last of all. Learning rates, decay and so on are
        those of the present configuration.

        Raises:
            WeightsError: the file cannot be read or belongs to another engine, model or optimizer.
        """
        saved = self.processes.from_main(lambda: load_checkpoint(path, for_training=True))
        with self.processes.together():
            self._take(saved, path)
        return saved

    def _take(self, saved: dict[str, Any], path: Path) -> None:
        engine = saved.get("engine", "native")
        if engine != self.about["engine"]:
            # The optimizer's state identifies parameters by their order, which differs between engines.
            raise WeightsError(
                f"{path} was trained by the engine {engine}, and cannot be continued by {self.about['engine']}; "
                "start another run from it: MODEL.WEIGHTS"
            )
        chosen = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.precision.load_state_dict(saved["scaler"])
            if self.average is not None and saved["ema"] is not None:
                self.average.load_state_dict(saved["ema"])
            elif self.average is not None:
                self.average = MovingAverage(self.model, self.average.decay)
            self.best.load_state_dict(saved["progress"]["best"])
            self.window.load_state_dict(saved["progress"]["window"])
        except WeightsError:
            raise
        except Exception as error:  # torch raises various errors for damaged files
            raise WeightsError(
                f"{path} belongs to another model or optimizer than the configuration, or is damaged; resume with the "
                f"run's own config.yaml or start another run ({type(error).__name__}: {str(error)[:2000]})"
            ) from error
        for group, values in zip(self.optimizer.param_groups, chosen, strict=True):
            group.update(values)
        self.iteration = saved["iteration"]
        if self.processes.is_main:
            warn_of_another_environment(saved.get("environment", {}))
            self._warn_of_another_count(1 + len(saved.get("rng_of_others", [])))

    def _warn_of_another_count(self, before: int) -> None:
        """Log what changes if a run continues with another number of processes."""
        count = self.processes.count
        if before == count:
            return
        images = self.about["config"]["SOLVER.IMS_PER_BATCH"]
        logger.warning(
            "resumed with %d process%s, was %d. The same: which images come next, %d at a time, and the learning rate. "
            "Different: each process now takes %d of them, over which BatchNorm (not SyncBN) and the means of the "
            "region losses are computed, and random choices in the model. The result will be as good, but not "
            "bit-identical",
            count,
            "" if count == 1 else "es",
            before,
            images,
            images // count,
        )


def build_state(
    session: Session,
    plan: TrainingPlan,
    model: nn.Module,
    classes: Sequence[str],
    new_entries: Collection[str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> TrainingState:
    """Return the initial state of a training of `model`, which is on its device.

    new_entries: see build_optimizer. about: further entries of every checkpoint, see runs/checkpoint.py.
    """
    own = {"config": session.cfg.flatten(), "classes": list(classes), "engine": session.engine.name}
    return TrainingState(
        model=model,
        optimizer=build_optimizer(plan.optimizer, model, new_entries),
        schedule=build_schedule(plan.schedule),
        precision=build_precision(plan.precision, next(model.parameters()).device),
        clipper=build_clipper(plan.clipping),
        average=MovingAverage(model, plan.average.decay) if plan.average.enabled else None,
        images_per_iteration=plan.images_per_iteration,
        about={**own, **(about or {})},
        processes=session.processes,
    )
