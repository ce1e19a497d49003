"""The native engine refuses by name what it would have to ignore; its lists are true."""

import fnmatch
import logging
import re
from pathlib import Path

import pytest

from detseg.config import get_default_config, load_config
from detseg.config.schema import default_values, detectron2_defaults, kinds
from detseg.engine.validation import validate_config
from detseg.engines.native_keys import (
    HONOURED,
    IMPLEMENTED_VALUES,
    TRAINING_ONLY,
    check_native,
    inactive_patterns,
    is_honoured,
)
from detseg.errors import ConfigError

DETSEG = Path(__file__).parents[2] / "detseg"
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart" / "mask_rcnn.yaml"


def messages(words: list[str]) -> str:
    with pytest.raises(ConfigError) as raised:
        check_native(load_config(QUICKSTART, words))
    return str(raised.value)


@pytest.mark.parametrize("pattern", HONOURED)
def test_honoured_patterns_name_keys_of_detectron2(pattern: str):
    assert fnmatch.filter(detectron2_defaults(), pattern), f"{pattern} names no key of Detectron2's"


def test_nothing_is_listed_twice():
    assert len(set(HONOURED)) == len(HONOURED)


def test_implemented_values_fit_their_keys():
    cfg = get_default_config()
    for key, values in IMPLEMENTED_VALUES.items():
        assert is_honoured(key), f"{key} has values but is not in HONOURED"
        for value in values:
            cfg.set(key, value)


def test_inactive_patterns_name_keys():
    for pattern in inactive_patterns(get_default_config()):
        assert fnmatch.filter(kinds(), pattern), f"{pattern} names no key"


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
        (["DATALOADER.SAMPLER_TRAIN=RandomSubsetTrainingSampler"], ["RandomSubsetTrainingSampler", "implements"]),
        (["VIS_PERIOD=5", "TEST.PRECISE_BN.ENABLED=True"], ["2 problems", "VIS_PERIOD", "PRECISE_BN"]),
    ],
)
def test_keys_that_would_be_ignored_are_refused_by_name(words: list[str], parts: list[str]):
    message = messages(words)
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
        check_native(load_config(QUICKSTART, [word]))
    assert word.partition("=")[0] in caplog.text


def test_a_full_dump_of_detectron2s_defaults_is_not_refused_for_its_inactive_parts():
    cfg = load_config(QUICKSTART).clone()
    ours = default_values()
    for key, value in detectron2_defaults().items():
        if not is_honoured(key) or value != ours[key]:
            cfg.set(key, value)
    check_native(cfg)


def test_honoured_keys_are_read_somewhere():
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in DETSEG.rglob("*.py") if path.parent != DETSEG / "config"
    )
    words = set(re.findall(r"[A-Z][A-Z0-9_]+", text))
    # of a single implemented value there is nothing to read
    single = {key for key, values in IMPLEMENTED_VALUES.items() if len(values) == 1}
    honoured = [key for key in kinds() if is_honoured(key) and key not in single | {"VERSION", "MODEL.ENGINE"}]
    ignored = [key for key in honoured if key.rsplit(".", 1)[-1] not in words]
    assert not ignored, f"said to be honoured, but no module reads them: {ignored}"


@pytest.mark.parametrize(
    "words",
    [
        ["DATALOADER.SAMPLER_TRAIN=RandomSubsetTrainingSampler"],
        ["TEST.PRECISE_BN.ENABLED=True", "VIS_PERIOD=5"],
    ],
)
def test_a_model_predicts_however_it_was_trained(words: list[str]):
    cfg = load_config(QUICKSTART, words)
    validate_config(cfg, training=False)
    with pytest.raises(ConfigError):
        validate_config(cfg)


def test_training_patterns_name_keys():
    for pattern in TRAINING_ONLY:
        assert fnmatch.filter(kinds(), pattern), f"{pattern} names no key"
