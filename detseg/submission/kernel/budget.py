"""How many models and views the time of a session allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# What is kept of the time for the end: the last image, the check of the CSV, saving.
_RESERVE = 0.03
# The first images are slow (the device is set up); they count only where they took this much of all time.
_LONG = 0.05


@dataclass(frozen=True)
class Effort:
    """The first `models` models, each with its first `views` views."""

    models: int
    views: int


class Budget:
    """Measures images and reduces the effort where the time does not suffice: views first, then models.

    Args:
        hours: of the session, from `started` on (seconds of `clock`).
        views: of every model.
    """

    def __init__(self, hours: float, started: float, views: Sequence[int], clock: Callable[[], float]) -> None:
        self.seconds = hours * 3600
        self.deadline = started + self.seconds * (1 - _RESERVE)
        self.effort = Effort(len(views), max(views))
        self._views = tuple(views)
        self._clock = clock
        self._measured: list[tuple[int, float]] = []  # passes of images through networks, and seconds

    @property
    def is_over(self) -> bool:
        return self._clock() >= self.deadline

    def passes(self, effort: Effort) -> int:
        """How often an image goes through a network."""
        return sum(min(views, effort.views) for views in self._views[: effort.models])

    def took(self, images: int, seconds: float) -> None:
        """Note how long images took with the present effort."""
        self._measured.append((images * self.passes(self.effort), seconds))

    def seconds_for(self, images: int, effort: Effort) -> float | None:
        """How long images will take; None where too little is measured."""
        counted = self._measured[1:]
        if not counted and self._measured and self._measured[0][1] > _LONG * self.seconds:
            counted = self._measured
        if not counted:
            return None
        passes, seconds = map(sum, zip(*counted, strict=True))
        return seconds / passes * self.passes(effort) * images

    def plan(self, remaining: int) -> str | None:
        """Reduce the effort as far as the remaining images need it; return what was done, in words, if anything."""
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
            f"{remaining} images would take {self.seconds_for(remaining, before) / 60:.1f} minutes of the "
            f"{left / 60:.1f} that are left: from here on {self.effort.models} of {len(self._views)} models with "
            f"{self.effort.views} of up to {max(self._views)} views"
        )

    def _is_short(self, remaining: int) -> bool:
        needed = self.seconds_for(remaining, self.effort)
        return needed is not None and needed > self.deadline - self._clock()
