"""The table of a study: the out-of-fold score of every row, its difference to the base row, and its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detseg.evaluation.intervals import ALL
from detseg.files.atomic import read_json, write_json, write_text
from detseg.files.table import write_csv
from detseg.report.html import render
from detseg.study.plan import Plan
from detseg.study.stages import SCORES

METRIC = "object_ap"
ALIKE, ILLUSION = "not distinguishable", "an illusion"
NAME = "results"
NOTE = (
    "Object AP out of fold: every image is predicted by the models that have not seen it, with settings chosen on the "
    "other folds. Intervals (95 %) are from a bootstrap over images; they cover the variation between images, not that "
    "between trainings. A difference to the base whose interval contains 0 is not significant."
)
ABOUT_LEAKED = (
    " An illusion is a row that is scored on pseudo-labels that its model was trained with, beside the labelled "
    "images. Its score, and its difference to a base that is scored on labelled images only, do not measure the model."
)
Interval = Sequence[float | None]


@dataclass(frozen=True)
class RowResult:
    """scores, differences: "all" or class -> value, low, high; differences of a leaked row have no interval.
    training_seconds: of the trainings. seconds: of all stages.
    """

    name: str
    title: str
    base: str
    leaked: bool
    scores: Mapping[str, Interval]
    differences: Mapping[str, Interval]
    training_seconds: float
    seconds: float
    original: Mapping[str, float]

    @property
    def is_alike(self) -> bool:
        """Whether the interval of the difference to the base contains 0."""
        low, high = self.differences[ALL][1:]
        return low is None or high is None or low <= 0 <= high


def collect(plan: Plan) -> list[RowResult]:
    """Return the rows that have been evaluated, in the order of the file."""
    found: list[RowResult] = []
    for name, row in plan.study.rows.items():
        stage = plan.stages.get(f"evaluate/{name}")
        if stage is None or plan.record(stage.tasks()[0]) is None:
            continue
        metrics = read_json(plan.folder_of(stage.name) / SCORES)
        scores = {of: own[METRIC] for of, own in metrics["intervals"].items()}
        differences = {of: own[METRIC] for of, own in metrics.get("differences", {}).items()}
        if row.leaked:
            base = next((one.scores for one in found if one.name == row.base), {})
            differences = {of: _unpaired(scores[of], base[of]) for of in scores if of in base}
        seconds = _seconds(plan, stage.name)
        found.append(
            RowResult(
                name=name,
                title=row.title or name,
                base=row.base,
                leaked=row.leaked,
                scores=scores,
                differences=differences,
                training_seconds=sum(value for task, value in seconds.items() if task.startswith("train/")),
                seconds=sum(seconds.values()),
                original=row.original,
            )
        )
    return found


def _unpaired(own: Interval, base: Interval) -> Interval:
    """Return the difference of two scores on different images, without an interval."""
    return (None if own[0] is None or base[0] is None else own[0] - base[0], None, None)


def _seconds(plan: Plan, stage: str) -> dict[str, float]:
    """Return the seconds of all tasks that a stage needs, and of its own, without those of its base only."""
    found: dict[str, float] = {}
    own_tuning = plan.stages[stage].needs[0]  # its arguments name its own predictions first
    waiting = [task.name for name in (stage, own_tuning) for task in plan.stages[name].tasks()]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        record = plan.record(plan.tasks[name])
        found[name] = record["seconds"] if record is not None else 0.0
        waiting += plan.needs(name) if name != stage else []
    return found


def write_results(plan: Plan) -> tuple[list[RowResult], list[Path]]:
    """Write the table as Markdown, CSV, HTML and JSON; return its rows and the file paths."""
    rows = collect(plan)
    if not rows:
        return [], []
    files = [plan.folder / f"{NAME}.{ending}" for ending in ("md", "csv", "html", "json")]
    header, cells = table_of(plan, rows)
    lines = [header, ["---"] * len(header), *cells]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    title = f"Study {plan.study.name}"
    note = NOTE + (ABOUT_LEAKED if any(row.leaked for row in rows) else "")
    write_text(files[0], f"# {title}\n\n{note}\n\n{text}\n")
    write_csv(files[1], _numbers(rows), "the table of the study")
    write_text(files[2], render("study.html.jinja", title=title, note=note, header=header, cells=cells))
    write_json(files[3], {row.name: _plain(row) for row in rows})
    return rows, files


def table_of(plan: Plan, rows: Sequence[RowResult]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells of the table as text."""
    classes = [name for name in rows[0].scores if name != ALL] if len(rows[0].scores) > 2 else []
    originals = list(dict.fromkeys(name for row in rows for name in row.original))
    header = ["row", "object AP", *classes, "base", "difference", "training", "all stages"]
    header += ["cost"] if plan.study.cost_per_hour else []
    header += [f"original, {name}" for name in originals]
    cells = []
    for row in rows:
        line = [row.title, with_ends(row.scores[ALL]), *(_number(row.scores[name][0]) for name in classes), row.base]
        difference = with_ends(row.differences[ALL], "+") if row.differences else ""
        remark = ILLUSION if row.leaked else ALIKE if row.base and row.is_alike else ""
        line.append(", ".join(filter(None, (difference, remark))))
        line += [in_words(row.training_seconds), in_words(row.seconds)]
        if plan.study.cost_per_hour:
            line.append(f"{row.seconds / 3600 * plan.study.cost_per_hour:.2f} {plan.study.currency}".strip())
        line += [_number(row.original.get(name)) for name in originals]
        cells.append(line)
    return header, cells


def _numbers(rows: Sequence[RowResult]) -> list[list[Any]]:
    """Return the table with every number of every row, for CSV."""
    names = list(rows[0].scores)
    originals = list(dict.fromkeys(name for row in rows for name in row.original))
    header = ["row", "title", "base", "leaked"]
    header += [f"{name}_{METRIC}{end}" for name in names for end in ("", "_low", "_high")]
    header += [f"{name}_difference{end}" for name in names for end in ("", "_low", "_high")]
    header += ["training_seconds", "seconds", *(f"original_{name}" for name in originals)]
    lines: list[list[Any]] = [header]
    for row in rows:
        line: list[Any] = [row.name, row.title, row.base, "yes" if row.leaked else ""]
        for values in (row.scores, row.differences):
            line += [value for name in names for value in values.get(name, (None, None, None))]
        line += [round(row.training_seconds, 1), round(row.seconds, 1), *(row.original.get(name) for name in originals)]
        lines.append(["" if value is None else value for value in line])
    return lines


def _plain(row: RowResult) -> dict[str, Any]:
    return {**vars(row), "distinguishable": not row.is_alike if row.base and not row.leaked else None}


def with_ends(values: Interval, sign: str = "") -> str:
    """Return a value with its interval as text, a dash if undefined."""
    value, low, high = (_number(one, sign) for one in values)
    return value if values[1] is None else f"{value} ({low} to {high})"


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def in_words(seconds: float) -> str:
    """Return a duration as text: 45 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
