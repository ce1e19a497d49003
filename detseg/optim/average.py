"""Exponential moving average of a model's weights and buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from detseg.config.options import Options, key
from detseg.errors import WeightsError


@dataclass(frozen=True)
class AverageOptions(Options):
    """Whether averaged weights are kept, evaluated and stored as the best."""

    section = "SOLVER.EMA"

    enabled: bool = key("ENABLED")
    decay: float = key("DECAY", at_least=0, below=1)


class MovingAverage:
    """Average of everything in a model's state_dict, BatchNorm statistics included.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that short trainings are not dominated by their
    random start. Integer buffers (BatchNorm's counter) are copied.

    Args:
        model: the model whose current state starts the average.
        decay: in [0, 1); 0.999 averages over about the last 1,000 updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's state."""
        self.updates += 1
        weight = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in model.state_dict().items():
            average = self.average[name]
            if average.is_floating_point():
                average.lerp_(tensor.detach(), weight)
            else:
                average.copy_(tensor)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Inside the context the model has the averaged state; afterwards its own again, bit for bit."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.average, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's average; raises WeightsError where it belongs to another model."""
        if state["model"].keys() != self.average.keys():
            different = sorted(state["model"].keys() ^ self.average.keys())
            raise WeightsError(f"the averaged weights in the checkpoint are of another model: {different[:5]} differ")
        self.updates = state["updates"]
        for name, tensor in state["model"].items():
            self.average[name].copy_(tensor)
