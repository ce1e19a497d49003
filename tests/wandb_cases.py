"""W&B without an account, and what its offline runs hold."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from detseg.runs.wandb_file import read_records


def without_account(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No key and no settings of the person who runs the tests; what W&B keeps for a user goes to `folder`."""
    for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(folder / "no_netrc"))
    for name in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(folder / "wandb_of_user"))


@dataclass
class OfflineRun:
    """What the file of an offline run holds. artifacts: in the order in which they were logged."""

    project: str = ""
    group: str = ""
    job_type: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: dict[str, Any] = field(default_factory=dict)  # the last value under every name
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def inputs(self) -> set[str]:
        """NAME:HASH of everything that was read."""
        return {reference for references in self.config["inputs"].values() for reference in references}

    @property
    def outputs(self) -> set[str]:
        """NAME:HASH of everything that was written, without W&B's own tables."""
        written = [one for one in self.artifacts if not one.use_after_commit and one.type != "run_table"]
        return {f"{one.name}:{json.loads(one.metadata)['hash']}" for one in written}


def read_run(path: Path) -> OfflineRun:
    run = OfflineRun()
    for record in read_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.project, run.group, run.job_type = record.run.project, record.run.run_group, record.run.job_type
            run.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            run.config |= {item.key: json.loads(item.value_json) for item in record.config.update if item.key}
        elif kind == "history":
            items = record.history.item
            run.history |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
        elif kind == "artifact":
            run.artifacts.append(record.artifact)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def runs_in(folder: Path) -> list[OfflineRun]:
    """The offline runs of a folder, oldest first."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return [read_run(path) for path in files]
