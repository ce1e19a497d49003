"""Architectures that only Detectron2 has: PointRend from its projects, by MODEL.IMPORTS."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2_cases import require_detectron2, training_config, write_dataset

require_detectron2()
pytest.importorskip("detectron2.projects.point_rend", reason="needs Detectron2's projects, installed with it")

from detectron2 import model_zoo
from detectron2.structures import BitMasks

from detseg import Predictor
from detseg.cli.main import run_command
from detseg.config import config_hash, load_config, load_flat_config
from detseg.engines.build import build_model
from detseg.engines.validation import run_imports, same_imports
from detseg.errors import ConfigError
from detseg.files.run_files import read_metrics
from detseg.runs.checkpoint import load_checkpoint

POINTREND = {
    "MODEL.IMPORTS": ["detectron2.projects.point_rend:add_pointrend_config"],
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.ROI_HEADS.NAME": "PointRendROIHeads",
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": True,
    "MODEL.ROI_MASK_HEAD.NAME": "PointRendMaskHead",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "",
    "MODEL.ROI_MASK_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON": True,
    "MODEL.POINT_HEAD.NUM_CLASSES": 2,
    "MODEL.POINT_HEAD.FC_DIM": 16,
    "SOLVER.MAX_ITER": 2,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PointRend configuration for `write_dataset`, as a file."""
    folder = tmp_path_factory.mktemp("pointrend")
    values = training_config(write_dataset(folder / "data"), folder / "run", "auto").to_dict()
    values["MODEL"].pop("WEIGHTS")
    for key, value in POINTREND.items():
        *parents, last = key.split(".")
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    path = folder / "pointrend.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_pointrend_from_configuration_to_prediction(config: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--num-threads", "1", "--config", str(config)]
    assert run_command("train_net", words, prog="train_net") == 0
    run = config.parent / "run"
    (first, _) = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "training"]
    assert first["loss_mask_point"] > 0
    assert run_command("train_net", [*words, "--resume"], prog="train_net") == 0
    assert run_command("train_net", [*words, "--eval-only"], prog="train_net") == 0

    output = config.parent / "found.json"
    asked = ["--images", str(config.parent / "data"), "--output", str(output)]
    assert run_command("predict", ["--run", str(run), *asked], prog="predict") == 2
    assert "--config FILE" in capsys.readouterr().err
    weights = ["--config", str(config), "--weights", str(run / "checkpoints" / "best.pth")]
    assert run_command("predict", [*weights, *asked], prog="predict") == 0
    assert output.is_file()

    cfg = load_config(config, imports=run_imports)
    predictor = Predictor.from_checkpoint(run / "checkpoints" / "best.pth", cfg)
    predictions = predictor(config.parent / "data" / "0.png", soft_masks=True)
    assert predictions.provenance["engine"] == "detectron2"
    assert any(len(np.unique(mask)) > 2 for mask in predictions.soft_masks)


def test_it_gets_real_bitmasks(config: Path):
    from detectron2_cases import disks

    model = build_model(load_config(config, imports=run_imports))
    given = model.inputs.from_sample(disks(3), torch.device("cpu"))["instances"]
    assert isinstance(given.gt_masks, BitMasks)


def test_doubtful_pseudo_labels_are_refused_where_they_would_be_background(config: Path):
    """PointRend's mask head looks at no ignored region: what is unsure would teach it that nothing is there."""
    from detectron2_cases import disks

    model = build_model(load_config(config, imports=run_imports)).train()
    sample = disks(3)
    sample.ignore = np.zeros((sample.height, sample.width), dtype=bool)
    sample.ignore[:9, :9] = True
    assert model([sample])  # a crowd of a data set: that is warned of
    sample.metadata["label_source"] = "pseudo"
    with pytest.raises(ConfigError, match="GeneralizedRCNN counts ignored regions as background"):
        model([sample])


def test_keys_of_imports_belong_to_their_configuration_alone(config: Path):
    before = config_hash(load_config())
    cfg = load_config(config, ["MODEL.POINT_HEAD.NUM_FC", "2"], imports=run_imports)
    assert cfg.MODEL.POINT_HEAD.NUM_FC == 2
    assert cfg.MODEL.POINT_HEAD.IN_FEATURES == ["p2"]
    assert pickle.loads(pickle.dumps(cfg)) == cfg
    assert config_hash(load_config()) == before
    assert "MODEL.POINT_HEAD.NUM_FC" not in load_config()
    assert load_config(config, imports=same_imports(cfg)).MODEL.POINT_HEAD.NUM_FC == 3
    with pytest.raises(ConfigError, match="OVERSAMPLE_RATIO"):
        load_config(config, ["MODEL.POINT_HEAD.OVERSAMPLE_RATO", "2"], imports=run_imports)


def test_neither_run_folder_nor_checkpoint_runs_code(config: Path):
    run = config.parent / "run"
    for attempt in (
        lambda: load_config(run / "config.yaml"),
        lambda: load_flat_config(load_checkpoint(run / "checkpoints" / "best.pth")["config"]),
        lambda: Predictor.from_checkpoint(run / "checkpoints" / "best.pth"),
        lambda: Predictor.from_run(run),
    ):
        with pytest.raises(ConfigError, match=r"projects.point_rend:add_pointrend_config.*--config FILE"):
            attempt()


def test_retinanet_from_detectron2s_file_to_prediction(tmp_path: Path):
    """Boxes without masks; the engine `auto` finds that only Detectron2 has it."""
    data = write_dataset(tmp_path / "data")
    # A narrow network and small images; the file's own anchors and losses.
    narrow = {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4, "NORM": "BN"}
    words = [f"MODEL.RESNETS.{key}={value}" for key, value in narrow.items()]
    words += ["MODEL.WEIGHTS=", "MODEL.BACKBONE.FREEZE_AT=0", "MODEL.FPN.OUT_CHANNELS=16", "MODEL.DEVICE=cpu"]
    words += ["MODEL.RETINANET.NUM_CLASSES=2", "MODEL.ROI_HEADS.NUM_CLASSES=2", "MODEL.RETINANET.SCORE_THRESH_TEST=0"]
    words += [f"DATASETS.TRAIN=['{data}']", f"DATASETS.TEST=['{data}']", "INPUT.MIN_SIZE_TRAIN=[64]", "SEED=1"]
    words += ["INPUT.MIN_SIZE_TEST=64", "DATALOADER.NUM_WORKERS=0", f"OUTPUT_DIR={tmp_path / 'run'}"]
    words += ["SOLVER.MAX_ITER=2", "SOLVER.STEPS=[1]", "SOLVER.IMS_PER_BATCH=2", "SOLVER.LOG_PERIOD=1"]
    config = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    assert run_command("train_net", ["--config", config, *words], prog="train_net") == 0
    (first, _) = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "training"]
    assert first["loss_cls"] > 0
    assert first["loss_box_reg"] > 0
    predictions = Predictor.from_run(tmp_path / "run", postprocess=False)(tmp_path / "data" / "0.png")
    assert predictions.provenance["engine"] == "detectron2"
    assert len(predictions) > 0
    assert predictions.rles is None
