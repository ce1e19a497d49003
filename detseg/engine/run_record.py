"""run.json: what ran, with which command, seed and versions, and how it went."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from detseg.engine.files import write_json
from detseg.engine.run_folder import RunFolder, timestamp
from detseg.errors import RunError


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
