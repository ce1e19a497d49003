"""run.json: what ran, with which command, seed and versions, and how it went."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detseg.errors import RunError
from detseg.files.atomic import write_json
from detseg.runs.run_folder import RECORD
from detseg.version import __version__

logger = logging.getLogger(__name__)


def read_record(folder: Path, name: str = RECORD) -> dict[str, Any] | None:
    """The record of a run folder, None where there is none yet.

    Raises:
        RunError: it cannot be read.
    """
    path = folder / name
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); start again with --overwrite, or without this file") from error


def update_record(folder: Path, /, **values: Any) -> None:
    """Change entries of the record on disk."""
    write_json(folder / RECORD, {**(read_record(folder) or {}), **values, "updated": timestamp()})


def this_process(engine: str) -> dict[str, Any]:
    """What started this process, where and with which versions."""
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
    """Versions and settings that decide the last bits of the weights, as plain values."""
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
    """Warn of each value of `environment` that is not the one that a run was trained with."""
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
    """Commit of the source that runs and whether it has changes; None outside a repository or without git."""

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
    """Local time with its offset, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
