"""A command as a W&B run: its settings, scores and tables, its inputs and outputs.

    command = CommandRun("evaluate", asked=True)
    command.begin({"predictions.json": info}, folder=Path("work"), settings={"max_detections": 0})
    command.reads(PREDICTIONS, "predictions.json")
    command.log({"object_ap": 0.4})
    command.end(0)

An error here never ends the command; the first one is logged as a warning. Without tracking, nothing happens and
nothing is read. Does not import PyTorch.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.files.atomic import json_object
from detseg.files.run_files import FOLDS_RECORD, RECORD
from detseg.runs.artifacts import file_artifact, images_artifact, input_artifact, log_inputs, log_output
from detseg.runs.tracker import Table, flatten
from detseg.runs.wandb_media import picture_row, table_row
from detseg.runs.wandb_run import (
    DEFAULT_PROJECT,
    RECORD_ENTRY,
    Identity,
    WandbRun,
    chosen_mode,
    new_run_id,
)
from detseg.version import __version__

if TYPE_CHECKING:
    from detseg.coco.dataset import ImageRecord

logger = logging.getLogger(__name__)

# Folder levels above a file that are searched for the record of its run or folds.
_LEVELS = 2
# Levels of nested infos in Predictions files: a fusion of fusions of ...
_DEPTH = 12


class CommandRun:
    """asked: whether the command is tracked. project, group: "" takes those of the run whose files it reads."""

    def __init__(self, job_type: str, *, asked: bool, project: str = "", group: str = "") -> None:
        self.job_type = job_type
        # For the `info` of the Predictions files that the command writes, tracked or not, so that commands that read
        # them join the same group.
        self.provenance: dict[str, Any] = {}
        self._asked = asked and chosen_mode("auto") != "disabled"
        self._project, self._group = project, group
        self._run: WandbRun | None = None
        self._warned = False
        self._started = time.monotonic()

    @property
    def active(self) -> bool:
        """Whether the command is tracked and its run has begun."""
        return self._run is not None

    def begin(
        self, sources: Mapping[str, Mapping[str, Any]], *, folder: Path, name: str, settings: Mapping[str, Any]
    ) -> None:
        """Begin the run, after the command has checked its inputs.

        Args:
            sources: path of a file or run folder that is read -> the `info` of a Predictions file, {} for others.
            folder: contains W&B's folder `wandb`, unless $WANDB_DIR is set.
            name: of the output, or of what is scored.
            settings: plain values.
        """
        with self._unharmed():
            found = next(filter(None, (group_of(Path(path), info) for path, info in sources.items())), {})
            self.provenance = {"tracking": found} if found else {}
            if not self._asked:
                return
            identity = Identity(
                run_id=new_run_id(),
                project=self._project or found.get("project") or DEFAULT_PROJECT,
                folder=folder,
                entity=found.get("entity", ""),
                group=self._group or found.get("group", ""),
                name=f"{self.job_type}-{name}",
                job_type=self.job_type,
            ).with_environment()
            self.provenance = {"tracking": {key: getattr(identity, key) for key in ("project", "entity", "group")}}
            plain = json.loads(json.dumps(dict(settings), default=str))
            about = {"command": shlex.join(sys.argv), "version": __version__}
            self._run = WandbRun(identity, mode=chosen_mode("auto"), config={**plain, "detseg": about, "inputs": {}})

    def reads(self, kind: str, *paths: str | os.PathLike[str] | None) -> None:
        """Record files and folders that are read; None is skipped.

        They are hashed before this returns, because the command may overwrite them.
        """
        paths = [path for path in paths if path]
        if self._run is not None and paths:
            with self._unharmed():
                self._do(partial(log_inputs, [input_artifact(kind, path) for path in paths]))

    def reads_images(self, records: Sequence[ImageRecord], given: str) -> None:
        """Record images without a COCO file; see `images_artifact`."""
        if self._run is not None:
            with self._unharmed():
                self._do(partial(log_inputs, [images_artifact(records, given)]))

    def writes(self, kind: str, path: str | os.PathLike[str], *beside: Path) -> None:
        """Log an output file or folder; beside: see `file_artifact`."""
        if self._run is not None:
            with self._unharmed():
                self._do(partial(log_output, file_artifact(kind, path, beside=beside)))

    def log(self, values: Mapping[str, Any], prefix: str = "") -> None:
        """Log the numbers among nested values as a step, and thus in the summary; prefix: such as "evaluation/"."""
        numbers = {f"{prefix}{name}": value for name, value in flatten(values).items()}
        if numbers:
            self._do(lambda run: run.log(numbers))

    def tables(self, make: Callable[[], Mapping[str, Table]]) -> None:
        """Log tables by name; `make` is called only if the command is tracked."""
        if self._run is not None:
            with self._unharmed():
                self._do(partial(_log_media, table_row, make()))

    def picture(self, name: str, path: Path) -> None:
        """Log an image file."""
        self._do(partial(_log_media, picture_row, {name: path}))

    def end(self, exit_code: int) -> str | None:
        """End the run. Return the command that uploads an offline run, else None."""
        run, self._run = self._run, None
        if run is None:
            return None
        with self._unharmed():
            run.do(partial(_summarize, {"seconds": time.monotonic() - self._started}))
            run.finish(exit_code)
            return run.sync_command
        return None

    def _do(self, action: Callable[[Any], None]) -> None:
        if self._run is not None:
            self._run.do(action)

    @contextmanager
    def _unharmed(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._warned:
                self._warned = True
                logger.warning("W&B: part of this command could not be logged: %s: %s", type(error).__name__, error)


def group_of(path: Path, info: Mapping[str, Any]) -> dict[str, str]:
    """Return project, entity and group of the run that a file comes from, {} if it was not tracked.

    info: of a Predictions file, which names them, or the run folder of its model; otherwise, the record of a run in a
    folder above the file is read.
    """
    if found := _group_in(info, 0):
        return found
    folder = path if path.is_dir() else path.absolute().parent
    for above in [folder, *folder.parents][: _LEVELS + 1]:
        for record in [above / RECORD, above / FOLDS_RECORD, *sorted(above.glob(f"fold*/{RECORD}"))]:
            if found := _group_in_record(record):
                return found
    return {}


def _group_in(info: Any, depth: int) -> dict[str, str]:
    if depth > _DEPTH:
        return {}
    if isinstance(info, Mapping):
        if isinstance(tracked := info.get("tracking"), Mapping):
            return _names_of(tracked)
        given = info.get("given")
        for kind in ("run", "folds") if isinstance(given, Mapping) else ():
            for folder in given[kind] if isinstance(given.get(kind), list) else ():
                if found := group_of(Path(str(folder)), {}):
                    return found
    inner = info.values() if isinstance(info, Mapping) else info if isinstance(info, (list, tuple)) else ()
    return next(filter(None, (_group_in(value, depth + 1) for value in inner)), {})


def _group_in_record(path: Path) -> dict[str, str]:
    """Return the W&B entry in the record of a run; {} if it is missing, damaged or of an untracked run."""
    try:
        entry = json_object(path).get(RECORD_ENTRY)
    except (OSError, ValueError):
        return {}
    return _names_of(entry) if isinstance(entry, dict) else {}


def _names_of(entry: Mapping[str, Any]) -> dict[str, str]:
    names = {key: value for key in ("project", "entity", "group") if isinstance(value := entry.get(key), str)}
    return names if any(names.values()) else {}


def _log_media(make_row: Callable[[Any], dict[str, Any]], media: Mapping[str, Any], run: Any) -> None:
    if media:
        run.log(make_row(media))


def _summarize(values: Mapping[str, Any], run: Any) -> None:
    run.summary.update(dict(values))
