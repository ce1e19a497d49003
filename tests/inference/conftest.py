"""A run folder with a small untrained model, as training leaves it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detseg.config import dump_config, load_config
from detseg.curation.synthetic import KINDS, make_image
from detseg.engines.build import build_model
from detseg.fusion.postprocess import Postprocess
from detseg.runs.checkpoint import save_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.ROI_MASK_HEAD.NUM_CONV", 1),
    *("MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 12),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", 100, "MODEL.RPN.POST_NMS_TOPK_TEST", 40, "MODEL.DEVICE", "cpu"),
]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Path:
    """runs/small/001: config.yaml, checkpoints/{best,last}.pth of different weights, postprocess.yaml."""
    cfg = load_config(REPOSITORY / "configs" / "_base_" / "mask_rcnn_small_fpn.yaml", SMALL)
    run = tmp_path_factory.mktemp("runs") / "small" / "001"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(cfg), encoding="utf-8")
    for name, seed in (("best", 1), ("last", 2)):
        torch.manual_seed(seed)
        state = {
            "model": build_model(cfg).state_dict(),
            "config": cfg.flatten(),
            "classes": list(KINDS),
            "iteration": 3,
        }
        save_checkpoint(run / "checkpoints" / f"{name}.pth", state)
    Postprocess(classes=KINDS, score_threshold=0.01, min_area=2).save(run / "postprocess.yaml")
    return run


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """Three small synthetic pictures of two sizes, a.png to c.png."""
    folder = tmp_path_factory.mktemp("images")
    for index, name in enumerate("abc"):
        image, _, _ = make_image((2, index), 64, 96 if index else 64, 6)
        assert cv2.imwrite(str(folder / f"{name}.png"), np.ascontiguousarray(image))
    return folder
