"""Options read from a configuration: what is legal, what is refused with key and origin, which keys are declared."""

from dataclasses import dataclass

import pytest

from detseg.config import load_config
from detseg.config.options import Options, Problems, key, part
from detseg.errors import ConfigError


@dataclass(frozen=True)
class Pooling(Options):
    section = "MODEL.ROI_BOX_HEAD"

    resolution: int = key("POOLER_RESOLUTION", at_least=1)
    norm: str = key("NORM", choices=("", "GN"), detectron2=("LN",))


@dataclass(frozen=True)
class Heads(Options):
    section = "MODEL.ROI_HEADS"

    thresholds: tuple[float, ...] = key("IOU_THRESHOLDS", above=0, at_most=1)
    channel_order: str = key("INPUT.FORMAT", choices=("BGR", "RGB"))
    boxes: Pooling = part(Pooling)
    masks: Pooling | None = part(Pooling, section="MODEL.ROI_MASK_HEAD", when=lambda cfg: cfg.MODEL.MASK_ON)

    sizes: tuple[tuple[float, ...], ...] = key("MODEL.ANCHOR_GENERATOR.SIZES", default=((8.0,),), above=0)

    def check(self, problems: Problems) -> None:
        if self.masks is not None and self.masks.resolution < self.boxes.resolution:
            problems.add("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "expected at least that of the boxes")


def test_values_come_from_their_sections_and_lists_are_frozen():
    options = Heads.from_config(
        load_config(None, ["MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "21"])
    )
    assert options.thresholds == (0.5,)
    assert options.channel_order == "BGR"
    assert options.boxes.resolution == 14
    assert options.masks is not None
    assert options.masks.resolution == 21


def test_a_part_that_is_switched_off_is_neither_read_nor_judged():
    off = load_config(None, ["MODEL.MASK_ON", "False", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "-3"])
    assert Heads.from_config(off).masks is None
    assert "MODEL.ROI_MASK_HEAD.NORM" not in Heads.rules(off)
    assert "MODEL.ROI_MASK_HEAD.NORM" in Heads.rules()


def test_all_problems_come_in_one_message_with_key_and_origin():
    words = [
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
        "0",
        "INPUT.FORMAT",
        "YUV",
        "MODEL.ROI_HEADS.IOU_THRESHOLDS",
        "[2]",
    ]
    with pytest.raises(ConfigError) as caught:
        Heads.from_config(load_config(None, words))
    message = str(caught.value)
    assert "3 problems" in message
    assert "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 0 (command line): expected at least 1" in message
    assert "expected one of 'BGR', 'RGB'" in message


def test_what_must_hold_between_values_is_judged_only_when_each_is_legal():
    with pytest.raises(ConfigError, match="at least that of the boxes"):
        Heads.from_config(load_config(None, ["MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "3"]))


def test_a_value_that_only_detectron2_implements_is_refused_by_the_native_engine_with_the_way_out():
    cfg = load_config(None, ["MODEL.ROI_BOX_HEAD.NORM", "LN"])
    with pytest.raises(ConfigError, match=r"set MODEL\.ENGINE detectron2"):
        Pooling.from_config(cfg)
    problems = Problems(cfg, engine="detectron2")
    options = Pooling.read(problems)
    assert options is not None
    assert options.norm == "LN"


def test_a_name_that_detectron2s_registries_know_is_theirs_to_judge():
    @dataclass(frozen=True)
    class Head(Options):
        name: str = key("MODEL.RPN.HEAD_NAME", choices=("StandardRPNHead",), registry=True)

    cfg = load_config(None, ["MODEL.RPN.HEAD_NAME", "OtherHead"])
    assert Head.read(Problems(cfg, engine="detectron2")) == Head("OtherHead")
    problems = Problems(cfg)
    assert Head.read(problems) is None
    assert problems.blames_native
    assert "expected 'StandardRPNHead'; for anything else set MODEL.ENGINE detectron2" in problems.found[0]


def test_elements_of_lists_are_judged():
    @dataclass(frozen=True)
    class Maps(Options):
        names: tuple[str, ...] = key("MODEL.RESNETS.OUT_FEATURES", choices=("res4", "res5"), not_empty=True)

    for value, expected in (("['res6']", "some of 'res4', 'res5'"), ("[]", "at least one value")):
        with pytest.raises(ConfigError, match=expected):
            Maps.from_config(load_config(None, ["MODEL.RESNETS.OUT_FEATURES", value]))
    with pytest.raises(ConfigError, match="every number more than 0"):
        Heads.from_config(load_config(None, ["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [0, 16]]"]))


def test_options_know_the_section_that_they_were_read_for():
    options = Heads.from_config(load_config(None, ["MODEL.MASK_ON", "True"]))
    assert (options.boxes.section, options.masks.section) == ("MODEL.ROI_BOX_HEAD", "MODEL.ROI_MASK_HEAD")


def test_one_problem_that_two_parts_find_is_told_once():
    problems = Problems(load_config(None, ["INPUT.FORMAT", "YUV"]))
    Heads.read(problems)
    Heads.read(problems)
    with pytest.raises(ConfigError) as caught:
        problems.raise_if_any()
    assert "problems" not in str(caught.value)
