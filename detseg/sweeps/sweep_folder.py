"""The folder of a sweep: found, made, and whose it is."""

from __future__ import annotations

from pathlib import Path

from detseg.errors import ConfigError, RunError
from detseg.files.atomic import read_json, write_json, writing
from detseg.runs.run_folder import next_number, numbered
from detseg.sweeps.sweep_file import SweepFile, read_sweep_file

RECORD = "sweep.json"
COPY = "sweep.yaml"
DEFAULT_PARENT = Path("runs") / "sweeps"


def open_sweep(sweep: SweepFile, output: Path | None, trials: int | None, *, resume: bool) -> tuple[Path, int]:
    """Find or make the folder of a sweep; return it and how many trials there are to be in all.

    output: None for the next number in runs/sweeps/NAME, or with `resume` the last one.

    Raises:
        ConfigError: it is not known how many trials there are to be, or they are more than a grid has.
        RunError: there is no sweep to resume, there is one already, or it is that of another file.
    """
    folder = output
    if folder is None and resume:
        found = [path for path in numbered(DEFAULT_PARENT / sweep.name) if (path / RECORD).is_file()]
        if not found:
            raise RunError(f"there is no sweep in {DEFAULT_PARENT / sweep.name} to resume; start it without --resume")
        folder = found[-1]
    record = read_json(folder / RECORD) if folder is not None and (folder / RECORD).is_file() else None
    if record is not None and not resume:
        raise RunError(f"{folder} holds a sweep: --resume goes on with it, another --output leaves it")
    points = sweep.grid_points()
    recorded = (record or {}).get("trials")
    total = trials or (recorded if type(recorded) is int and recorded > 0 else None) or sweep.run_cap or points
    if total is None:
        raise ConfigError(f"how many trials? Give --trials N, or write run_cap: N into {sweep.path}")
    if points is not None and total > points:
        if trials:
            raise ConfigError(f"--trials is {trials}, and the grid of {sweep.path} has {points} points")
        total = points
    if folder is None:
        folder = next_number(DEFAULT_PARENT / sweep.name)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if record is not None and sweep.text != (folder / COPY).read_text(encoding="utf-8"):
        _refuse_other_search(sweep, read_sweep_file(folder / COPY), folder)
    (folder / COPY).write_text(sweep.text, encoding="utf-8")
    write_json(folder / RECORD, {"file": str(sweep.path), "trials": total})
    return folder, total


def _refuse_other_search(now: SweepFile, before: SweepFile, folder: Path) -> None:
    """Other limits may be given to a sweep that is resumed; what its trials are compared by, and of, stays."""
    for name in ("program", "words", "metric"):
        if getattr(now, name) != getattr(before, name):
            raise RunError(f"{folder} was begun with another {name} than {now.path} has now: start another sweep")
    parameters = [
        [(each.path, each.kind, each.choices, each.low, each.high, each.step) for each in sweep.parameters]
        for sweep in (now, before)
    ]
    if parameters[0] != parameters[1] or now.method != before.method:
        raise RunError(f"{folder} was begun with other parameters than {now.path} has now: start another sweep")
