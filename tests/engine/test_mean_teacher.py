"""A mean teacher in the training loop: off where nothing is sure, resumed bit for bit, refused where it cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import assert_equal, without_times
from tiny_networks import TINY_RCNN

from detseg.config import Config, load_config
from detseg.curation.synthetic import generate_dataset
from detseg.engine.data_sets import load_unlabeled
from detseg.engine.mean_teacher.teacher import kept_statistics
from detseg.engine.plan import TrainingPlan
from detseg.engine.train import train
from detseg.engine.validation import validate_config
from detseg.engines.choice import problems_with_detectron2
from detseg.errors import ConfigError, DataError
from detseg.files.run_files import METRIC_LINES, read_metrics
from detseg.runs.checkpoint import load_checkpoint
from detseg.runs.run_folder import open_run

TINY = {
    **TINY_RCNN,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 32,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "TEST.DETECTIONS_PER_IMAGE": 6,
    "TEST.OVERLAYS": 0,
    "TEST.EVAL_PERIOD": 0,
    "TEST.REPORT": False,
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.CROP.SIZE": [64, 64],
    "INPUT.CROP.AFTER_RESIZE": True,
    "INPUT.RANDOM_FLIP": "both",
    "INPUT.RANDOM_SCALE": [0.8, 1.25],
    "INPUT.RANDOM_AFFINE.ROTATION": 20.0,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 6,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.STEPS": [],
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.LOG_PERIOD": 1,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.CHECKPOINT_KEEP": 5,
    "SOLVER.EMA.ENABLED": True,
    "TRACKING.BACKENDS": ["jsonl"],
    "SEED": 5,
}
# An untrained network is sure of nothing: its scores of three classes are below a quarter.
SEMI = {
    "SEMI.BURN_IN": 1,
    "SEMI.RAMP": 2,
    "SEMI.THRESHOLD": [0.1],
    "SEMI.IGNORE_FROM": [0.05],
    "SEMI.BOX_GATE": "always",
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sets of six labelled, five unlabelled and two validation images."""
    folder = tmp_path_factory.mktemp("cells") / "set"
    counts = {"labeled": 6, "more": 5, "val": 2}
    return generate_dataset(folder, seed=1, counts=counts, height=72, width=80, cells=(4, 7), progress=False)


def config(cells: dict[str, Path], folder: Path, **keys: Any) -> Config:
    cfg = load_config("_base_/mask_rcnn_small_fpn.yaml").clone()
    data = {"DATASETS.TRAIN": [str(cells["labeled"])], "DATASETS.TEST": [str(cells["val"])]}
    for key, value in {**TINY, **data, "OUTPUT_DIR": str(folder), **keys}.items():
        cfg.set(key, value)
    return cfg.freeze()


def with_teacher(cells: dict[str, Path], folder: Path, **keys: Any) -> Config:
    return config(cells, folder, **{**SEMI, "SEMI.UNLABELED": [str(cells["more"].with_suffix(""))], **keys})


def run(cfg: Config, resume: bool = False) -> dict[str, Any]:
    """Train; return the last checkpoint."""
    validate_config(cfg)
    with open_run(cfg, resume=resume) as folder:
        train(cfg, folder, resume=resume)
        return load_checkpoint(folder.last, for_training=True)


STATE = ("model", "optimizer", "ema", "rng")


def test_with_thresholds_that_nothing_reaches_training_is_supervised_training_bit_for_bit(cells, tmp_path) -> None:
    alone = run(config(cells, tmp_path / "alone"))
    nothing = {"SEMI.THRESHOLD": [1.01], "SEMI.IGNORE_FROM": [1.01]}
    beside = run(with_teacher(cells, tmp_path / "beside", **nothing))
    for name in STATE:
        assert_equal(alone[name], beside[name], name)


def test_labels_reach_the_student_after_the_burn_in(cells, tmp_path) -> None:
    alone = run(config(cells, tmp_path / "alone"))
    taught = run(with_teacher(cells, tmp_path / "taught"))
    lines = [line for line in read_metrics(tmp_path / "taught" / METRIC_LINES) if line["kind"] == "training"]
    assert lines[0]["loss_unlabeled"] == 0
    assert sum(line["loss_unlabeled"] for line in lines) > 0
    assert all((line["loss_unlabeled"] > 0) == (line["pseudo_objects"] > 0) for line in lines[1:])
    assert not torch.equal(
        alone["model"]["roi_heads.mask_head.predictor.weight"], taught["model"]["roi_heads.mask_head.predictor.weight"]
    )


def test_strong_views_leave_the_statistics_of_batch_norm_alone() -> None:
    norm = torch.nn.BatchNorm2d(2, momentum=0.3)
    images = torch.randn(3, 2, 4, 4) + 5
    with kept_statistics(torch.nn.Sequential(norm)):
        assert abs(float(norm(images).mean())) < 1e-5  # normalised by the batch itself, as ever
    assert norm.running_mean.tolist() == [0, 0]
    assert norm.running_var.tolist() == [1, 1]
    norm(images)
    assert norm.momentum == 0.3
    assert float(norm.running_mean.min()) > 1


def test_the_weight_grows_after_the_burn_in(cells, tmp_path) -> None:
    keys = {"SEMI.BURN_IN": 2, "SEMI.RAMP": 2, "SEMI.WEIGHT": 4.0}
    options = TrainingPlan.from_config(with_teacher(cells, tmp_path, **keys)).teacher
    assert [options.weight_at(iteration) for iteration in (2, 3, 4)] == [2, 4, 4]
    options = TrainingPlan.from_config(with_teacher(cells, tmp_path, **(keys | {"SEMI.RAMP": 0}))).teacher
    assert options.weight_at(2) == 4
    assert TrainingPlan.from_config(config(cells, tmp_path)).teacher is None


@pytest.mark.parametrize(("start", "adapt"), [("average", "counts"), ("student", "none")])
def test_a_resumed_training_ends_as_one_that_never_stopped(cells, tmp_path, start: str, adapt: str) -> None:
    keys = {"SEMI.TEACHER_START": start, "SEMI.ADAPT": adapt, "SEMI.RATIO": 2, "SEMI.BURN_IN": 2}
    keys |= {"SEMI.ADAPT_RANGE": [0.2, 0.9], "SOLVER.ACCUMULATE": 2, "DATALOADER.NUM_WORKERS": 1}
    whole = tmp_path / "whole"
    end = run(with_teacher(cells, whole, **keys))
    for iteration in (2, 4):
        folder = tmp_path / f"after_{iteration}"
        shutil.copytree(whole, folder)
        for path in (folder / "checkpoints").glob("*.pth"):
            if path.name != f"iteration_{iteration:07d}.pth":
                path.unlink()
        (folder / "checkpoints" / f"iteration_{iteration:07d}.pth").rename(folder / "checkpoints" / "last.pth")
        again = run(with_teacher(cells, folder, **keys), resume=True)
        for name in (*STATE, "teacher", "position"):
            assert_equal(end[name], again[name], f"{name} after {iteration}")
        assert without_times(read_metrics(folder / METRIC_LINES)) == without_times(read_metrics(whole / METRIC_LINES))


def test_a_teacher_that_starts_from_the_student_is_the_student(cells, tmp_path) -> None:
    """With a decay of 0, average and student agree anyway; with another one, only where it begins again."""
    keys = {"SEMI.BURN_IN": 5, "SOLVER.EMA.DECAY": 0.9, "SEMI.TEACHER_START": "student"}
    end = run(with_teacher(cells, tmp_path / "student", **keys))
    assert end["ema"]["updates"] == 1
    other = run(with_teacher(cells, tmp_path / "average", **(keys | {"SEMI.TEACHER_START": "average"})))
    assert other["ema"]["updates"] == 6


def test_images_come_from_files_folders_and_lists_each_once(cells, tmp_path, monkeypatch) -> None:
    folder = cells["more"].with_suffix("")
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(map(str, sorted(folder.glob("*.png"))[:2])) + "\n")
    names = [str(cells["more"]), str(folder), str(listed)]
    found = load_unlabeled(config(cells, tmp_path / "run", **{"SEMI.UNLABELED": names}))
    assert len(found.images) == 5
    monkeypatch.setenv("DETSEG_DATASETS", str(folder.parent))
    assert len(load_unlabeled(config(cells, tmp_path / "run", **{"SEMI.UNLABELED": ["more"]})).images) == 5
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in (str(empty), str(tmp_path / "none"), "no_such_set.json"):
        with pytest.raises(DataError, match=r"SEMI\.UNLABELED|no data set"):
            load_unlabeled(config(cells, tmp_path / "run", **{"SEMI.UNLABELED": [name]}))


def test_a_coco_file_of_images_alone_will_do(cells, tmp_path) -> None:
    data = json.loads(cells["more"].read_text())
    data |= {"annotations": [], "categories": []}
    data["info"] = {"image_root": str(cells["more"].parent)}
    path = tmp_path / "images.json"
    path.write_text(json.dumps(data))
    assert len(load_unlabeled(config(cells, tmp_path / "run", **{"SEMI.UNLABELED": [str(path)]})).images) == 5


def test_unlabelled_images_that_are_validated_on_are_refused(cells, tmp_path) -> None:
    cfg = with_teacher(cells, tmp_path / "run", **{"SEMI.UNLABELED": [str(cells["val"])]})
    with pytest.raises(DataError, match=r"images of SEMI\.UNLABELED are also validation images"):
        run(cfg)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"SOLVER.EMA.ENABLED": False}, r"SOLVER\.EMA\.ENABLED = .*is the teacher"),
        ({"MODEL.MASK_ON": False}, r"MODEL\.MASK_ON = .*are masks"),
        ({"MODEL.COMPILE": True}, r"MODEL\.COMPILE = "),
        ({"INPUT.OBJECT_SIZE": 24.0}, r"INPUT\.OBJECT_SIZE = .*do not tell the size"),
        ({"SEMI.RATIO": 5}, r"SEMI\.RATIO = "),
        ({"SEMI.BURN_IN": 6}, r"SEMI\.BURN_IN = .*MAX_ITER is 6"),
        ({"SEMI.THRESHOLD": [0.7, 0.8]}, r"SEMI\.THRESHOLD = .*one for each of"),
        ({"SEMI.THRESHOLD": [0.7, 0.01, 0.8]}, r"SEMI\.IGNORE_FROM = .*at most SEMI\.THRESHOLD"),
        ({"SEMI.BOX_GATE": "variance"}, r"SEMI\.BOX_GATE = .*'jitter', 'rpn', 'always', 'never'"),
        ({"SEMI.ADAPT_RANGE": [0.9, 0.5]}, r"SEMI\.ADAPT_RANGE = "),
    ],
)
def test_what_cannot_be_is_refused_by_name(cells, tmp_path, keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        validate_config(with_teacher(cells, tmp_path / "run", **keys))


def test_detectron2_refuses_the_keys_by_name(cells, tmp_path) -> None:
    cfg = with_teacher(cells, tmp_path / "run")
    found = "\n".join(problems_with_detectron2(cfg, training=True))
    assert "SEMI.UNLABELED = " in found
    assert "SEMI.BURN_IN = 1 (set in Python): the detectron2 engine does not implement this key" in found
    assert not any("SEMI" in line for line in problems_with_detectron2(cfg, training=False))


def test_other_architectures_are_refused_by_name(tmp_path) -> None:
    cfg = load_config("_base_/torchvision_mask_rcnn.yaml", ["SEMI.UNLABELED", "[images]", "SOLVER.EMA.ENABLED", "True"])
    with pytest.raises(ConfigError, match=r"SEMI\.UNLABELED = .*GeneralizedRCNN only"):
        validate_config(cfg)
