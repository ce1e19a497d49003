"""A tracker: what receives the numbers and pictures of a training while it runs.

    tracker.start(session)                  the training begins, or goes on after session.iteration
    tracker.log(iteration, kind, values)    losses (TRAINING) and scores of an evaluation (EVALUATION)
    tracker.images(iteration, pictures)     what was drawn
    tracker.finish(summary, status)         after the final evaluation, or an early end

`detseg.runs.trackers` has the list of them. Only the main process has any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from detseg.config import Config
    from detseg.engines.choice import EngineChoice
    from detseg.runs.run_folder import RunFolder

TRAINING = "training"
EVALUATION = "evaluation"
FINAL = "final"

Picture = Path | np.ndarray


class TrackedSession(Protocol):
    """What a tracker may read of a `detseg.runs.session.Session`."""

    cfg: Config
    engine: EngineChoice
    run: RunFolder
    iteration: int
    last_evaluation: int


class Tracker:
    """One receiver, which overrides what it needs.

    required: whether its errors end the training. Any other is warned of once, and the tracker gets nothing more.
    """

    required = False

    def start(self, session: TrackedSession) -> None:
        """Open. `session.iteration` and `session.last_evaluation`: what a resumed training has done already."""

    def log(self, iteration: int, kind: str, values: Mapping[str, Any]) -> None:
        """Note numbers after `iteration` finished iterations; kind: TRAINING or EVALUATION. Mappings may be nested."""

    def images(self, iteration: int, pictures: Mapping[str, Picture]) -> None:
        """Note pictures by name: image files, or arrays (H, W, 3) uint8 RGB."""

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        """Close, also where `start` failed.

        summary: what final_metrics.json holds, {} where there is none. status: "finished", "interrupted" or "failed".
        """


def finite(value: Any) -> Any:
    """Copy nested values with NaN and infinities as None, because JSON has none."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers among nested values, by names joined with "/"."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}/"))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[name] = float(value)
    return flat


def as_array(picture: Picture) -> np.ndarray:
    """A picture (H, W, 3) uint8 RGB, read where it is a file."""
    if isinstance(picture, np.ndarray):
        return picture
    from PIL import Image

    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))
