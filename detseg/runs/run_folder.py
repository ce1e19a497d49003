"""The folder of one training: its location, lock, record and file names."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detseg.config import DEFAULT_OUTPUT_DIR, config_name
from detseg.errors import RunError
from detseg.files.atomic import json_object, remove_temporaries, write_json, writing
from detseg.files.lock import FolderLock
from detseg.files.run_files import (
    CONFIG_FILE,
    METRIC_LINES,
    METRICS_FILE,
    POSTPROCESS_FILE,
    PREDICTIONS_FOLDER,
    RECORD,
    REPORT_FILE,
)
from detseg.version import __version__

if TYPE_CHECKING:
    from detseg.config import Config
    from detseg.runs.distributed import Processes


logger = logging.getLogger(__name__)


def read_record(folder: Path, name: str = RECORD) -> dict[str, Any] | None:
    """Return the record of a run folder, None if it has none yet.

    Raises:
        RunError: the record cannot be read.
    """
    path = folder / name
    if not path.is_file():
        return None
    try:
        return json_object(path)
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); start again with --overwrite, or without this file") from error


def update_record(folder: Path, /, **values: Any) -> None:
    """Change entries of the record on disk."""
    write_json(folder / RECORD, {**(read_record(folder) or {}), **values, "updated": timestamp()})


def this_process(engine: str) -> dict[str, Any]:
    """Return command, host and versions of this process."""
    packages = ("detectron2", "fvcore") if engine == "detectron2" else ()
    return {
        "started": timestamp(),
        "command": list(sys.argv),
        "environment": {**environment(), **{package: importlib.metadata.version(package) for package in packages}},
        "git": git_state(),
        "host": platform.node(),
        "process": os.getpid(),
    }


def environment() -> dict[str, Any]:
    """Return the versions and settings on which bit-identical weights depend, as plain values."""
    import torchvision

    return {
        "detseg": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def warn_of_another_environment(recorded: Mapping[str, Any]) -> None:
    """Warn of each value of `environment` that differs from the one with which a run was trained."""
    current = environment()
    for name, value in recorded.items():
        if current.get(name) != value:
            logger.warning(
                "resumed with another %s: %s, was %s; the result will be as good, but not bit-identical",
                name,
                current.get(name),
                value,
            )


def git_state() -> dict[str, Any] | None:
    """Return the commit of the running source and whether it has local changes; None without a repository or git."""

    def git(*arguments: str) -> str:
        words = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        return subprocess.run(words, capture_output=True, text=True, timeout=3, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
    try:
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        changed = None
    return {"commit": commit, "changed": changed}


def timestamp() -> str:
    """Return the local time with its UTC offset, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


# Everything that a run writes: exactly what --overwrite removes.
RUN_FILES = (RECORD, CONFIG_FILE, "log.txt", METRIC_LINES, METRICS_FILE, POSTPROCESS_FILE, REPORT_FILE)
RUN_FOLDERS = ("checkpoints", "tensorboard", "wandb", PREDICTIONS_FOLDER, "overlays", "evaluations", "non_finite")
# Where --overwrite keeps the previous run until the new one has begun.
_SET_ASIDE = ".replaced"
# Any of these shows that there is a run; log.txt alone may be another program's.
RUN_SIGNS = (RECORD, METRIC_LINES, "checkpoints", _SET_ASIDE)


class _LogFile(logging.FileHandler):
    """Does not report a full disk: metrics and checkpoints, written to the same disk, report it once."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass


class RunFolder:
    """A run's folder and its file names, locked for this process until `close` (or the end of the `with` block).

    Args:
        path: an existing folder.
        new: the folder held nothing of a run.
        created: the folder was created for this run.
        locked: False only provides the names; nothing is locked, logged or removed. For processes other than the main
        one of a training, and for results of an evaluation.

    Attributes:
        log_file: the handler of log.txt, during `logging`.
    """

    def __init__(self, path: Path, *, new: bool = False, created: bool = False, locked: bool = True) -> None:
        self.path = path
        self.new = new
        self.created = created
        self.record = path / RECORD  # versions, command, seed, engine
        self.config = path / CONFIG_FILE  # every key of the run
        self.metrics = path / METRIC_LINES
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.pth"  # the newest state of the training
        self.best = self.checkpoints / "best.pth"  # the weights of the best evaluation
        self.tensorboard = path / "tensorboard"
        self.non_finite = path / "non_finite"
        self.log_file: logging.Handler | None = None
        self._lock = FolderLock(path) if locked else None
        if locked:
            self._put_back()  # left by a killed process
            remove_temporaries(self.checkpoints, all_of_them=True)
            remove_temporaries(self.path, all_of_them=True)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder. If no training began, because of an error, the folder is left as it was."""
        if self._lock is None:
            return
        self._put_back()
        unused = self.new and not holds_run(self.path)
        if unused:
            (self.path / "log.txt").unlink(missing_ok=True)
        self._lock.release(remove=unused)
        self._lock = None
        if unused and self.created:
            with suppress(OSError):
                self.path.rmdir()  # fails if not empty

    def forget(self) -> None:
        """Remove the files of a run that ended before it had metrics or a checkpoint."""
        if not self.new or self.checkpoints.exists() or (self.metrics.exists() and self.metrics.stat().st_size):
            return
        for path in (self.record, self.config, self.metrics):
            path.unlink(missing_ok=True)
        if self.created:
            for folder in (self.tensorboard, self.path / "wandb"):
                shutil.rmtree(folder, ignore_errors=True)

    def set_aside(self) -> None:
        """Set the existing run aside, to be removed by `replace` or restored by `close`."""
        (self.path / _SET_ASIDE).mkdir()
        _move(self.path, self.path / _SET_ASIDE)

    def replace(self) -> None:
        """Remove the run that was set aside, because the new one begins."""
        if self._lock is not None and (self.path / _SET_ASIDE).exists():
            shutil.rmtree(self.path / _SET_ASIDE)

    def _put_back(self) -> None:
        """Restore a run that was set aside, if the new one did not begin (also in a process that was killed)."""
        aside = self.path / _SET_ASIDE
        if aside.is_dir() and not any((self.path / name).exists() for name in RUN_SIGNS if name != _SET_ASIDE):
            _move(aside, self.path)
            aside.rmdir()

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Also write detseg's log messages to log.txt, with time stamps, during the context."""
        if self._lock is None:
            yield
            return
        self.log_file = handler = _LogFile(self.path / "log.txt", encoding="utf-8", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        library = logging.getLogger("detseg")
        level = library.level
        library.setLevel(min(library.getEffectiveLevel(), logging.INFO))
        library.addHandler(handler)
        try:
            yield
        finally:
            library.removeHandler(handler)
            library.setLevel(level)
            with suppress(OSError):
                handler.close()
            self.log_file = None


def open_run_together(cfg: Config, processes: Processes, *, resume: bool = False, overwrite: bool = False) -> RunFolder:
    """Call `open_run` in the main process and share the folder with the others."""
    with processes.together():
        run = open_run(cfg, resume=resume, overwrite=overwrite) if processes.is_main else None
    path = processes.from_main(lambda: run.path)
    return run or RunFolder(path, locked=False)


def open_run(cfg: Config, *, resume: bool = False, overwrite: bool = False) -> RunFolder:
    """Find or create the folder of a run, and lock it.

    The default OUTPUT_DIR takes the next free number under runs/<config>, or with `resume` the last one; any other
    folder is used as given.

    Args:
        cfg: OUTPUT_DIR is read, and for its default the name of the file that `cfg` was loaded from.
        resume: continue the existing run, or start one if there is none.
        overwrite: remove an existing run first.

    Raises:
        RunError: the folder holds another run, is in use, cannot be written, or is a file.
    """
    if resume and overwrite:
        raise RunError("--resume continues a run and --overwrite removes it: give one of them")
    if cfg.OUTPUT_DIR == DEFAULT_OUTPUT_DIR:
        parent = folder_of_runs(cfg)
        of_agent = folder_of_agent(cfg)
        path = (of_agent if is_given_again(cfg) else last_numbered(parent)) if resume else None
        if path is not None:
            return RunFolder(path)
        if resume:
            logger.warning("there is no run in %s to resume: a new one starts", parent)
        path = of_agent or next_number(parent)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        return RunFolder(path, new=True, created=True)
    path = Path(cfg.OUTPUT_DIR)
    if path.exists() and not path.is_dir():
        raise RunError(f"OUTPUT_DIR {path} is a file; name a folder")
    there, created = holds_run(path), not path.exists()
    if there and not resume and not overwrite:
        raise RunError(
            f"OUTPUT_DIR {path} holds another run: --resume continues it, --overwrite removes it, "
            "another OUTPUT_DIR keeps it"
        )
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    if resume and not there:
        logger.warning("there is no run in %s to resume: it starts from the beginning", path)
    run = RunFolder(path, new=not there or overwrite, created=created)
    if there and overwrite:
        with writing(path):
            run.set_aside()
    return run


def _move(source: Path, target: Path) -> None:
    """Move the files of a run from one folder to another, replacing existing ones."""
    for name in (*RUN_FILES, *RUN_FOLDERS):
        if (source / name).exists():
            if (target / name).is_dir():
                shutil.rmtree(target / name)
            (source / name).replace(target / name)


def find_run(cfg: Config) -> Path | None:
    """Return the run that `open_run(cfg, resume=True)` would continue, or None, without locking anything."""
    if cfg.OUTPUT_DIR == DEFAULT_OUTPUT_DIR:
        return last_numbered(folder_of_runs(cfg))
    path = Path(cfg.OUTPUT_DIR)
    return path if holds_run(path) else None


def folder_of_agent(cfg: Config) -> Path | None:
    """Return the folder of the trial that a W&B sweep agent runs, named by its run id; None without an agent."""
    if cfg.OUTPUT_DIR != DEFAULT_OUTPUT_DIR or not os.environ.get("WANDB_SWEEP_ID"):
        return None
    run_id = os.environ.get("WANDB_RUN_ID")
    return folder_of_runs(cfg) / run_id if run_id else None


def is_given_again(cfg: Config) -> bool:
    """Whether a W&B sweep agent runs a trial that has already been started here."""
    path = folder_of_agent(cfg)
    return path is not None and holds_run(path)


def folder_of_runs(cfg: Config) -> Path:
    """Return the folder of the numbered runs of a configuration with the default OUTPUT_DIR: runs/<config>."""
    return Path(DEFAULT_OUTPUT_DIR.replace("<config>", config_name(cfg.source)))


def holds_run(path: Path) -> bool:
    """Whether `path` holds any file of a run."""
    return any((path / name).exists() for name in RUN_SIGNS)


def numbered(parent: Path) -> list[Path]:
    """Return the folders 001, 002, ... in `parent`, ascending."""
    if not parent.is_dir():
        return []
    found = [path for path in parent.iterdir() if path.name.isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def last_numbered(parent: Path) -> Path | None:
    """Return the highest numbered folder that holds a run, or None."""
    return next((path for path in reversed(numbered(parent)) if holds_run(path)), None)


def next_number(parent: Path) -> Path:
    """Create the next free numbered folder in `parent`; two processes never get the same one."""
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
