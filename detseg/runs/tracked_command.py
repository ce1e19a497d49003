"""A command as a run of W&B: its settings, scores and tables, what it reads and what it writes.

    command = CommandRun("evaluate", asked=True)
    command.begin({"predictions.json": info}, folder=Path("work"), settings={"max_detections": 0})
    command.reads(PREDICTIONS, "predictions.json")
    command.log({"object_ap": 0.4})
    command.end(0)

Nothing that fails here ends or stops the command: it is warned of once. Where tracking was not asked for, nothing
happens, and nothing is read. No PyTorch.
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

# Folders above a file in which the record of its run, or of its folds, is looked for.
_LEVELS = 2
# Nested infos of Predictions files: a fusion of fusions of ...
_DEPTH = 12


class CommandRun:
    """asked: whether the command is tracked. project, group: "" for those of the run whose files it reads."""

    def __init__(self, job_type: str, *, asked: bool, project: str = "", group: str = "") -> None:
        self.job_type = job_type
        # For the `info` of the Predictions files that the command writes, tracked or not: whoever reads them joins the
        # same group.
        self.provenance: dict[str, Any] = {}
        self._asked = asked and chosen_mode("auto") != "disabled"
        self._project, self._group = project, group
        self._run: WandbRun | None = None
        self._warned = False
        self._started = time.monotonic()

    @property
    def active(self) -> bool:
        """Whether the command is tracked, and its run has begun."""
        return self._run is not None

    def begin(
        self, sources: Mapping[str, Mapping[str, Any]], *, folder: Path, name: str, settings: Mapping[str, Any]
    ) -> None:
        """Begin the run, once it is known that the command has what it needs.

        Args:
            sources: path of a file or run folder that is read -> the `info` of a Predictions file, {} for none.
            folder: holds W&B's folder `wandb`, unless $WANDB_DIR is set.
            name: of what is written, or scored.
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
        """Record files and folders that are read; None is left out.

        They are hashed before this returns: the command may replace them.
        """
        paths = [path for path in paths if path]
        if self._run is not None and paths:
            with self._unharmed():
                self._do(partial(log_inputs, [input_artifact(kind, path) for path in paths]))

    def reads_images(self, records: Sequence[ImageRecord], given: str) -> None:
        """Record images that are in no COCO file; see `images_artifact`."""
        if self._run is not None:
            with self._unharmed():
                self._do(partial(log_inputs, [images_artifact(records, given)]))

    def writes(self, kind: str, path: str | os.PathLike[str], *beside: Path) -> None:
        """Log a file or folder that was written; beside: see `file_artifact`."""
        if self._run is not None:
            with self._unharmed():
                self._do(partial(log_output, file_artifact(kind, path, beside=beside)))

    def log(self, values: Mapping[str, Any], prefix: str = "") -> None:
        """Log the numbers among nested values: as a step, and so in the summary; prefix: "evaluation/"."""
        numbers = {f"{prefix}{name}": value for name, value in flatten(values).items()}
        if numbers:
            self._do(lambda run: run.log(numbers))

    def tables(self, make: Callable[[], Mapping[str, Table]]) -> None:
        """Log tables by name. They are made only where the command is tracked."""
        if self._run is not None:
            with self._unharmed():
                self._do(partial(_log_media, table_row, make()))

    def picture(self, name: str, path: Path) -> None:
        """Log an image file."""
        self._do(partial(_log_media, picture_row, {name: path}))

    def end(self, exit_code: int) -> str | None:
        """End the run. Return the command that sends an offline one, None where there is none."""
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
                logger.warning("W&B lacks something of this command: %s: %s", type(error).__name__, error)


def group_of(path: Path, info: Mapping[str, Any]) -> dict[str, str]:
    """Project, entity and group of the run that a file is from, {} where it was not tracked.

    info: of a Predictions file, which names them, or the run folder of its model; else the record of a run above it.
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
    """What the record of a run says of W&B; {} where it is absent, damaged or of a run that was not tracked."""
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
