"""One step of Detectron2's training loop: its SimpleTrainer and its AMPTrainer, with what detseg asks of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from detseg.engine.state import TrainingState
from detseg.optim.optimizer import gradient_norm
from detseg.runs.distributed import held_back
from detseg.structures.sample import Sample


class StepBatches:
    """What each step takes: a list of samples, or `accumulate` such lists. latest: all samples of the newest step."""

    def __init__(self, batches: Iterator[list[Sample]], accumulate: int, state: TrainingState) -> None:
        self._batches = batches
        self._accumulate = accumulate
        self._processes = state.processes
        self.latest: list[Sample] = []

    def __iter__(self) -> StepBatches:
        return self

    def __next__(self) -> Any:
        with self._processes.together():
            parts = [next(self._batches) for _ in range(self._accumulate)]
        self.latest = [sample for part in parts for sample in part]
        return parts if self._accumulate > 1 else parts[0]


class AccumulatedLosses(nn.Module):
    """SOLVER.ACCUMULATE: losses whose backward pass adds the last batch's gradients to the mean of several batches'.

    model: gives the losses of one batch. scale: applied to the losses of the earlier batches before they go backward.
    The gradients must be zero before.
    """

    def __init__(self, model: nn.Module, scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.scale = scale

    def forward(self, batches: list[list[Sample]]) -> dict[str, Tensor]:
        """Return the losses by name: means over the batches, with the gradient of the last one's part."""
        earlier: dict[str, Tensor] = {}
        for batch in batches[:-1]:
            with held_back(self.model, True):
                parts = {name: loss / len(batches) for name, loss in self.model(batch).items()}
                self.scale(sum(parts.values())).backward()
            earlier = {name: earlier.get(name, 0.0) + part.detach() for name, part in parts.items()}
        last = self.model(batches[-1])
        return {name: loss / len(batches) + earlier.get(name, 0.0) for name, loss in last.items()}


class GradientHook(HookBase):
    """Measures the gradients and clips them, after the backward pass. norm: L2, of all together, before clipping."""

    def __init__(self, state: TrainingState) -> None:
        self.state = state
        self.norm = 0.0

    def after_backward(self) -> None:
        scaler = getattr(self.trainer, "grad_scaler", None)
        if scaler is not None:
            scaler.unscale_(self.state.optimizer)
        self.norm = gradient_norm(self.state.parameters).item()
        if self.state.clipper is not None:
            self.state.clipper(self.state.parameters)

    @property
    def overflowed(self) -> bool:
        """Whether the gradients are not finite, and that is not the loss scaling's daily work."""
        return not math.isfinite(self.norm) and self.state.precision.scaler is None


class NotFiniteError(FloatingPointError):
    """A loss or gradient is not finite. what: which of them. losses: of this process, by name."""

    def __init__(self, what: str, losses: Mapping[str, float]) -> None:
        super().__init__(f"the {what} is not finite")
        self.what = what
        self.losses = dict(losses)


class _Step:
    """What both steps have beside Detectron2's. losses: of the newest step, means over all processes, in the main one.

    Detectron2 looks at the losses after the backward pass and before the weights move, in its main process alone.
    """

    state: TrainingState
    gradients: GradientHook
    losses: dict[str, float]
    data_seconds: float

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        what = ""
        try:
            super()._write_metrics(loss_dict, data_time, prefix, iter)
        except FloatingPointError:
            what = "loss"
        if self.state.processes.count > 1:  # all end together
            what = "loss" if self.state.processes.mean(torch.tensor([float(bool(what))])).item() else ""
        if not what and self.gradients.overflowed:
            what = "gradient"
        if what:
            raise NotFiniteError(what, {name: loss.item() for name, loss in loss_dict.items()})
        if self.state.processes.is_main:
            latest = get_event_storage().latest()
            alone = "total_loss" if len(loss_dict) == 1 else None  # what Detectron2 calls a single loss
            self.losses = {name: latest[alone or name][0] for name in loss_dict}
            self.data_seconds = latest["data_time"][0]


class PlainStep(_Step, SimpleTrainer):
    """Full precision."""


class MixedPrecisionStep(_Step, AMPTrainer):
    """Detectron2's automatic mixed precision; on CUDA only."""


def build_step(state: TrainingState, batches: StepBatches, accumulate: int) -> PlainStep | MixedPrecisionStep:
    """The step for the precision and the accumulation of a training."""
    model: nn.Module = state.trained
    scaler = state.precision.scaler
    if accumulate > 1:
        model = AccumulatedLosses(model, (lambda loss: loss) if scaler is None else scaler.scale)
    zero_first = {"zero_grad_before_forward": accumulate > 1}
    if state.precision.dtype is None:
        step: Any = PlainStep(model, batches, state.optimizer, **zero_first)
    else:
        scaler = scaler or torch.amp.GradScaler(state.precision.device.type, enabled=False)
        step = MixedPrecisionStep(
            model, batches, state.optimizer, grad_scaler=scaler, precision=state.precision.dtype, **zero_first
        )
    step.state = state
    step.gradients = GradientHook(state)
    step.losses, step.data_seconds = {}, 0.0
    step.register_hooks([step.gradients])
    return step
