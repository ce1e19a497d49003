"""The best evaluation so far, and when it is time to stop for want of a better one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class BestScore:
    """value: the highest so far, None before the first. iteration: where it was reached.

    last_evaluation: iteration of the newest evaluation, 0 before the first. without_improvement: evaluations since the
    best one.
    """

    value: float | None = None
    iteration: int = 0
    last_evaluation: int = 0
    without_improvement: int = 0

    def update(self, iteration: int, value: float | None) -> bool:
        """Note an evaluation; return whether it is the best so far. Undefined scores (None) only are as the first."""
        self.last_evaluation = iteration
        first = self.iteration == 0
        if first or (value is not None and (self.value is None or value > self.value)):
            self.value, self.iteration, self.without_improvement = value, iteration, 0
            return True
        self.without_improvement += 1
        return False

    def exhausted(self, patience: int) -> bool:
        """Whether `patience` evaluations in a row brought nothing better; a patience of 0 is endless."""
        return 0 < patience <= self.without_improvement

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in asdict(self):
            setattr(self, name, state[name])
