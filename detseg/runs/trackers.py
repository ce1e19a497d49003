"""All trackers: those in this file and W&B's, and a group of several that acts as one.

To add a tracker, write a subclass of `Tracker` and add a row to TRACKERS. Only the main process has any.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.config.options import Options, Problems, key
from detseg.files.atomic import write_text, writing
from detseg.files.run_files import read_metrics
from detseg.runs.artifacts import STORABLE
from detseg.runs.tracker import (
    EVALUATION,
    FINAL,
    TRAINING,
    ClassMasks,
    Picture,
    Table,
    TrackedSession,
    Tracker,
    as_array,
    finite,
    flatten,
)
from detseg.runs.wandb_run import MODES, missing_wandb
from detseg.runs.wandb_tracker import WandbTracker

if TYPE_CHECKING:
    from detseg.config import Config

logger = logging.getLogger(__name__)


class JsonLines(Tracker):
    """metrics.jsonl, the run's own record: one JSON object per line.

    Every line has `iteration` (finished iterations) and `kind` ("training", "evaluation" or "final"); non-finite
    numbers are null. `start` removes the lines that a resumed training will write again.
    """

    required = True

    def __init__(self) -> None:
        self._file: Any = None

    def start(self, session: TrackedSession) -> None:
        self._path, self._iteration = session.run.metrics, session.iteration
        kept = {TRAINING: session.iteration, EVALUATION: session.last_evaluation, FINAL: -1}
        cut_lines(self._path, kept)
        with writing(self._path):
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (held until `finish`)

    def log(self, iteration: int, kind: str, values: Mapping[str, Any]) -> None:
        self._iteration = iteration
        line = {"iteration": iteration, "kind": kind, **finite(dict(values))}
        with writing(self._path):
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        if self._file is None:
            return
        try:
            if summary:
                self.log(self._iteration, FINAL, summary)
        finally:
            with suppress(OSError):  # all lines were flushed; an error was already reported
                self._file.close()


class TensorBoard(Tracker):
    """Event files in the run's folder `tensorboard`, if TensorBoard is installed."""

    shows_pictures = True

    def __init__(self) -> None:
        self._writer: Any = None

    def start(self, session: TrackedSession) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            logger.info("no TensorBoard files are written (%s); metrics.jsonl has the same numbers", error)
            return
        self._iteration = session.iteration
        self._writer = SummaryWriter(str(session.run.tensorboard), purge_step=session.iteration + 1)

    def log(self, iteration: int, kind: str, values: Mapping[str, Any]) -> None:
        self._iteration = iteration
        if self._writer is not None:
            for name, value in flatten(values).items():
                self._writer.add_scalar(f"{kind}/{name}", value, iteration)
            self._writer.flush()

    def images(self, iteration: int, pictures: Mapping[str, Picture]) -> None:
        if self._writer is not None:
            for name, picture in pictures.items():
                if not isinstance(picture, ClassMasks):  # TensorBoard cannot show them
                    self._writer.add_image(name, as_array(picture), iteration, dataformats="HWC")
            self._writer.flush()

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        if self._writer is not None:
            try:
                self.log(self._iteration, FINAL, summary)
            finally:
                self._writer.close()


# Each returns a tracker for a configuration, or None if it is not requested.
TRACKERS: dict[str, Callable[[Config], Tracker | None]] = {
    "jsonl": lambda cfg: JsonLines(),
    "tensorboard": lambda cfg: TensorBoard(),
    "wandb": WandbTracker.from_config,
}
ALWAYS = "jsonl"  # the run's own record


@dataclass(frozen=True)
class TrackingOptions(Options):
    """backends: names of TRACKERS. The other keys are W&B's, see `detseg.runs.wandb_tracker`; "" for its defaults."""

    section = "TRACKING"

    backends: tuple[str, ...] = key("BACKENDS", choices=tuple(TRACKERS))
    project: str = key("PROJECT")
    entity: str = key("ENTITY")
    group: str = key("GROUP")
    name: str = key("NAME")
    tags: tuple[str, ...] = key("TAGS")
    mode: str = key("MODE", choices=MODES)
    store: tuple[str, ...] = key("STORE", choices=STORABLE)

    def check(self, problems: Problems) -> None:
        if problems.training and "wandb" in self.backends and (expected := missing_wandb(self.mode)):
            problems.add("TRACKING.BACKENDS", f"{expected}, or leave it out of the list")


class Trackers:
    """Several trackers as one. An error of one that is not required is logged, and that tracker is dropped."""

    def __init__(self, trackers: Iterable[Tracker] = ()) -> None:
        self._trackers = list(trackers)
        self._started: list[Tracker] = []

    @classmethod
    def from_config(cls, cfg: Config) -> Trackers:
        """Create the trackers of TRACKERS that the configuration requests."""
        made = [make(cfg) for name, make in TRACKERS.items() if name == ALWAYS or name in cfg.TRACKING.BACKENDS]
        return cls(tracker for tracker in made if tracker is not None)

    def start(self, session: TrackedSession) -> None:
        for tracker in self._trackers:
            self._started.append(tracker)
            self._call(tracker, "start", session)

    def log(self, iteration: int, kind: str, values: Mapping[str, Any]) -> None:
        for tracker in list(self._started):
            self._call(tracker, "log", iteration, kind, values)

    def images(self, iteration: int, pictures: Mapping[str, Picture]) -> None:
        for tracker in list(self._started):
            self._call(tracker, "images", iteration, pictures)

    def tables(self, iteration: int, tables: Mapping[str, Table]) -> None:
        for tracker in list(self._started):
            self._call(tracker, "tables", iteration, tables)

    def draw(self, what: str, iteration: int, make: Callable[[], Mapping[str, Any]]) -> None:
        """Make "images" or "tables" if a tracker shows them. If that fails, a warning is logged."""
        if not any(tracker.shows_pictures for tracker in self._started):
            return
        try:
            made = make()
        except Exception as error:
            logger.warning("%s for trackers cannot be made: %s: %s", what, type(error).__name__, error)
            return
        if made:
            getattr(self, what)(iteration, made)

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        """Close all started trackers, even if one of them fails."""
        failure = None
        for tracker in list(self._started):
            try:
                self._call(tracker, "finish", summary, status)
            except Exception as error:
                failure = error
        self._started = []
        if failure is not None:
            raise failure

    def _call(self, tracker: Tracker, method: str, *arguments: Any) -> None:
        try:
            getattr(tracker, method)(*arguments)
        except Exception as error:
            if tracker.required:
                raise
            name = type(tracker).__name__
            logger.warning("%s is disabled for the rest of this training: %s: %s", name, type(error).__name__, error)
            if tracker in self._started:
                self._started.remove(tracker)
                with suppress(Exception):
                    tracker.finish({}, "failed")


def cut_lines(path: Path, limits: Mapping[str, int]) -> None:
    """Remove the lines whose iteration is above the limit of their kind, and an incomplete last line."""
    if path.is_file():
        lines = read_metrics(path)
        kept = [line for line in lines if line["iteration"] <= limits.get(line["kind"], max(limits.values()))]
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
