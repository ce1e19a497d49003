"""Trainings in W&B as users start and lose them: by the command line, offline; W&B's files are read back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_train_command import ROOT, config_of, train_net
from tiny_segmenter import write_disks

from detseg.files.run_files import read_metrics
from detseg.runs.wandb_file import read_history, read_records, run_files

pytest.importorskip("wandb")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data in two folds and a configuration that asks for W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    data = write_disks(tmp_path / "data", count=4)
    content = json.loads(data.read_text())
    for index, image in enumerate(content["images"]):
        image["fold"] = index % 2
    data.write_text(json.dumps(content))
    (tmp_path / "disks.yaml").write_text(f"{config_of(data)}TRACKING: {{BACKENDS: [wandb], PICTURES: 1}}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wandb_of(folder: Path, record: str = "run.json") -> dict[str, Any]:
    return json.loads((folder / record).read_text())["wandb"]


def history(folder: Path) -> list[dict[str, Any]]:
    files = run_files(folder, wandb_of(folder)["id"])
    return [row for path in files for row in read_history(path)]


def exits(folder: Path) -> list[int]:
    files = run_files(folder, wandb_of(folder)["id"])
    records = [record for path in files for record in read_records(path)]
    return [record.exit.exit_code for record in records if record.HasField("exit")]


def test_the_last_line_says_how_to_send_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_net("--config", "disks.yaml", "TRACKING.NAME", "mine", "TRACKING.TAGS", "['x']") == 0
    folder = here / "runs" / "disks" / "001"
    own = wandb_of(folder)
    (file,) = run_files(folder, own["id"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"then: wandb sync {own['to_sync']}"
    assert Path(own["to_sync"]).resolve() == file.parent
    run = next(record.run for record in read_records(file) if record.HasField("run"))
    assert (run.display_name, run.project, run.run_group, list(run.tags)) == ("mine", "detseg", "disks-001", ["x"])
    assert run.job_type == "train"


def test_wandb_that_is_not_installed_is_said_before_training(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train_net("--config", "disks.yaml") == 2
    assert "wandb is not installed: pip install wandb" in capsys.readouterr().err
    assert not (here / "runs").exists()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert train_net("--config", "disks.yaml", "SOLVER.MAX_ITER", "2") == 0
    assert not (here / "runs" / "disks" / "001" / "wandb").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_run_that_a_signal_ended_goes_on_without_a_doubled_step(here: Path, name: str) -> None:
    """SIGTERM, as an agent sends it, to all of the process's group; SIGKILL loses the last seconds in W&B's file."""
    words = ["--num-threads", "1", "--config", "disks.yaml", "OUTPUT_DIR", "run", "SOLVER.MAX_ITER", "400"]
    words += ["TEST.EVAL_PERIOD", "0", "SOLVER.CHECKPOINT_PERIOD", "10"]
    command = [sys.executable, "-m", "detseg", "train_net", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, start_new_session=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = here / "run" / "metrics.jsonl"
    end = time.monotonic() + 120
    while time.monotonic() < end and not (metrics.is_file() and len(read_metrics(metrics)) > 25):
        time.sleep(0.05)
    number = getattr(signal, name)
    os.killpg(process.pid, number)
    status = process.wait(60)
    assert status == (128 + signal.SIGTERM if name == "SIGTERM" else -number)
    if name == "SIGTERM":
        assert json.loads((here / "run" / "run.json").read_text())["status"] == "interrupted"
    reached = read_metrics(metrics)[-1]["iteration"]
    most = f"{reached + 15}"
    assert train_net("--config", "disks.yaml", "--resume", "OUTPUT_DIR", "run", "SOLVER.MAX_ITER", most) == 0
    assert len(run_files(here / "run", wandb_of(here / "run")["id"])) == 2
    rows = history(here / "run")
    assert [row["_step"] for row in rows] == list(range(1, int(most) + 1)), "each iteration once, in order"
    lines = {line["iteration"]: line for line in read_metrics(metrics) if line["kind"] == "training"}
    for row in rows:
        assert row["training/total_loss"] == pytest.approx(lines[row["_step"]]["total_loss"])
    assert exits(here / "run")[-1] == 0


def test_all_folds_are_one_group_with_a_run_that_sums_them_up(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under an agent that one is the trial, whose id the agent gave; the folds are runs of their own."""
    monkeypatch.setenv("WANDB_RUN_ID", "trial123")
    assert train_net("--config", "disks.yaml", "--fold", "all", "DATASETS.TEST", "[]") == 0
    folder = here / "runs" / "disks" / "001"
    folds = [wandb_of(folder / f"fold{fold}") for fold in (0, 1)]
    summary = wandb_of(folder, "folds.json")
    assert summary["id"] == "trial123"
    assert len({own["id"] for own in (*folds, summary)}) == 3
    assert {own["group"] for own in (*folds, summary)} == {"disks-001"}
    assert "wandb sync " + " ".join(own["to_sync"] for own in (*folds, summary)) in capsys.readouterr().out
    (file,) = run_files(folder, "trial123")
    records = list(read_records(file))
    run = next(record.run for record in records if record.HasField("run"))
    assert (run.display_name, run.run_group) == ("disks-001-summary", "disks-001")
    found: dict[str, Any] = {}
    for record in (record.summary for record in records if record.HasField("summary")):
        found |= {item.key: json.loads(item.value_json) for item in record.update if item.key}
    final = json.loads((folder / "final_metrics.json").read_text())
    assert found["final/object_ap"] == final["object_ap"]
    assert found["final/folds/fold1/object_ap"] == final["folds"]["fold1"]["object_ap"]
    assert os.environ["WANDB_RUN_ID"] == "trial123"
