"""A working folder with a few images in folds, and the training of the tiny segmenter on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_segmenter import TinySegmenter, write_disks

from detseg.cli.main import run_command
from detseg.coco.dataset import CocoDataset
from detseg.engine import train

CONFIG = """
MODEL:
  DEVICE: cpu
  MASK_ON: True
  ROI_HEADS: {NUM_CLASSES: 1}
  RESNETS: {NORM: BN}
  BACKBONE: {FREEZE_AT: 0}
  PIXEL_MEAN: [0.0, 0.0, 0.0]
DATASETS: {TRAIN: [data/disks.json], TEST: []}
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {MAX_ITER: 3, IMS_PER_BATCH: 2, WARMUP_ITERS: 0, STEPS: [], CHECKPOINT_PERIOD: 1, LOG_PERIOD: 1}
TEST: {EVAL_PERIOD: 0, OVERLAYS: 0}
INPUT: {MIN_SIZE_TRAIN: [0], MIN_SIZE_TEST: 0}
SEED: 3
"""


def set_folds(path: Path, folds: list[int]) -> None:
    data = json.loads(path.read_text())
    for image, fold in zip(data["images"], folds, strict=True):
        image["fold"] = fold
    path.write_text(json.dumps(data))


def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with 7 images in 3 folds, one of them in none, and a configuration of the tiny segmenter."""
    set_folds(write_disks(tmp_path / "data", count=7), [0, 1, 2, 0, 1, 2, -1])
    (tmp_path / "disks.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "build_model", lambda cfg: TinySegmenter())
    return tmp_path


def train_net(*words: str) -> int:
    return run_command("train_net", ["--num-threads", "1", "--config", "disks.yaml", *words], prog="train_net")


def images_of(dataset: CocoDataset) -> set[str]:
    return {record.file_name for record in dataset.images}
