"""From LIVECell to Sartorius by their own configurations, made small: one class, then three, whose heads begin anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_networks import TINY_RCNN

from detseg.cli.main import main
from detseg.curation.synthetic import generate_dataset

SMALL = [
    word
    for key, value in {
        **TINY_RCNN,
        "INPUT.CROP.SIZE": [96, 96],
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.BALANCE_BY": "",
        "DATASETS.TEST": [],
        "SOLVER.MAX_ITER": 1,
        "SOLVER.IMS_PER_BATCH": 2,
        "TEST.EVAL_PERIOD": 0,
        "TEST.REPORT": False,
    }.items()
    for word in (key, str(value))
]


def network(run: str) -> dict[str, torch.Tensor]:
    return torch.load(Path(run) / "checkpoints" / "best.pth", weights_only=True)["model"]


def test_livecell_then_sartorius(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    generate_dataset(tmp_path / "cells", counts={"train": 2}, seed=3, height=96, width=96, cells=8, channels=1)
    content = json.loads(Path("cells/train.json").read_text())
    assert len(content["categories"]) == 3
    # As LIVECell: other names, one class.
    content["categories"] = [{"id": 1, "name": "cell"}]
    content["annotations"] = [{**row, "category_id": 1} for row in content["annotations"]]
    Path("cells/livecell.json").write_text(json.dumps(content))

    pretraining = ["--config", "livecell/mask_rcnn_R_50_FPN.yaml", *SMALL, "DATASETS.TRAIN", "[cells/livecell.json]"]
    # Here it begins with nothing instead of COCO's weights, so that nothing can be frozen.
    scratch = ["MODEL.WEIGHTS", "", "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "0"]
    assert main(["train_net", *pretraining, *scratch, "SOLVER.HEAD_WARMUP_ITERS", "0"]) == 0
    before = network("runs/livecell_mask_rcnn_R_50_FPN/001")

    fine_tuning = ["--config", "sartorius/mask_rcnn_R_50_FPN_livecell.yaml", *SMALL]
    words = ["DATASETS.TRAIN", "[cells/train.json]", "OUTPUT_DIR", "tuned"]
    assert main(["train_net", *fine_tuning, *words]) == 0, "MODEL.WEIGHTS is where the pretraining has written"
    after = network("tuned")
    heads = {name for name in after if "box_predictor" in name or "mask_head.predictor" in name}
    assert {name for name in after if after[name].shape != before[name].shape} == heads
    assert all(torch.allclose(after[name], before[name], atol=1e-3) for name in after.keys() & before.keys() - heads)
    assert after["roi_heads.box_predictor.cls_score.bias"].shape == (4,)
    assert "has other classes; these keep their initial weights: roi_heads.box_predictor" in caplog.text
