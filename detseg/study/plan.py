"""Which tasks of a study are done and which are left, with estimates of their time.

OUTPUT/train/plain/IDENTITY/...            output of a stage; other settings, data or code give another folder
OUTPUT/records/train/plain/IDENTITY_fold0  .json when it is done, .log, .lock
OUTPUT/results.md, .csv, .html, .json
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from detseg.config import load_config
from detseg.config.command_line import COMMAND_LINE, as_words
from detseg.config.schema import default_values
from detseg.data.folds import fold_name
from detseg.errors import ConfigError
from detseg.files.atomic import read_json
from detseg.files.run_files import METRIC_LINES, read_metrics
from detseg.study.identity import Parts, differences, identity, parts_of
from detseg.study.stages import KINDS, OWN, Stage, Task, stages_of
from detseg.study.study_file import Study

RECORDS = "records"
MAX_ITER = "SOLVER.MAX_ITER"
# State of a task, as shown in plans.
DONE, CHANGED, BEGUN, NEW = "done", "changed", "begun", "new"


@dataclass
class Plan:
    """The stages of a study in a folder. ids, parts: identity and dependencies of every stage, by name."""

    study: Study
    folder: Path
    stages: dict[str, Stage]
    ids: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Parts] = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study, folder: Path, rows: Iterable[str] = (), *, ignore_code: bool = False) -> Plan:
        """Determine what every stage depends on. rows: only the stages that these need.

        ignore_code: outputs of other versions of the code count as done.

        Raises DetsegError for invalid configurations and data.
        """
        plan = cls(study, folder, stages_of(study, rows))
        for name, stage in plan.stages.items():
            try:
                parts = parts_of(stage, {other: plan.ids[other] for other in stage.needs})
            except ConfigError as error:
                raise ConfigError(_problem(stage, error)) from None
            if ignore_code:
                made = [one["parts"] for one in plan.records(name)]
                parts = next((one for one in made if _without_code(one) == _without_code(parts)), parts)
            plan.parts[name] = parts
            plan.ids[name] = identity(parts)
        return plan

    def check(self) -> None:
        """Refuse impossible configurations before anything is run. Raises ConfigError with all of them."""
        from detseg.engine.validation import validate_config

        problems = []
        for stage in self.stages.values():
            if not stage.config:
                continue
            settings = {**stage.settings, "DATASETS.FOLD": 0 if stage.folds else -1}
            try:
                validate_config(load_config(stage.config, as_words(settings)))
            except ConfigError as error:
                problems.append(_problem(stage, error))
        if problems:
            raise ConfigError("models of the study cannot be trained:\n" + "\n".join(problems))

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """All tasks by name, each after those that it needs."""
        return {task.name: task for stage in self.stages.values() for task in stage.tasks()}

    def needs(self, name: str) -> list[str]:
        """Return the names of the tasks that a task needs."""
        return self.tasks[name].needs(self.stages)

    def folder_of(self, stage: str) -> Path:
        return self.folder / stage / self.ids[stage]

    def path(self, task: Task, suffix: str) -> Path:
        """Return a file of a task: .json, .log, .lock."""
        own = self.ids[task.stage.name] + ("" if task.fold is None else f"_{fold_name(task.fold)}")
        return self.folder / RECORDS / task.stage.name / f"{own}{suffix}"

    def record(self, task: Task) -> dict[str, Any] | None:
        """Return the record of a task that is done; None if it is not, or its output is missing."""
        return read_record(self.path(task, ".json"))

    def is_done(self, name: str) -> bool:
        """Whether a task was done before."""
        return self.record(self.tasks[name]) is not None

    def records(self, stage: str) -> list[dict[str, Any]]:
        """Return all records of a stage, including those with other settings, newest first."""
        paths = (self.folder / RECORDS / stage).glob("*.json")
        return [read_json(path) for path in sorted(paths, key=lambda path: -path.stat().st_mtime)]

    def spec(self, task: Task) -> dict[str, Any]:
        """Return plain values with all that is needed to run a task anywhere; see `running.run_stage`."""
        folders = {name: str(self.folder_of(name)) for name in [task.stage.name, *task.stage.needs]}
        words = task.words(folders)
        made = [word for word, named in zip(words, task.stage.all_words, strict=True) if named.startswith(OWN)]
        run = None
        if task.stage.kind == "train":
            own = Path(folders[task.stage.name])
            run = str(own if task.fold is None else own / fold_name(task.fold))
            made = [run]
        return {
            "name": task.name,
            "words": words,
            "files": made,
            "run": run,
            "paths": {suffix: str(self.path(task, f".{suffix}")) for suffix in ("json", "log", "lock")},
            "parts": self.parts[task.stage.name],
            "group": self.study.name,
        }

    def state(self, task: Task) -> tuple[str, str]:
        """Return the state of a task (done, changed, begun, new) and the reason."""
        if self.record(task) is not None:
            return DONE, ""
        if self.path(task, ".log").is_file():
            return BEGUN, "resumes" if task.stage.kind == "train" else "runs again"
        before = self.records(task.stage.name)
        if before:
            return CHANGED, "other " + ", ".join(differences(before[0]["parts"], self.parts[task.stage.name]))
        return NEW, ""

    def estimate(self, task: Task) -> float | None:
        """Return the expected seconds of a task, from the same stage, training iterations, or its kind; else None."""
        stage, known = task.stage, self.records(task.stage.name)
        if stage.kind == "train":
            return self._training_seconds(task, known)
        if not known:
            known = [one for name in self.stages if name.startswith(f"{stage.kind}/") for one in self.records(name)]
        return fmean(one["seconds"] for one in known) if known else None

    def _training_seconds(self, task: Task, known: list[dict[str, Any]]) -> float | None:
        iterations = _iterations(self.parts[task.stage.name])
        if known:
            return fmean(one["seconds"] / _iterations(one["parts"]) for one in known) * iterations
        # From the log of a training that was stopped, or had other settings.
        place = "*/fold*" if task.stage.folds else "*"
        files = (self.folder / task.stage.name).glob(f"{place}/{METRIC_LINES}")
        measured = [line["seconds"] for file in files for line in read_metrics(file) if "seconds" in line]
        seconds = fmean(measured) if measured else task.stage.seconds
        return seconds * iterations if seconds else None

    def chosen(self, only: Iterable[str]) -> list[str]:
        """Return the names of the selected tasks, by kind, stage, fold or pattern; without a selection all.

        Raises ConfigError if a word selects nothing.
        """
        chosen: dict[str, None] = {}
        for word in only:
            found = [name for name in self.tasks if fnmatchcase(name, word) or name.startswith(f"{word.rstrip('/')}/")]
            if not found:
                kinds = ", ".join(kind for kind in KINDS if any(name.startswith(f"{kind}/") for name in self.stages))
                raise ConfigError(f"--only {word}: no such stage; expected {kinds}, or e.g. train/NAME/fold0")
            chosen |= dict.fromkeys(found)
        return [name for name in self.tasks if name in chosen] if chosen else list(self.tasks)


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the record of a task; None if there is none, or its output is missing."""
    record = read_json(path) if path.is_file() else None
    return record if record is not None and all(Path(file).exists() for file in record["files"]) else None


def _iterations(parts: Parts) -> int:
    return max(parts["settings"].get(MAX_ITER, default_values()[MAX_ITER]), 1)


def _problem(stage: Stage, error: ConfigError) -> str:
    """Return what is wrong with a training; `load_config` reports the study's settings as command-line arguments."""
    return f"{stage.name}: {str(error).replace(COMMAND_LINE, 'settings of the study')}"


def _without_code(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parts.items() if name != "code"}
