"""What trainings of the U-Net systems log beside what every training does (test_every_system.py), and what follows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_networks import SYSTEMS
from tiny_segmenter import write_disks
from train_and_die import tiny_config

from detseg.cli.main import main
from detseg.coco.predictions_file import read_predictions
from detseg.config import Config
from detseg.engine.train import train
from detseg.engine.validation import validate_config
from detseg.inference.predictor import Predictor
from detseg.models.table import ARCHITECTURES
from detseg.runs.run_folder import open_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_disks(tmp_path_factory.mktemp("disks"), count=5)


def config(name: str, data: Path, folder: Path) -> Config:
    cfg = tiny_config(data, folder).clone()
    values = SYSTEMS[name] | {"MODEL.ROI_HEADS.NUM_CLASSES": 1, "SOLVER.MAX_ITER": 8, "TEST.EVAL_PERIOD": 4}
    for key, value in values.items():
        cfg.set(key, value)
    validate_config(cfg.freeze())
    return cfg


@pytest.mark.parametrize("name", [name for name, row in ARCHITECTURES.items() if row.averages_maps])
def test_it_learns_to_tell_pixels_apart_and_says_how_well(name: str, data: Path, tmp_path: Path) -> None:
    cfg = config(name, data, tmp_path / "run")
    with open_run(cfg) as opened:
        train(cfg, opened)
        run = opened.path
    wanted = {"BoundaryUNet": {"iou_inside", "iou_boundary"}, "InstanceUNet": {"iou_foreground", "iou_boundary"}}
    wanted = wanted.get(name, {"iou_foreground"})
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = [line for line in lines if "total_loss" in line]
    assert wanted <= logged[-1].keys(), "the curve of every class of pixels"
    summed = [value for key, value in logged[-1].items() if key.startswith("loss")]
    assert logged[-1]["total_loss"] == pytest.approx(sum(summed)), "measurements are no losses"
    final = json.loads((run / "final_metrics.json").read_text(encoding="utf-8"))
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert len(evaluations) == 2
    for scores in (*evaluations, final):
        assert "object_ap" in scores
        own = {key for key in scores if key.startswith(("iou_", "pixel_"))}
        accuracy = {"pixel_accuracy"} if name == "BoundaryUNet" else set()
        assert own == (wanted - {"iou_foreground"}) | accuracy, "the same of the validation images"
        assert all(0 <= scores[key] <= 1 for key in own)
    assert len(list(read_predictions(next((run / "predictions").iterdir())).images)) == 5
    images = str(next(iter(data.parent.rglob("*.png"))))
    words = ["visualize", "--embedding", str(run), "--images", images, "--output", str(tmp_path / "pictures")]
    assert main(words) == (0 if name == "PixelEmbedding" else 2)
    assert len(list(tmp_path.glob("pictures/*.png"))) == (name == "PixelEmbedding")
    predictor = Predictor.from_run(run, postprocess=False, precision="bfloat16")
    assert np.isfinite(predictor(np.full((21, 30), 90, np.uint8), soft_masks=True).scores).all()
