"""Faster R-CNN (MODEL.MASK_ON False) through training, evaluation and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_segmenter import write_disks

from detseg.cli.main import run_command
from detseg.coco.predictions_file import read_predictions

ROOT = Path(__file__).parents[2]
CONFIG = """
_BASE_: {base}
MODEL:
  MASK_ON: False
  ROI_HEADS: {{SCORE_THRESH_TEST: 0.0}}
DATASETS: {{TRAIN: [{data}], TEST: [{data}]}}
SOLVER: {{MAX_ITER: 2}}
TEST: {{EVAL_PERIOD: 1}}
SEED: 5
OUTPUT_DIR: run
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """A working folder with data and a configuration; one thread."""
    data = write_disks(tmp_path / "data", count=3).as_posix()
    base = ROOT / "tests" / "tiny_mask_rcnn.yaml"
    (tmp_path / "boxes.yaml").write_text(CONFIG.format(base=base.as_posix(), data=data))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_boxes_alone_are_trained_scored_by_their_boxes_and_written(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("train_net", ["--num-threads", "1", "--config", "boxes.yaml"], prog="train_net") == 0
    said = capsys.readouterr()
    assert "no score threshold was chosen" in said.out
    assert "COCOeval" not in said.out + said.err, "the steps of a library are no news"
    metrics = json.loads((here / "run" / "final_metrics.json").read_text())
    assert metrics["coco_bbox_ap"] is not None
    assert metrics["coco_segm_ap"] is metrics["object_ap"] is None, "there are no masks to score"
    assert (metrics["images"], metrics["objects"]) == (3, 3)
    assert len(list((here / "run" / "overlays" / "disks").glob("*.png"))) == 2

    written = here / "run" / "predictions" / "disks.json.gz"
    images = list(read_predictions(written))
    assert len(images) == 3
    assert all(image.rles is None for image in images if len(image))
    assert sum(map(len, images)) > 0

    truth = str(here / "data" / "disks.json")
    words = ["--ground-truth", truth, "--predictions", str(written), "--json", "scores.json"]
    assert run_command("evaluate", words, prog="evaluate") == 0
    assert json.loads((here / "scores.json").read_text())["coco_bbox_ap"] == metrics["coco_bbox_ap"]


def test_a_best_checkpoint_by_masks_is_refused_before_training(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "boxes.yaml", "TEST.BEST_METRIC=object_ap"]  # named; left alone it follows MODEL.MASK_ON
    assert run_command("train_net", words, prog="train_net") == 2
    said = capsys.readouterr().err
    assert "TEST.BEST_METRIC" in said
    assert "coco_bbox_ap" in said
    assert not (here / "run").exists()
