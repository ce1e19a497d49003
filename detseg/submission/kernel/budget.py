"""How many models and views fit into the time of a session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Fraction of the time that is reserved for the end: the last image, checking and saving the CSV.
_RESERVE = 0.03
# The first images are slow (device initialization); they count only if they took this fraction of the total time.
_LONG = 0.05


@dataclass(frozen=True)
class Effort:
    """The first `models` models, each with its first `views` views."""

    models: int
    views: int


class Budget:
    """Measure the time per image and reduce the effort if time runs short: views first, then models.

    Args:
        hours: duration of the session, from `started` on (seconds of `clock`).
        views: number of views of every model.
    """

    def __init__(self, hours: float, started: float, views: Sequence[int], clock: Callable[[], float]) -> None:
        self.seconds = hours * 3600
        self.deadline = started + self.seconds * (1 - _RESERVE)
        self.effort = Effort(len(views), max(views))
        self._views = tuple(views)
        self._clock = clock
        self._measured: list[tuple[int, float]] = []  # forward passes, seconds

    @property
    def is_over(self) -> bool:
        return self._clock() >= self.deadline

    def passes(self, effort: Effort) -> int:
        """Return the number of forward passes per image."""
        return sum(min(views, effort.views) for views in self._views[: effort.models])

    def took(self, images: int, seconds: float) -> None:
        """Record how many seconds images took with the present effort."""
        self._measured.append((images * self.passes(self.effort), seconds))

    def seconds_for(self, images: int, effort: Effort) -> float | None:
        """Return the expected seconds for images; None if too little has been measured."""
        counted = self._measured[1:]
        if not counted and self._measured and self._measured[0][1] > _LONG * self.seconds:
            counted = self._measured
        if not counted:
            return None
        passes, seconds = map(sum, zip(*counted, strict=True))
        return seconds / passes * self.passes(effort) * images

    def plan(self, remaining: int) -> str | None:
        """Reduce the effort as far as the remaining images require; return a message if it was reduced."""
        before = self.effort
        while self._is_short(remaining):
            if self.effort.views > 1:
                self.effort = Effort(self.effort.models, self.effort.views - 1)
            elif self.effort.models > 1:
                self.effort = Effort(self.effort.models - 1, 1)
            else:
                break
        if self.effort == before:
            return None
        left = max(self.deadline - self._clock(), 0)
        return (
            f"{remaining} images would take {self.seconds_for(remaining, before) / 60:.1f} minutes, but only "
            f"{left / 60:.1f} are left: continuing with {self.effort.models} of {len(self._views)} models and "
            f"{self.effort.views} of up to {max(self._views)} views"
        )

    def _is_short(self, remaining: int) -> bool:
        needed = self.seconds_for(remaining, self.effort)
        return needed is not None and needed > self.deadline - self._clock()
