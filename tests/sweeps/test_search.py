"""The study of a sweep: every trial once, whoever dies; and a real sweep of small trainings, killed and resumed."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("optuna")

from detseg.cli.main import run_command
from detseg.config import load_config
from detseg.files.lock import try_lock
from detseg.sweeps.search import Search
from detseg.sweeps.sweep_file import read_sweep_file

ROOT = Path(__file__).parents[2]
SWEEP = {
    "program": "tools/train_net.py",
    "command": ["${env}", "${interpreter}", "${program}", "--config", "c.yaml", "${args_no_hyphens}"],
    "method": "random",
    "metric": {"name": "evaluation/object_ap", "goal": "maximize"},
    "parameters": {"SOLVER.BASE_LR": {"min": 0.0, "max": 1.0}, "SEED": {"values": [1, 2, 3]}},
}


def search_in(folder: Path, total: int = 6, **changes: object) -> Search:
    folder.mkdir(exist_ok=True)
    path = folder.parent / "s.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, **changes}))
    return Search(read_sweep_file(path), folder, total, seed=0)


def test_each_trial_is_claimed_once_by_two_searches(tmp_path: Path):
    first, second = search_in(tmp_path / "a", 5), search_in(tmp_path / "a", 5)
    claims = [search.claim() for search in (first, second, first, second, second)]
    assert [claim.number for claim in claims] == [0, 1, 2, 3, 4]
    assert first.claim() is None
    assert second.claim() is None
    assert len({claim.values["SOLVER.BASE_LR",] for claim in claims}) == 5, "processes with one seed draw other values"
    for claim in claims:
        first.tell(claim, "complete", 0.5)
    assert not second.others_run()


def test_a_trial_of_a_dead_worker_is_taken_over_with_its_values(tmp_path: Path):
    search = search_in(tmp_path / "a", 2)
    kept, lost = search.claim(), search.claim()
    lost.lock.release()  # what the system does when its process dies
    again = search_in(tmp_path / "a", 2).claim()
    assert (again.number, again.values) == (lost.number, lost.values)
    assert search.claim() is None
    assert kept.number == 0


def test_values_depend_on_seed_and_number_only(tmp_path: Path):
    one, other = search_in(tmp_path / "a"), search_in(tmp_path / "b")
    assert [one.claim().values for _ in range(3)] == [other.claim().values for _ in range(3)]


@pytest.mark.parametrize("searches", [1, 2])
def test_a_grid_is_gone_through_once(tmp_path: Path, searches: int):
    grid = {"A": {"values": [[1], [2]]}, "B": {"min": 1, "max": 2}, "C": {"value": 3}}
    own = [search_in(tmp_path / "a", 4, method="grid", parameters=grid) for _ in range(searches)]
    claims = [own[number % searches].claim() for number in range(4)]
    assert [tuple(claim.values.values()) for claim in claims] == [([1], 1, 3), ([1], 2, 3), ([2], 1, 3), ([2], 2, 3)]
    assert own[0].claim() is None


def test_the_worse_end_early(tmp_path: Path):
    halving = {"type": "hyperband", "min_iter": 2, "eta": 2}
    search = search_in(tmp_path / "a", early_terminate=halving)
    good, bad, other = search.claim(), search.claim(), search.claim()
    assert not search.report(good, [0.1, 0.9])
    assert not search.report(bad, [0.3]), "it is not judged before its second value"
    assert search.report(bad, [0.3, 0.5])
    assert not search.report(other, [0.0, 0.95])


def test_bayes_learns_where_the_best_is(tmp_path: Path):
    search = search_in(tmp_path / "a", 40, method="bayes", parameters={"X": {"min": 0.0, "max": 1.0}})
    drawn = []
    while (claim := search.claim()) is not None:
        drawn.append(claim.values["X",])
        search.tell(claim, "complete", -((drawn[-1] - 0.7) ** 2))
    distance = [abs(value - 0.7) for value in drawn]
    assert sum(distance[20:]) / 20 < sum(distance[:10]) / 10 / 2


def test_a_sweep_of_which_all_fails_stops(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    search_in(tmp_path / "a")
    assert run_command("sweep", ["s.yaml", "--trials", "9", "--output", "out"], prog="sweep") == 2
    printed = capsys.readouterr().err
    assert "the first 3 trials all failed" in printed
    assert "c.yaml" in printed, "it says why the last one failed"


def test_folders_that_are_not_to_be_touched(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    search_in(tmp_path / "a")

    def said(*words: str) -> str:
        assert run_command("sweep", ["s.yaml", *words], prog="sweep") == 2
        return capsys.readouterr().err

    assert "no sweep in runs" in said("--resume")
    assert "--trials N, or run_cap" in said()
    assert "--workers is 0" in said("--workers", "0")
    assert "no trial has a result" in said("--trials", "1", "--output", "out")
    assert "contains a sweep" in said("--trials", "1", "--output", "out")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**SWEEP, "method": "bayes"}))
    assert "other parameters" in said("--output", "out", "--resume")


TINY = f"""
_BASE_: {(ROOT / "tests" / "tiny_mask_rcnn.yaml").as_posix()}
MODEL: {{ROI_HEADS: {{NUM_CLASSES: 3}}}}
DATASETS: {{TRAIN: [cells/train.json], TEST: [cells/val.json]}}
SOLVER: {{MAX_ITER: 4, IMS_PER_BATCH: 1, CHECKPOINT_PERIOD: 1}}
TEST: {{EVAL_PERIOD: 2, OVERLAYS: 0}}
"""


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with cells, a tiny configuration and a sweep of two trials."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = ["--output", "cells", "--train", "4", "--val", "2", "--height", "64", "--width", "64", "--cells", "2", "3"]
    assert run_command("make_synthetic", words, prog="make_synthetic") == 0
    (tmp_path / "c.yaml").write_text(TINY)
    parameters = {
        "SOLVER": {"parameters": {"BASE_LR": {"values": [0.001, 0.01]}, "WARMUP_ITERS": {"value": 1.0}}},
        "INPUT.RANDOM_FLIP": {"value": "both"},
    }
    sweep = {**SWEEP, "method": "grid", "parameters": parameters}
    sweep["metric"] = {"name": "final/mean_f1", "goal": "maximize"}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep))
    return tmp_path


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "trials.csv", newline="") as file:
        return {row["trial"]: row for row in csv.DictReader(file)}


def test_a_sweep_that_is_killed_goes_on_and_ends_with_a_configuration(cells: Path, capsys):
    command = [sys.executable, "-m", "detseg", "sweep", "s.yaml", "--output", "out"]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    begun = cells / "out" / "trials" / "0000" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not begun.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    first.kill()
    first.wait()
    assert begun.is_file()
    trial = (
        next(int(path.name) for path in Path("/proc").glob("[0-9]*") if _is_trial(path, cells))
        if os.name != "nt"
        else 0
    )
    if trial:
        os.kill(trial, signal.SIGKILL)
    assert run_command("sweep", ["s.yaml", "--output", "out", "--resume"], prog="sweep") == 0
    rows = rows_of(cells / "out")
    assert {name: row["state"] for name, row in rows.items()} == {"0": "complete", "1": "complete"}
    assert [rows[name]["SOLVER.BASE_LR"] for name in "01"] == ["0.001", "0.01"]
    printed = capsys.readouterr().out
    assert "final/mean_f1" in printed
    assert "best.yaml" in printed
    for name in ("slices.png", "parallel.png"):
        assert (cells / "out" / name).stat().st_size > 5000
    best = load_config("out/best.yaml")
    assert (best.SOLVER.WARMUP_ITERS, best.INPUT.RANDOM_FLIP, best.MODEL.FPN.OUT_CHANNELS) == (1, "both", 16)
    assert best.OUTPUT_DIR == load_config("c.yaml").OUTPUT_DIR, "it trains into a folder of its own"


def _is_trial(process: Path, cells: Path) -> bool:
    try:
        return b"out/trials/0000" in (process / "cmdline").read_bytes() and (process / "cwd").samefile(cells)
    except OSError:
        return False


def test_ctrl_c_saves_the_trials_and_says_how_to_go_on(cells: Path):
    command = [sys.executable, "-m", "detseg", "sweep", "s.yaml", "--output", "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    begun = cells / "out" / "trials" / "0000.log"
    deadline = time.monotonic() + 120
    while not (begun.is_file() and begun.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "to continue: python -m detseg sweep s.yaml" in out
    lock = try_lock(cells / "out" / "trials" / "0000.lock")
    assert lock is not None, "nobody holds a trial"
    lock.release()


def test_tasks_of_a_ray_cluster_share_the_trials(cells: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("ray")
    words = ["s.yaml", "--output", "out", "--ray", "local", "--workers", "2"]
    assert run_command("sweep", words, prog="sweep") == 0
    assert {name: row["state"] for name, row in rows_of(cells / "out").items()} == {"0": "complete", "1": "complete"}
    capsys.readouterr()
    words = ["s.yaml", "--output", "other", "--ray", "127.0.0.1:1", "--workers", "1"]
    assert run_command("sweep", words, prog="sweep") == 2
    assert "no cluster answers" in capsys.readouterr().err
    assert not (cells / "other").exists()
