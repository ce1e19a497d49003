"""The metric of a trial, read from the files of its program, under the names used in W&B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from detseg.data.folds import fold_name
from detseg.errors import ConfigError, RunError
from detseg.files.atomic import read_json
from detseg.files.run_files import FOLDS_RECORD, METRIC_LINES, METRICS_FILE, RECORD, read_metrics
from detseg.runs.tracker import CROSS_FITTED, EVALUATION, FINAL, IN_SAMPLE, TUNING, flatten, is_score
from detseg.tuning.trials import COCO_METRICS, OBJECT_METRICS

# The programs of a sweep, and the arguments appended so that each trial has its own output folder.
PROGRAMS = {
    "train_net": ("OUTPUT_DIR={folder}",),
    "tune_thresholds": ("--output", "{folder}/tuned.yaml", "--overwrite"),
}


@dataclass(frozen=True)
class Metric:
    """name: as in W&B, such as evaluation/object_ap. of_folds: trials train all folds."""

    name: str
    maximize: bool
    program: str
    of_folds: bool = False

    @property
    def score(self) -> str:
        """The name without its kind."""
        return self.name.partition("/")[2]

    def reported(self, folder: Path) -> list[float]:
        """Return the values of a running trial in order: those of its evaluations, or of the completed folds."""
        if self.program != "train_net":
            return []
        if self.of_folds:
            name, count = self.score.removeprefix(f"{CROSS_FITTED}/"), _read(folder / FOLDS_RECORD).get("folds", 0)
            done = (_number(folder / fold_name(fold) / METRICS_FILE, name) for fold in range(count))
            return [value for value in done if value is not None]
        path = folder / METRIC_LINES
        lines = read_metrics(path) if path.is_file() else []
        values = [flatten(line).get(self.score) for line in lines if line.get("kind") == EVALUATION]
        return [value for value in values if value is not None]

    def reached(self, folder: Path) -> float | None:
        """Return the value of a finished trial, the best of its evaluations; None if there is none."""
        if self.program == "tune_thresholds":
            return _number(folder / "tuned.json", f"{self.score}/value")
        if self.name.startswith(f"{FINAL}/"):
            return _number(folder / METRICS_FILE, self.score)
        return (max if self.maximize else min)(self.reported(folder), default=None)


def holds_results(folder: Path) -> bool:
    """Whether a training has started in the folder of a trial, so that it can be resumed."""
    return any((folder / name).exists() for name in (RECORD, FOLDS_RECORD))


def read_metric(given: Any, program: str, words: Sequence[str]) -> Metric:
    """Parse `metric` of a sweep file; words: the arguments of its command.

    Raises ConfigError if no run of the program logs this metric.
    """
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise ConfigError("metric: expected {name: ..., goal: maximize}, the metric by which trials are compared")
    if extra := [str(key) for key in given if key not in ("name", "goal")]:
        raise ConfigError(f"metric: {', '.join(extra)} not supported; expected name and goal")
    name, goal = given["name"], given.get("goal", "minimize")
    if goal not in ("maximize", "minimize"):
        raise ConfigError(f"metric.goal: {goal!r}: expected maximize or minimize")
    of_folds = "--fold=all" in words or ("--fold", "all") in pairwise(words)
    if program == "tune_thresholds":
        known = [f"{TUNING}/{kind}/after" for kind in (CROSS_FITTED, IN_SAMPLE)]
        is_known = name in known
    else:
        known = [f"{FINAL}/object_ap", *([f"{FINAL}/{CROSS_FITTED}/object_ap"] if of_folds else [])]
        known += [] if of_folds else [f"{EVALUATION}/object_ap"]
        kind, _, score = name.partition("/")
        is_known = name in known or (is_score(score) and (kind == FINAL or (kind == EVALUATION and not of_folds)))
    if not is_known:
        near = ", ".join(known)
        scores = "" if program != "train_net" else f"; other scores are: {', '.join((*OBJECT_METRICS, *COCO_METRICS))}"
        raise ConfigError(f"metric.name: no run of this command logs {name}; it logs {near}{scores}")
    return Metric(name, goal == "maximize", program, of_folds)


def _number(path: Path, name: str) -> float | None:
    return flatten(_read(path)).get(name)


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file, {} if it does not exist yet."""
    try:
        return read_json(path)
    except RunError:
        return {}
