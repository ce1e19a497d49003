"""Find or create the folder of a sweep, and check that it belongs to the sweep file."""

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
    """Find or create the folder of a sweep; return it and the total number of trials.

    output: None for the next number in runs/sweeps/NAME, or, with `resume`, the last one.

    Raises:
        ConfigError: the number of trials is not given, or larger than the grid.
        RunError: there is no sweep to resume, the folder has one already, or one of another file.
    """
    folder = output
    if folder is None and resume:
        found = [path for path in numbered(DEFAULT_PARENT / sweep.name) if (path / RECORD).is_file()]
        if not found:
            raise RunError(f"there is no sweep in {DEFAULT_PARENT / sweep.name} to resume; start it without --resume")
        folder = found[-1]
    record = read_json(folder / RECORD) if folder is not None and (folder / RECORD).is_file() else None
    if record is not None and not resume:
        raise RunError(f"{folder} contains a sweep: give --resume to continue it, or another --output")
    points = sweep.grid_points()
    recorded = (record or {}).get("trials")
    total = trials or (recorded if type(recorded) is int and recorded > 0 else None) or sweep.run_cap or points
    if total is None:
        raise ConfigError(f"the number of trials is missing: give --trials N, or run_cap: N in {sweep.path}")
    if points is not None and total > points:
        if trials:
            raise ConfigError(f"--trials is {trials}, but the grid of {sweep.path} has only {points} points")
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
    """Refuse to resume with another program, arguments, metric or parameters; limits may change."""
    for name in ("program", "words", "metric"):
        if getattr(now, name) != getattr(before, name):
            raise RunError(f"{folder} was started with another {name} than {now.path} has now: start a new sweep")
    parameters = [
        [(each.path, each.kind, each.choices, each.low, each.high, each.step) for each in sweep.parameters]
        for sweep in (now, before)
    ]
    if parameters[0] != parameters[1] or now.method != before.method:
        raise RunError(f"{folder} was started with other parameters than {now.path} has now: start a new sweep")
