"""A run folder, a checkpoint and a Predictions file of version 0.1 (November 2026) still load and give the same."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_train_command import train_net

from detseg import Predictor
from detseg.cli.main import run_command
from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_file import read_predictions
from detseg.files.run_files import read_metrics
from detseg.structures.predictions import Predictions
from detseg.structures.rle import decode

STORED = Path(__file__).with_name("old_run")
# What version 0.1 computed in the two iterations after the checkpoint, from which the run was continued then.
LOSSES = [1.4028331423178315, 1.3452814323827624]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """A working folder with the data and the run; one thread, as then."""
    shutil.copytree(STORED / "data", tmp_path / "data")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.pth").write_bytes(gzip.decompress((STORED / "last.pth.gz").read_bytes()))
    for name in ("config.yaml", "run.json", "metrics.jsonl", "postprocess.yaml"):
        shutil.copy(STORED / name, tmp_path / "run" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_same(found: list[Predictions], expected: list[Predictions]) -> None:
    assert [one.image_id for one in found] == [one.image_id for one in expected]
    for own, stored in zip(found, expected, strict=True):
        np.testing.assert_allclose(own.scores, stored.scores, rtol=1e-3)
        np.testing.assert_allclose(own.boxes, stored.boxes, atol=0.02)
        assert own.classes.tolist() == stored.classes.tolist()
        for mask, stored_mask in zip(own.rles, stored.rles, strict=True):
            assert np.count_nonzero(decode(mask) != decode(stored_mask)) <= 2


def test_the_checkpoint_predicts_what_it_did(here: Path) -> None:
    truth = CocoDataset.load(here / "data" / "disks.json")
    stored = list(read_predictions(STORED / "predictions.json.gz", truth))
    assert [len(one) for one in stored] == [5, 5, 5, 5]
    predictor = Predictor.from_checkpoint(here / "run" / "checkpoints" / "last.pth")
    assert predictor.classes == ("disk",)
    assert_same(list(predictor.predict_records(truth.images)), stored)
    words = ["--run", "run", "--checkpoint", "last", "--raw", "--images", "data/disks.json", "--output", "new.json"]
    assert run_command("predict", words, prog="predict") == 0
    assert_same(list(read_predictions(here / "new.json", truth)), stored)


def test_the_run_is_continued_as_it_was(here: Path) -> None:
    words = ["--resume", "OUTPUT_DIR=run", "SOLVER.MAX_ITER=62", "SOLVER.LOG_PERIOD=1"]
    words += ["TEST.EVAL_PERIOD=0", "DATASETS.TEST=[]"]
    assert train_net(*words) == 0
    lines = [line for line in read_metrics(here / "run" / "metrics.jsonl") if line["kind"] == "training"]
    assert [line["iteration"] for line in lines] == [20, 40, 60, 61, 62]
    assert [line["total_loss"] for line in lines[-2:]] == pytest.approx(LOSSES, rel=1e-4)
    record = json.loads((here / "run" / "run.json").read_text())
    assert (record["status"], record["seed"], len(record["resumed"])) == ("finished", 5, 1)
