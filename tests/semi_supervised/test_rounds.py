"""Rounds on synthetic cells with a tiny network: killed and continued, each command done once, no fold sees its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny_networks import TINY_RCNN, TWO_ITERATIONS

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.config import load_config
from detseg.curation.synthetic import generate_dataset
from detseg.data.trained_images import FIELD, TrainedImages
from detseg.errors import RunError
from detseg.semi_supervised.steps import Step, Steps

TINY = {
    "DATASETS.TRAIN": ["folds/folds.json"],
    **TINY_RCNN,
    **TWO_ITERATIONS,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "INPUT.CROP.SIZE": [96, 96],
    "TEST.DETECTIONS_PER_IMAGE": 30,
}
PLAN = {
    "models": {"small": "quickstart/mask_rcnn.yaml"},
    "settings": TINY,
    "unlabelled": "cells/val.json",
    "views": ["h"],
    "gates": {"score": 0.0, "ignore_score": 0.0, "min_sure_share": 0.0},
    "label": ["--similar", 0],
    "mixing": {"DATASETS.PSEUDO_CONFIDENCE": ["class", "pixels"], "INPUT.PSEUDO.RANDOM_CONTRAST": 0.2},
    "rounds": 1,
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with six labelled cells' images in two folds, three without labels, and a plan."""
    monkeypatch.chdir(tmp_path)
    counts = {"train": 6, "val": 3}
    generate_dataset(tmp_path / "cells", counts=counts, seed=3, height=96, width=96, cells=8, channels=1)
    assert main(["split", "cells/train.json", "--folds", "2", "--output", "folds"]) == 0
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    return tmp_path


def start(*words: str) -> subprocess.Popen:
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "detseg", "pseudo_label", "--config", "plan.yaml", "--output", "out", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_rounds_go_on_and_every_fold_learns_from_what_has_not_seen_it(here: Path) -> None:
    process, done = start(), here / "out" / "steps" / "round0" / "train_small_fold0.json"
    while process.poll() is None and not done.is_file():
        time.sleep(0.02)
    process.kill()  # in the middle of the training of fold 1, which ends with it
    process.communicate()
    first = done.stat().st_mtime_ns

    again = start("--resume")
    out, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert done.stat().st_mtime_ns == first, "what was done is not done again"
    assert "round1  object_ap" in out
    assert "is kept" in out or "accepted" in out
    folds = CocoDataset.load("folds/folds.json")
    for fold in range(2):
        pseudo = CocoDataset.load(f"out/round1/pseudo/fold{fold}.json")
        teachers = TrainedImages.from_plain(pseudo.info["pseudo_labels"][FIELD])
        seen = [record.metadata["fold"] for record in folds.images if record in teachers]
        assert seen == [1 - fold] * 3, "the teacher of a fold has seen the other one, and all of it"
        cfg = load_config(f"out/round1/small/fold{fold}/config.yaml")
        assert cfg.DATASETS.PSEUDO == ["out/round1/pseudo/fold{fold}.json"]
        assert "fold" not in pseudo.images[0].metadata
        agreements = [row.get("agreement") for row in json.loads(Path(pseudo.name).read_text())["annotations"]]
        assert agreements
        assert None not in agreements, "every object says how far the mirrored view agrees"
    decision = json.loads((here / "out" / "round1" / "score.json").read_text())["decision"]
    assert decision["accepted"] == (decision["gain"][1] > 0)

    assert main(["pseudo_label", "--config", "plan.yaml", "--output", "out"]) == 2, "rounds that are there are not lost"
    (here / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "least_gain": 0.5}))
    assert main(["pseudo_label", "--config", "plan.yaml", "--output", "out", "--resume"]) == 2


def test_a_plan_that_cannot_be_followed_ends_before_it_begins(here: Path, capsys: pytest.CaptureFixture) -> None:
    for change, expected in (
        ({"unlabelled": "none.json"}, "none.json"),
        ({"teacher": ["cells"]}, "must be a folder of folds"),
        ({"gates": {"scores": 0.5}}, "scores"),
        ({"settings": {**TINY, "MODEL.ROI_HEADS.NUM_CLASSES": 5}}, "has 3 classes"),
        ({"mixing": {"DATASETS.PSEUDO_RATIO": [0, 1]}}, "DATASETS.PSEUDO_RATIO"),
    ):
        (here / "plan.yaml").write_text(yaml.safe_dump({**PLAN, **change}))
        assert main(["pseudo_label", "--config", "plan.yaml", "--output", "out"]) == 2
        assert expected in capsys.readouterr().err
        assert not (here / "out" / "steps").exists()
    assert main(["pseudo_label"]) == 2
    assert "give a plan of rounds" in capsys.readouterr().err


def test_a_step_that_fails_says_what_its_command_said(tmp_path: Path) -> None:
    steps = Steps(tmp_path, 2, lambda: False)
    words = ("split", str(tmp_path / "none.json"), "--folds", "2", "--output", str(tmp_path / "folds"))
    with pytest.raises(RunError, match=r"a/split failed \(exit status 2\): error: .*none.json"):
        steps.run([Step("a/split", words)])
    assert not steps.is_done(Step("a/split", words))


def test_a_step_is_done_once_and_only_as_it_was(tmp_path: Path) -> None:
    steps = Steps(tmp_path, 1, lambda: False)
    words = ("make_synthetic", "--output", str(tmp_path / "cells"), "--train", "1", "--val", "1", "--cells", "3")
    assert steps.run([Step("make", words)])
    log = (tmp_path / "steps" / "make.log").read_text()
    assert steps.run([Step("make", words)])
    assert (tmp_path / "steps" / "make.log").read_text() == log
    with pytest.raises(RunError, match="done by another command"):
        steps.run([Step("make", (*words, "--seed", "3"))])


def test_who_is_asked_to_stop_begins_nothing(tmp_path: Path) -> None:
    steps = Steps(tmp_path, 1, lambda: True)
    assert not steps.run([Step("make", ("make_synthetic", "--output", str(tmp_path / "cells")))])
    assert not (tmp_path / "cells").exists()
