"""The interface of trackers, which receive the numbers and pictures of a training while it runs.

    tracker.start(session)                  the training begins, or continues after session.iteration
    tracker.log(iteration, kind, values)    losses (TRAINING) and scores of an evaluation (EVALUATION)
    tracker.images(iteration, pictures)     pictures of an evaluation
    tracker.tables(iteration, tables)       of the final evaluation
    tracker.finish(summary, status)         after the final evaluation, or an early end

`detseg.runs.trackers` lists the trackers. Only the main process has any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from detseg.tuning.trials import COCO_METRICS, OBJECT_METRICS

if TYPE_CHECKING:
    from detseg.config import Config
    from detseg.engines.choice import EngineChoice
    from detseg.runs.run_folder import RunFolder

TRAINING = "training"
EVALUATION = "evaluation"
FINAL = "final"
TUNING = "tuning"  # of tune_thresholds: IN_SAMPLE or CROSS_FITTED, then before, after or gain
IN_SAMPLE, CROSS_FITTED = "in_sample", "cross_fitted"


@dataclass(frozen=True)
class ClassMasks:
    """An image with masks that can be shown and hidden.

    image: (H, W, 3) uint8 RGB. masks: by name, (H, W) uint8: 0 is background, 1 + k class k.
    """

    image: np.ndarray
    masks: Mapping[str, np.ndarray]
    class_names: Sequence[str]


Picture = Path | np.ndarray | ClassMasks


@dataclass(frozen=True)
class Table:
    """Rows of plain values and pictures. lines: the columns (x, y, name of the line) to plot; confusion: the columns
    (true, predicted, number) of a confusion matrix.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    lines: tuple[str, str, str] | None = None
    confusion: tuple[str, str, str] | None = None

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], **drawn: tuple[str, str, str]) -> Table:
        """Return the table of rows by column, with None for missing values; drawn: `lines` or `confusion`."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        return cls(columns, [[row.get(column) for column in columns] for row in rows], **drawn)


class TrackedSession(Protocol):
    """The part of `detseg.runs.session.Session` that trackers may read."""

    cfg: Config
    engine: EngineChoice
    run: RunFolder
    iteration: int
    last_evaluation: int


class Tracker:
    """Base class of trackers; subclasses override what they need.

    required: its errors end the training. An error of any other tracker is logged once, and the tracker is dropped.
    shows_pictures: whether pictures should be drawn for it.
    """

    required = False
    shows_pictures = False

    def start(self, session: TrackedSession) -> None:
        """Open. `session.iteration` and `session.last_evaluation` are those of the checkpoint that is resumed."""

    def log(self, iteration: int, kind: str, values: Mapping[str, Any]) -> None:
        """Log numbers after `iteration` finished iterations; kind: TRAINING or EVALUATION. Mappings may be nested."""

    def images(self, iteration: int, pictures: Mapping[str, Picture]) -> None:
        """Log pictures by name: image files, arrays (H, W, 3) uint8 RGB, or images with class masks."""

    def tables(self, iteration: int, tables: Mapping[str, Table]) -> None:
        """Log tables by name."""

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        """Close, even if `start` failed.

        summary: the content of final_metrics.json, {} if there is none. status: "finished", "interrupted" or "failed".
        """


def finite(value: Any) -> Any:
    """Copy nested values, replacing NaN and infinities by None, because JSON does not have them."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers among nested values, with their names joined by "/"."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}/"))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[name] = float(value)
    return flat


def is_score(name: str) -> bool:
    """Whether an evaluation logs a number of this name (as `flatten` forms it) as a score: of all objects, a class, a
    group or a further data set.
    """
    parts = name.split("/")
    nested = len(parts) == 3 and parts[0] in ("per_class", "per_group", "datasets")
    return (nested or len(parts) == 1) and parts[-1] in (*OBJECT_METRICS, *COCO_METRICS)


def as_array(picture: Picture) -> np.ndarray:
    """Return a picture as (H, W, 3) uint8 RGB, without class masks; files are read."""
    if isinstance(picture, np.ndarray):
        return picture
    if isinstance(picture, ClassMasks):
        return picture.image
    from PIL import Image

    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))
