"""run.json: what ran, with which command, seed and versions, and how it went."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.config import DEFAULT_OUTPUT_DIR, config_name
from detseg.errors import RunError
from detseg.files.atomic import remove_temporaries, write_json, writing
from detseg.files.lock import FolderLock

if TYPE_CHECKING:
    from detseg.config import Config
    from detseg.runs.distributed import Processes


def new_record(
    *,
    config: str | None,
    config_hash: str,
    seed: int,
    engine: str,
    engine_reason: str,
    environment: dict[str, Any],
    processes: int = 1,
) -> dict[str, Any]:
    """The record of a run that starts now."""
    return {
        "status": "running",
        "started": timestamp(),
        "command": list(sys.argv),
        "folder": str(Path.cwd()),
        "config": config,
        "config_hash": config_hash,
        "seed": seed,
        "engine": engine,
        "engine_reason": engine_reason,
        "environment": environment,
        "git": git_state(),
        "host": platform.node(),
        "process": os.getpid(),
        "processes": processes,
        "resumed": [],
    }


def read_record(run: RunFolder | Path) -> dict[str, Any] | None:
    """The record of a run folder, None where there is none yet.

    Raises:
        RunError: it cannot be read.
    """
    path = run.record if isinstance(run, RunFolder) else run / "run.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); start the run again with --overwrite") from error


def update_record(run: RunFolder, **values: Any) -> None:
    """Change entries of the record on disk."""
    record = read_record(run) or {}
    write_json(run.record, {**record, **values, "updated": timestamp()})


def git_state() -> dict[str, Any] | None:
    """Commit of the source that runs and whether it has changes; None outside a repository or without git."""
    source = Path(__file__).resolve().parent
    commit = _git(source, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(source, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=3, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


# The folder of one training: where it is, whose it is, and what lies in it under which name.

logger = logging.getLogger(__name__)

# Everything that a run writes: what --overwrite removes, and nothing else.
RUN_FILES = ("run.json", "config.yaml", "log.txt", "metrics.jsonl", "final_metrics.json", "postprocess.yaml")
RUN_FOLDERS = ("checkpoints", "tensorboard", "predictions", "overlays", "evaluations", "non_finite")
# Any of these says that a run lies here; log.txt alone may be somebody else's.
RUN_SIGNS = ("run.json", "metrics.jsonl", "checkpoints")


class _LogFile(logging.FileHandler):
    """Says nothing of a full disk: what has to be written there, the metrics and checkpoints, say it once."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass


class RunFolder:
    """One run's folder, locked for this process until `close` (or the end of the `with` block).

    Args:
        path: an existing folder.
        new: nothing of a run was in it.
        created: it was made for this run.
    """

    def __init__(self, path: Path, *, new: bool, created: bool = False) -> None:
        self.path = path
        self.new = new
        self.created = created
        self._lock = FolderLock(path)
        remove_temporaries(self.checkpoints)
        remove_temporaries(self.path)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder free. One in which no training began, because something was wrong, is left as it was."""
        unused = self.new and not holds_run(self.path)
        if unused:
            (self.path / "log.txt").unlink(missing_ok=True)
        self._lock.release(remove=unused)
        if unused and self.created:
            with suppress(OSError):
                self.path.rmdir()  # only where it is empty

    def forget(self) -> None:
        """Take back what was written about a run that could not begin."""
        if self.new and not self.metrics.exists() and not self.checkpoints.exists():
            self.record.unlink(missing_ok=True)
            self.config.unlink(missing_ok=True)

    @property
    def record(self) -> Path:
        """run.json: versions, command, seed, engine."""
        return self.path / "run.json"

    @property
    def config(self) -> Path:
        """config.yaml: every key of the run."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The newest state of the training."""
        return self.checkpoints / "last.pth"

    @property
    def best(self) -> Path:
        """The weights of the best evaluation."""
        return self.checkpoints / "best.pth"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def non_finite(self) -> Path:
        return self.path / "non_finite"

    @contextmanager
    def logging(self) -> Iterator[logging.Handler]:
        """Inside the context detseg's log messages also go to log.txt, with the time."""
        handler = _LogFile(self.path / "log.txt", encoding="utf-8", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        library = logging.getLogger("detseg")
        level = library.level
        library.setLevel(min(library.getEffectiveLevel(), logging.INFO))
        library.addHandler(handler)
        try:
            yield handler
        finally:
            library.removeHandler(handler)
            library.setLevel(level)
            with suppress(OSError):
                handler.close()


class FollowedRun(RunFolder):
    """The run folder in a process that is not the main one: it knows the names and writes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.new = self.created = False

    def close(self) -> None:
        pass

    @contextmanager
    def logging(self) -> Iterator[logging.Handler]:
        yield logging.NullHandler()


def open_run_together(cfg: Config, processes: Processes, *, resume: bool = False, overwrite: bool = False) -> RunFolder:
    """`open_run` in the main process; the others follow."""
    with processes.together():
        run = open_run(cfg, resume=resume, overwrite=overwrite) if processes.is_main else None
    path = processes.from_main(lambda: run.path)
    return run or FollowedRun(path)


def open_run(cfg: Config, *, resume: bool = False, overwrite: bool = False) -> RunFolder:
    """Find, make and lock the folder of a run.

    The default OUTPUT_DIR takes the next free number under runs/<config>, or with `resume` the last one; any other is
    used as it is named.

    Args:
        cfg: OUTPUT_DIR is read, and for the default one the name of the file that it was loaded from.
        resume: continue what lies there; where nothing does, start.
        overwrite: remove a run that lies there first.

    Raises:
        RunError: the folder holds another run, is in use, cannot be written, or is a file.
    """
    if resume and overwrite:
        raise RunError("--resume continues a run and --overwrite removes it: give one of them")
    if cfg.OUTPUT_DIR == DEFAULT_OUTPUT_DIR:
        parent = Path(DEFAULT_OUTPUT_DIR.replace("<config>", config_name(cfg.source)))
        path = last_numbered(parent) if resume else None
        if path is None:
            if resume:
                logger.warning("there is no run in %s to resume: a new one starts", parent)
            return RunFolder(_make_numbered(parent), new=True, created=True)
        return RunFolder(path, new=False)
    return _open_named(Path(cfg.OUTPUT_DIR), resume=resume, overwrite=overwrite)


def find_run(cfg: Config) -> Path | None:
    """The run that `open_run(cfg, resume=True)` would continue, None where there is none. Nothing is locked."""
    if cfg.OUTPUT_DIR == DEFAULT_OUTPUT_DIR:
        return last_numbered(Path(DEFAULT_OUTPUT_DIR.replace("<config>", config_name(cfg.source))))
    path = Path(cfg.OUTPUT_DIR)
    return path if holds_run(path) else None


def holds_run(path: Path) -> bool:
    """Whether something of a run lies in `path`."""
    return any((path / name).exists() for name in RUN_SIGNS)


def numbered(parent: Path) -> list[Path]:
    """The folders 001, 002, ... in `parent`, ascending."""
    if not parent.is_dir():
        return []
    return sorted(
        (path for path in parent.iterdir() if path.name.isdigit() and path.is_dir()), key=lambda p: int(p.name)
    )


def last_numbered(parent: Path) -> Path | None:
    """The numbered folder with the highest number that holds a run, or None."""
    return next((path for path in reversed(numbered(parent)) if holds_run(path)), None)


def next_number(parent: Path) -> Path:
    """Make the next free numbered folder in `parent`; two processes never get the same one."""
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            taken = numbered(parent)
            path = parent / f"{int(taken[-1].name) + 1 if taken else 1:03d}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path


def _make_numbered(parent: Path) -> Path:
    # Under a W&B sweep agent the run is found by the id that the agent gave it.
    tracked = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    if tracked is None:
        return next_number(parent)
    path = parent / tracked
    path.mkdir(parents=True, exist_ok=True)
    return path


def _open_named(path: Path, *, resume: bool, overwrite: bool) -> RunFolder:
    if path.exists() and not path.is_dir():
        raise RunError(f"OUTPUT_DIR {path} is a file; name a folder")
    there = holds_run(path)
    if there and not resume and not overwrite:
        raise RunError(
            f"OUTPUT_DIR {path} holds another run: --resume continues it, --overwrite removes it, "
            "another OUTPUT_DIR leaves it"
        )
    created = not path.exists()
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    if resume and not there:
        logger.warning("there is no run in %s to resume: it starts from the beginning", path)
    run = RunFolder(path, new=not there or overwrite, created=created)
    if there and overwrite:
        _remove_run(path)
    return run


def _remove_run(path: Path) -> None:
    for name in RUN_FILES:
        (path / name).unlink(missing_ok=True)
    for name in RUN_FOLDERS:
        if (path / name).is_dir():
            shutil.rmtree(path / name)


def timestamp() -> str:
    """Local time with its offset, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
