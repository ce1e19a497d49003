"""What no part of the chosen engine and architecture reads is refused by name; the declarations are true."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from detseg.config import load_config
from detseg.config.detectron2_defaults import SWITCHED_PARTS
from detseg.config.kinds import coerce
from detseg.config.options import Options, Rule, key
from detseg.config.schema import default_values, detectron2_defaults, kinds
from detseg.engine.validation import EVALUATION, TRAINING, validate_config
from detseg.engines.validation import EngineOptions
from detseg.errors import ConfigError
from detseg.inference.validation import PREDICTION, validate_for_prediction
from detseg.models import table
from detseg.models.table import ARCHITECTURES, ModelOptions, options_of

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart" / "mask_rcnn.yaml"
TORCHVISION = QUICKSTART.parents[1] / "sartorius" / "torchvision_mask_rcnn.yaml"
NATIVE = ["MODEL.ENGINE", "native"]
ALL_OPTIONS = [EngineOptions, ModelOptions, *PREDICTION, *EVALUATION, *TRAINING, *map(options_of, ARCHITECTURES)]


def refused(words: list[str], config: Path = QUICKSTART) -> str:
    with pytest.raises(ConfigError) as raised:
        validate_config(load_config(config, [*words, *NATIVE]))
    return str(raised.value)


def rules() -> list[tuple[str, Rule]]:
    return [item for options in ALL_OPTIONS for item in options.rules().items()]


def test_declared_keys_exist_and_their_values_fit_them():
    for name, rule in rules():
        assert name in kinds(), f"{name} is declared, but there is no such key"
        depths = kinds()[name].depths
        for value in (*(rule.choices or ()), *rule.detectron2):
            coerce(kinds()[name], value if 0 in depths else [value], decode=False)


def test_every_own_key_is_read_by_a_part():
    declared = {name for name, _ in rules()}
    assert not set(kinds()) - set(detectron2_defaults()) - declared


def test_switched_parts_name_keys():
    for prefix in SWITCHED_PARTS:
        assert any(name.startswith(prefix) for name in kinds()), f"{prefix} names no key"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["VIS_PERIOD=5"], ["VIS_PERIOD = 5 (command line)", "does not honour", "MODEL.ENGINE detectron2"]),
        (["MODEL.KEYPOINT_ON=True"], ["MODEL.KEYPOINT_ON"]),
        (["MODEL.ROI_BOX_HEAD.USE_FED_LOSS=True"], ["USE_FED_LOSS"]),
        (["MODEL.META_ARCHITECTURE=PanopticFPN"], ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]),
        (
            ["MODEL.ROI_HEADS.NAME=PointRendROIHeads"],
            ["PointRendROIHeads", "StandardROIHeads", "MODEL.ENGINE detectron2"],
        ),
        (["DATALOADER.SAMPLER_TRAIN=RandomSubsetTrainingSampler"], ["RandomSubsetTrainingSampler", "expected one of"]),
        (["VIS_PERIOD=5", "TEST.PRECISE_BN.ENABLED=True"], ["2 problems", "VIS_PERIOD", "PRECISE_BN"]),
        (["SOLVER.REFERENCE_WORLD_SIZE=8"], ["SOLVER.REFERENCE_WORLD_SIZE", "neither engine"]),
        (["INPUT.MASK_FORMAT=rle"], ["INPUT.MASK_FORMAT", "neither engine", "'bitmask'"]),
        (["MODEL.TORCHVISION.NAME=maskrcnn_resnet50_fpn_v2"], ["MODEL.TORCHVISION.NAME"]),
    ],
)
def test_keys_that_would_be_ignored_are_refused_by_name(words: list[str], parts: list[str]):
    message = refused(words)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "words",
    [
        ["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS=5"],
        ["MODEL.RETINANET.NUM_CLASSES=5", "MODEL.SEM_SEG_HEAD.NORM=", "MODEL.PANOPTIC_FPN.COMBINE.ENABLED=False"],
        ["MODEL.ROI_BOX_CASCADE_HEAD.IOUS=[0.5]"],
        ["TEST.AUG.MIN_SIZES=[1]", "TEST.PRECISE_BN.NUM_ITER=3", "DATALOADER.REPEAT_THRESHOLD=0.1"],
        ["MODEL.RESNETS.DEFORM_MODULATED=True", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST=3"],
        ["INPUT.MASK_FORMAT=polygon", "DATALOADER.FILTER_EMPTY_ANNOTATIONS=True"],
    ],
)
def test_keys_of_inactive_parts_do_not_matter(words: list[str]):
    validate_config(load_config(QUICKSTART, words))


@pytest.mark.parametrize("word", ["DATALOADER.ASPECT_RATIO_GROUPING=True", "INPUT.MASK_FORMAT=polygon"])
def test_detectron2s_own_default_is_accepted_with_a_warning(word: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        validate_config(load_config(QUICKSTART, [word, *NATIVE]))
    assert word.partition("=")[0] in caplog.text


def test_a_full_dump_of_detectron2s_defaults_is_not_refused_for_what_nothing_reads():
    cfg = load_config(QUICKSTART, NATIVE).clone()
    declared = {name for name, _ in rules()}
    ours = default_values()
    for name, value in detectron2_defaults().items():
        if name not in declared or value != ours[name]:
            cfg.set(name, value)
    validate_config(cfg)


@pytest.mark.parametrize(
    "words",
    [
        ["DATALOADER.SAMPLER_TRAIN=RandomSubsetTrainingSampler"],
        ["TEST.PRECISE_BN.ENABLED=True", "VIS_PERIOD=5"],
    ],
)
def test_a_model_predicts_however_it_was_trained(words: list[str]):
    cfg = load_config(QUICKSTART, [*words, *NATIVE])
    validate_for_prediction(cfg)
    validate_config(cfg, training=False)
    with pytest.raises(ConfigError):
        validate_config(cfg)


@pytest.mark.parametrize("training", [True, False])
def test_scores_that_detectron2_expects_in_its_own_tests_refuse_no_file_and_are_said_not_to_be_compared(
    training, caplog
):
    cfg = load_config(QUICKSTART, ["TEST.EXPECTED_RESULTS", '[["bbox", "AP", 38.5, 0.2]]', *NATIVE])
    with caplog.at_level(logging.WARNING):
        validate_config(cfg, training=training)
    assert "TEST.EXPECTED_RESULTS (command line) is not compared" in caplog.text


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("MODEL.RPN.CONV_DIMS=[64]", ["MODEL.RPN.CONV_DIMS", "TorchvisionMaskRCNN does not have this key"]),
        ("MODEL.FPN.OUT_CHANNELS=128", ["MODEL.FPN.OUT_CHANNELS", "leave it at 256"]),
        ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS=[0.5]", ["MODEL.ROI_BOX_CASCADE_HEAD.IOUS"]),
        ("MODEL.RPN.NMS_THRESH=7", ["MODEL.RPN.NMS_THRESH", "at most 1"]),
        ("MODEL.RPN.PRE_NMS_TOPK_TEST=0", ["MODEL.RPN.PRE_NMS_TOPK_TEST", "at least 1"]),
        ("MODEL.ANCHOR_GENERATOR.SIZES=[[8],[16]]", ["MODEL.ANCHOR_GENERATOR.SIZES", "5 levels"]),
    ],
)
def test_an_architecture_takes_its_own_keys_and_values_only(word: str, parts: list[str]):
    message = refused([word], TORCHVISION)
    for part in parts:
        assert part in message


@dataclass(frozen=True)
class OnlyClasses(Options):
    num_classes: int = key("MODEL.ROI_HEADS.NUM_CLASSES", at_least=1)


def test_a_new_architecture_refuses_the_keys_of_others(monkeypatch: pytest.MonkeyPatch):
    row = replace(ARCHITECTURES["TorchvisionMaskRCNN"], options=f"{__name__}:OnlyClasses")
    monkeypatch.setitem(table.ARCHITECTURES, "BinaryUNet", row)
    cfg = load_config(
        None, [*NATIVE, "MODEL.META_ARCHITECTURE", "TorchvisionMaskRCNN", "MODEL.RPN.NMS_THRESH", "0.5"]
    ).clone()
    cfg.set("MODEL.META_ARCHITECTURE", "BinaryUNet")
    with pytest.raises(ConfigError, match=r"MODEL\.RPN\.NMS_THRESH = 0\.5 .*BinaryUNet does not have this key"):
        validate_for_prediction(cfg)


ADVICE = "set MODEL.ENGINE detectron2, which uses Detectron2 itself"


def test_the_other_engine_is_advised_only_where_it_takes_the_configuration():
    assert ADVICE in refused(["MODEL.ROI_BOX_HEAD.POOLER_TYPE=ROIAlign"])
    for word, reason in (
        ("MODEL.KEYPOINT_ON=True", "masks and boxes without keypoints"),
        ("MODEL.META_ARCHITECTURE=PanopticFPN", "without semantic labels"),
        ("MODEL.PROPOSAL_GENERATOR.NAME=PrecomputedProposals", "proposals from files are not read"),
    ):
        message = refused([word])
        assert ADVICE not in message
        assert reason in message
        assert "tools/train_net.py" in message, "the way out"
        both = refused([word, "MODEL.ROI_BOX_HEAD.POOLER_TYPE=ROIAlign"])
        assert ADVICE not in both


@pytest.mark.parametrize("text", ["MODEL: {FCOS: {NUM_CLASSES: 2}}", "MODEL: {ROI_MASK_HEAD: {POINT_HEAD_ON: True}}"])
def test_keys_of_forks_name_the_way_to_add_them(text: str, tmp_path: Path):
    path = tmp_path / "fork.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"fork.yaml:1: unknown key 'MODEL.*MODEL.IMPORTS names its code"):
        load_config(path)
