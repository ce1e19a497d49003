"""The U-Net systems in the training loop, in resume, in prediction and in what follows it, as the R-CNNs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_segmenter import write_disks
from train_and_die import tiny_config

from detseg.cli.main import main
from detseg.coco.predictions_file import read_predictions
from detseg.config import Config
from detseg.engine.train import train
from detseg.engine.validation import validate_config
from detseg.inference.predictor import Predictor
from detseg.models.bottom_up.unet import UNet
from detseg.runs.checkpoint import load_checkpoint
from detseg.runs.run_folder import open_run

SYSTEMS = ("BinaryUNet", "BoundaryUNet", "DistanceUNet", "InstanceUNet", "PixelEmbedding")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_disks(tmp_path_factory.mktemp("disks"), count=5)


def config(name: str, data: Path, folder: Path) -> Config:
    cfg = tiny_config(data, folder).clone()
    values = {
        "MODEL.META_ARCHITECTURE": name,
        "MODEL.MASK_ON": True,
        "MODEL.UNET.ENCODER": "plain",
        "MODEL.UNET.CHANNELS": [8, 4],
        "MODEL.UNET.DROPOUT": 0.1,
        "MODEL.PIXEL_STD": [57.4, 57.1, 58.4],
        "SOLVER.MAX_ITER": 8,
        "TEST.EVAL_PERIOD": 4,
    }
    if name == "InstanceUNet":
        values |= {"MODEL.UNET.HEADS": ["distance", "boundary", "flows", "stars"], "MODEL.UNET.OBJECTS_FROM": "stars"}
    for key, value in values.items():
        cfg.set(key, value)
    validate_config(cfg.freeze())
    return cfg


def train_here(cfg: Config, resume: bool = False) -> Path:
    with open_run(cfg, resume=resume) as run:
        train(cfg, run, resume=resume)
        return run.path


@pytest.mark.parametrize("name", SYSTEMS)
def test_trains_resumes_to_the_same_bits_and_predicts(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_here(config(name, data, tmp_path / "whole"))
    cfg, calls, forward = config(name, data, tmp_path / "torn"), [], UNet.forward

    def dies(model: UNet, samples: list) -> dict:
        calls.append(0)
        if len(calls) == 6:
            raise MemoryError("in the middle of the sixth iteration")
        return forward(model, samples)

    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", dies)
        with pytest.raises(MemoryError):
            train_here(cfg)
    torn = train_here(cfg, resume=True)
    states = [load_checkpoint(run / "checkpoints" / "last.pth") for run in (whole, torn)]
    for part in ("model", "ema"):
        a, b = (state[part] if part == "model" else state[part]["model"] for state in states)
        assert all(torch.equal(a[key], b[key]) for key in a)
    wanted = {"BoundaryUNet": {"iou_inside", "iou_boundary"}, "InstanceUNet": {"iou_foreground", "iou_boundary"}}
    wanted = wanted.get(name, {"iou_foreground"})
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = [line for line in lines if "total_loss" in line]
    assert wanted <= logged[-1].keys(), "the curve of every class of pixels"
    summed = [value for key, value in logged[-1].items() if key.startswith("loss")]
    assert logged[-1]["total_loss"] == pytest.approx(sum(summed)), "measurements are no losses"
    final = json.loads((whole / "final_metrics.json").read_text(encoding="utf-8"))
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert len(evaluations) == 2
    for scores in (*evaluations, final):
        assert "object_ap" in scores
        own = {key for key in scores if key.startswith(("iou_", "pixel_"))}
        accuracy = {"pixel_accuracy"} if name == "BoundaryUNet" else set()
        assert own == (wanted - {"iou_foreground"}) | accuracy, "the same of the validation images"
        assert all(0 <= scores[key] <= 1 for key in own)
    assert len(list(read_predictions(next((whole / "predictions").iterdir())).images)) == 5
    images = str(next(iter(data.parent.rglob("*.png"))))
    words = ["visualize", "--embedding", str(torn), "--images", images, "--output", str(tmp_path / "pictures")]
    assert main(words) == (0 if name == "PixelEmbedding" else 2)
    assert len(list(tmp_path.glob("pictures/*.png"))) == (name == "PixelEmbedding")
    predictor = Predictor.from_run(torn, postprocess=False, precision="bfloat16")
    assert np.isfinite(predictor(np.full((21, 30), 90, np.uint8), soft_masks=True).scores).all()
