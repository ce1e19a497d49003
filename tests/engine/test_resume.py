"""A training that is killed again and again ends as one that never was: the same weights, bit for bit."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_segmenter import TinySegmenter, write_disks
from train_and_die import tiny_config

from detseg.config import load_config
from detseg.engine.progress import MEASURED
from detseg.engine.train import train
from detseg.engines.build import build_model
from detseg.files.atomic import TEMPORARY_MARK
from detseg.files.run_files import read_metrics
from detseg.runs.checkpoint import load_checkpoint
from detseg.runs.run_folder import open_run

PROGRAM = Path(__file__).with_name("train_and_die.py")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_disks(tmp_path_factory.mktemp("disks"), count=5)


def train_here(data: Path, folder: Path, workers: int = 0, resume: bool = False) -> Path:
    cfg = tiny_config(data, folder, workers)
    with open_run(cfg, resume=resume) as run:
        train(cfg, run, resume=resume, build=lambda cfg: TinySegmenter())
    return folder


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = train_here(data, tmp_path_factory.mktemp("whole") / "run")
    torch.set_num_threads(threads)
    return folder


def assert_equal(first: Any, second: Any, name: str = "checkpoint") -> None:
    """Nested values and tensors equal to the last bit."""
    assert type(first) is type(second), name
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), f"{name} differs by up to {(first.float() - second.float()).abs().max()}"
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), name
        for key in first:
            assert_equal(first[key], second[key], f"{name}/{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), name
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_equal(a, b, f"{name}/{index}")
    else:
        assert first == second, name


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def assert_same_run(first: Path, second: Path) -> None:
    for name in ("last.pth", "best.pth"):
        states = [load_checkpoint(folder / "checkpoints" / name) for folder in (first, second)]
        for state in states:
            for key in ("OUTPUT_DIR", "DATALOADER.NUM_WORKERS"):
                del state["config"][key]
            for group in ("window",):
                for key in ("seconds", "data_seconds"):
                    state.get("progress", {}).get(group, {}).get("sums", {}).pop(key, None)
        assert_equal(*states, name)
    assert without_times(read_metrics(first / "metrics.jsonl")) == without_times(read_metrics(second / "metrics.jsonl"))
    finals = [json.loads((folder / "final_metrics.json").read_text()) for folder in (first, second)]
    assert finals[0] == finals[1]


# Checkpoints come after iterations 4, 6 (evaluation), 8, 12 (evaluation) and 14; each process begins at the last one.
DEATHS = [
    ("iteration 3", None),  # before the first checkpoint
    ("half-written", None),  # during the first checkpoint
    ("iteration 6", 4),  # passes 1 to 5 are iterations 1 to 5; the checkpoint of 4 is there
    ("written", 4),  # the checkpoint of iteration 6 dies under its temporary name
    ("iteration 5", 8),  # iteration 9
    ("iteration 1", 8),
]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_again_and_again_ends_bit_identical(
    data: Path, uninterrupted: Path, tmp_path: Path, workers: int
) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, str(PROGRAM), str(data), str(folder), str(workers), *(when for when, _ in DEATHS)]
    # Not through pipes: workers hold them for some seconds after their training was killed.
    with open(tmp_path / "out", "w+") as output, open(tmp_path / "error", "w+") as errors:
        subprocess.run(command, stdout=output, stderr=errors, timeout=600, check=True)
    reports = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [report["status"] for report in reports] == [-9] * len(DEATHS), (tmp_path / "error").read_text()[-3000:]
    for index, (when, saved) in enumerate(DEATHS):
        kept = folder / f"after_{index}.pth"
        assert (load_checkpoint(kept, for_training=True)["iteration"] if kept.exists() else None) == saved, when
        left = [name for name in reports[index]["names"] if TEMPORARY_MARK in name]
        assert len(left) == (1 if "written" in when else 0), f"{when}: {reports[index]['names']}"
    train_here(data, folder, workers, resume=True)
    assert_same_run(uninterrupted, folder)
    assert list((folder / "checkpoints").glob(f"*{TEMPORARY_MARK}*")) == []
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert len(record["resumed"]) == len(DEATHS)


def test_workers_do_not_change_the_result(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    assert_same_run(uninterrupted, train_here(data, tmp_path / "run", workers=2))


def test_another_seed_changes_the_result(data: Path, uninterrupted: Path, tmp_path: Path) -> None:
    cfg = tiny_config(data, tmp_path / "run").clone()
    cfg.SEED = -1
    with open_run(cfg) as run:
        train(cfg, run, build=lambda cfg: TinySegmenter())
    drawn = json.loads((tmp_path / "run" / "run.json").read_text())["seed"]
    assert drawn >= 0
    assert f"SEED: {drawn}\n" in (tmp_path / "run" / "config.yaml").read_text()
    weights = [
        load_checkpoint(f / "checkpoints" / "last.pth")["model"]["first.weight"] for f in (uninterrupted, run.path)
    ]
    assert not torch.equal(*weights)


def test_resuming_a_finished_run_changes_nothing(data: Path, uninterrupted: Path) -> None:
    before = load_checkpoint(uninterrupted / "checkpoints" / "last.pth")
    metrics = read_metrics(uninterrupted / "metrics.jsonl")
    train_here(data, uninterrupted, resume=True)
    assert_equal(before, load_checkpoint(uninterrupted / "checkpoints" / "last.pth"))
    assert read_metrics(uninterrupted / "metrics.jsonl") == metrics


def test_another_number_of_threads_is_pointed_out(
    data: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.set_num_threads(2)
    with caplog.at_level(logging.WARNING):
        train_here(data, uninterrupted, resume=True)
    assert "resumed with another threads: 2, was 1" in caplog.text


def test_a_backbone_of_timm_goes_on_in_the_same_bits(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")

    def train_timm(folder: Path, *, dies_in_pass: int = 0, resume: bool = False) -> dict[str, Any]:
        keys = {"MODEL.BACKBONE.NAME": "build_timm_fpn_backbone", "MODEL.TIMM.NAME": "tf_efficientnet_lite0"}
        keys |= {"SOLVER.MAX_ITER": 4, "SOLVER.STEPS": [3], "SOLVER.CHECKPOINT_PERIOD": 2, "TEST.EVAL_PERIOD": 0}
        keys |= {"DATASETS.TEST": [], "SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bfloat16"}
        cfg = load_config("configs/_base_/mask_rcnn_small_fpn.yaml").clone()
        for key, value in (tiny_config(data, folder).flatten() | keys).items():
            if key in keys or not key.startswith("MODEL.") or key == "MODEL.ROI_HEADS.NUM_CLASSES":
                cfg.set(key, value)
        passes = 0

        def count(*_: object) -> None:
            nonlocal passes
            passes += 1
            if passes == dies_in_pass:
                raise RuntimeError("died")

        def build(cfg: Any) -> torch.nn.Module:
            model = build_model(cfg)
            model.register_forward_pre_hook(count)
            return model

        with open_run(cfg.freeze(), resume=resume) as run:
            train(cfg, run, resume=resume, build=build)
        return load_checkpoint(folder / "checkpoints" / "last.pth")["model"]

    whole = train_timm(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="died"):
        train_timm(tmp_path / "run", dies_in_pass=4)
    assert_equal(train_timm(tmp_path / "run", resume=True), whole)
