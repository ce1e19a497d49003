"""What trackers get of a training, in which order, however it ends."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_segmenter import TinySegmenter, write_disks
from train_and_die import tiny_config

from detseg.engine.progress import MEASURED
from detseg.engine.train import train
from detseg.errors import RunError
from detseg.files.run_files import read_metrics
from detseg.runs.interrupt import TrainingInterrupted
from detseg.runs.run_folder import open_run
from detseg.runs.session import Session
from detseg.runs.tracker import Tracker, as_array, flatten
from detseg.runs.trackers import JsonLines, Trackers
from detseg.runs.wandb_file import read_history, read_records, run_files


class Recording(Tracker):
    """Notes every call; `draws` uses up random numbers, as an unkind one may."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start(self, session: Session) -> None:
        torch.rand(3)
        np.random.rand(3)
        assert session.run.path.name == "run"
        assert session.cfg.SEED == 11
        self.calls.append(("start", session.engine.name, session.iteration, session.last_evaluation))

    def log(self, iteration: int, kind: str, values: Mapping[str, Any]) -> None:
        self.calls.append((kind, iteration, dict(values)))

    def images(self, iteration: int, pictures: Mapping[str, Any]) -> None:
        assert all(as_array(picture).shape[2] == 3 for picture in pictures.values())
        self.calls.append(("images", iteration, sorted(pictures)))

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        self.calls.append(("finish", status, dict(summary)))

    def names(self) -> list[Any]:
        return [call[:2] for call in self.calls]


class Stopping(TinySegmenter):
    """Its seventh training pass is followed by a signal, or gives no number."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.passes = how, 0

    def forward(self, samples):
        losses = super().forward(samples)
        self.passes += 1
        if self.passes == 7 and self.how == "signal":
            signal.raise_signal(signal.SIGTERM)
        if self.passes == 7 and self.how == "nan":
            return {name: loss * float("nan") for name, loss in losses.items()}
        return losses


ENDS = {"": nullcontext(), "signal": pytest.raises(TrainingInterrupted), "nan": pytest.raises(RunError)}


def run_training(folder: Path, how: str = "", *, resume: bool = False) -> tuple[Recording, dict[str, Any]]:
    if not (folder / "data").exists():
        write_disks(folder / "data", count=5)
    cfg = tiny_config(folder / "data" / "disks.json", folder / "run").clone()
    cfg.set("TEST.OVERLAYS", 2)
    recording = Recording()
    trackers = Trackers([recording, JsonLines()])
    metrics: dict[str, Any] = {}
    with open_run(cfg.freeze(), resume=resume) as run, ENDS[how]:
        metrics = train(cfg, run, resume=resume, build=lambda cfg: Stopping(how), trackers=trackers)
    return recording, metrics


def test_wandb_gets_what_the_run_record_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In steps that are iterations, once each, also where a training was interrupted and goes on."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_TAGS", "a,b")
    monkeypatch.setenv("WANDB_PROJECT", "cells")
    data = write_disks(tmp_path / "data", count=5)
    for how in ("signal", ""):
        cfg = tiny_config(data, tmp_path / "run").clone()
        for key, value in {"BACKENDS": ["wandb"], "PROJECT": "another", "PICTURES": 2}.items():
            cfg.set(f"TRACKING.{key}", value)
        cfg.set("MODEL.MASK_ON", True)
        resume = how == ""
        with open_run(cfg.freeze(), resume=resume) as run, ENDS[how]:
            train(cfg, run, resume=resume, build=lambda cfg, how=how: Stopping(how))
    record = json.loads((tmp_path / "run" / "run.json").read_text())["wandb"]
    files = run_files(tmp_path / "run", record["id"])
    assert len(files) == 2
    rows = [row for path in files for row in read_history(path)]
    written = [record for path in files for record in read_records(path)]
    assert [row["_step"] for row in rows] == [3, 6, 9, 12, 14] == [row["iteration"] for row in rows]
    numbers = ("training/", "evaluation/")
    found = {(row["_step"], name): row[name] for row in rows for name in row if name.startswith(numbers)}
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    expected = {
        (line["iteration"], f"{line['kind']}/{name}"): value
        for line in lines
        if line["kind"] != "final"
        for name, value in flatten(line).items()
        if name != "iteration"
    }
    assert found == pytest.approx(expected)
    assert record["to_sync"] == str(files[-1].parent)

    begun = [one.run for one in written if one.WhichOneof("record_type") == "run"]
    assert [(one.run_id, one.project, list(one.tags)) for one in begun] == [(record["id"], "cells", ["a", "b"])] * 2
    config = {item.key: json.loads(item.value_json) for item in begun[-1].config.update}
    assert config["SOLVER.BASE_LR"] == config["SOLVER"]["BASE_LR"] == 0.01
    assert config["detseg"]["data"]["train"]["objects"] == {"disk": 5}
    assert len(config["detseg"]["data"]["test/disks"]["annotations_hash"]) == 16
    assert config["detseg"]["command"]
    metrics = {one.metric.name or one.metric.glob_name: one.metric for one in written if one.HasField("metric")}
    assert metrics["training/*"].step_metric == metrics["evaluation/object_ap"].step_metric == "iteration"
    assert metrics["evaluation/object_ap"].summary.max
    assert metrics["evaluation/per_class/disk/object_ap75"].summary.max
    assert not metrics["evaluation/false_positives"].summary.max

    summary: dict[str, Any] = {}
    for one in (one.summary for one in written if one.HasField("summary")):
        summary |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.update}
    best = max(row["evaluation/object_ap"] for row in rows if "evaluation/object_ap" in row)
    assert summary["evaluation/object_ap"] == {"max": best}
    final = json.loads((tmp_path / "run" / "final_metrics.json").read_text())
    assert summary["final/object_ap"] == final["object_ap"]
    assert summary["status"] == "finished"
    assert [one.exit.exit_code for one in written if one.HasField("exit")] == [130, 0]
    assert sum(one.HasField("preempting") for one in written) == 1

    kept = files[-1].parent / "files"
    for row in (row for row in rows if "evaluation/object_ap" in row):
        assert row["pictures/disks/captions"] == row["masks/disks/captions"] == ["0", "4"]
        assert sorted(row["masks/disks/all_masks"][0]) == ["prediction", "truth"]
    masks = [mask["truth"]["path"] for mask in rows[-1]["masks/disks/all_masks"]]
    assert all((kept / name).is_file() for name in [*rows[-1]["pictures/disks/filenames"], *masks])
    assert set(np.unique(np.asarray(Image.open(kept / masks[0])))) == {0, 1}
    worst = json.loads((kept / rows[-1]["tables/disks/images/path"]).read_text())
    scores = [row[worst["columns"].index("object_ap")] for row in worst["data"]]
    assert scores == sorted(scores)
    assert len(scores) == 5
    tables = {one.artifact.name: one.artifact for one in written if one.HasField("artifact")}
    (images,) = [one for name, one in tables.items() if "tablesdisksimages" in name]
    assert "tables/disks/images.table.json" in [entry.path for entry in images.manifest.contents]
    assert {"tables/disks/precision_recall_chart_table/path", "tables/disks/confusion/path"} <= {*rows[-1]}


NUMBERS = [("training", 3), ("training", 6), ("evaluation", 6), ("training", 9), ("training", 12), ("evaluation", 12)]
NUMBERS += [("training", 14), ("evaluation", 14)]


def test_a_finished_training(tmp_path: Path) -> None:
    recording, metrics = run_training(tmp_path)
    assert recording.names() == [("start", "native"), *NUMBERS, ("images", 14), ("finish", "finished")]
    assert recording.calls[0] == ("start", "native", 0, 0)
    assert {"total_loss", "loss_mask", "lr", "gradient_norm", "seconds"} <= recording.calls[1][2].keys()
    assert "object_ap" in recording.calls[3][2]
    assert recording.calls[-2][2] == ["overlays/disks/0", "overlays/disks/4"]
    assert recording.calls[-1][2] == metrics == json.loads((tmp_path / "run" / "final_metrics.json").read_text())
    assert {"object_ap", "coco_segm_ap", "per_class/disk/object_ap", "score_threshold"} <= flatten(metrics).keys()
    kinds = [(line["kind"], line["iteration"]) for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert kinds == [*NUMBERS, ("final", 14)]


def test_an_interrupted_training_and_its_continuation(tmp_path: Path) -> None:
    recording, _ = run_training(tmp_path, "signal")
    assert recording.names() == [("start", "native"), *NUMBERS[:3], ("finish", "interrupted")]
    assert recording.calls[-1][2] == {}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    resumed, metrics = run_training(tmp_path, resume=True)
    assert resumed.calls[0] == ("start", "native", 7, 6)
    assert resumed.names() == [("start", "native"), *NUMBERS[3:], ("images", 14), ("finish", "finished")]
    assert resumed.calls[-1][2] == metrics

    (tmp_path / "whole").mkdir()
    whole, _ = run_training(tmp_path / "whole")
    expected, found = whole.calls[4:], resumed.calls[1:]
    for name, values in ((name, values) for name, _, values in expected if name in ("training", "evaluation")):
        own = next(call[2] for call in found if call[0] == name)
        found = [call for call in found if call[2] is not own]
        assert {k: v for k, v in own.items() if k not in MEASURED} == {
            k: v for k, v in values.items() if k not in MEASURED
        }


def test_a_failed_training(tmp_path: Path) -> None:
    recording, _ = run_training(tmp_path, "nan")
    assert recording.names() == [("start", "native"), *NUMBERS[:3], ("finish", "failed")]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "not finite in iteration 7" in record["error"]
    again, _ = run_training(tmp_path, resume=True)
    assert again.calls[0] == ("start", "native", 6, 6)
    assert again.names()[1:] == [*NUMBERS[3:], ("images", 14), ("finish", "finished")]


def test_a_training_that_cannot_begin_starts_no_tracker(tmp_path: Path) -> None:
    cfg = tiny_config(write_disks(tmp_path / "data", count=5), tmp_path / "run").clone()
    cfg.set("MODEL.ROI_HEADS.NUM_CLASSES", 2)
    recording = Recording()
    with open_run(cfg.freeze()) as run, pytest.raises(Exception, match="has 1 classes"):
        train(cfg, run, build=lambda cfg: TinySegmenter(), trackers=Trackers([recording]))
    assert recording.calls == []
    assert not (tmp_path / "run").exists()
