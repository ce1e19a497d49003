"""Whether a configuration can be trained or predicted with, judged before any data is read.

Every part of detseg declares its keys, with their legal values, as a class of `detseg.config.options.Options`. Nothing
else knows them. Here they come together: `validate` reads all options that a caller names, and those of the model, and
raises one message with every problem. Packages that stand after this one name theirs:

    detseg/inference/validation.py   PREDICTION: what every use of a model reads; `validate_for_prediction`
    detseg/engine/validation.py      EVALUATION and TRAINING: what comes with them; `validate_config`

A part joins by adding its class to one of these lists (and its old rule functions below go). What only training asks
for is judged in `check` where `problems.training` says so. A key that no options declare is one that nobody reads:
with another value than its default it is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from detseg.config.node import Config
from detseg.config.options import Options
from detseg.config.problems import Problems
from detseg.engines.choice import ENGINES, EngineChoice, check_engine
from detseg.engines.model_rules import check_model
from detseg.engines.rules import (
    is_torchvision_address,
    note_pretrained_input,
    warn_of_other_zoo_input,
)

_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?")
_NORMS = (
    "MODEL.RESNETS.NORM",
    "MODEL.FPN.NORM",
    "MODEL.ROI_BOX_HEAD.NORM",
    "MODEL.ROI_MASK_HEAD.NORM",
)


def validate(
    cfg: Config,
    parts: Sequence[type[Options]],
    *,
    training: bool,
    honoured: Sequence[type[Options]] | None = None,
) -> EngineChoice:
    """Refuse values that a part does not take and keys that nothing reads; return the engine.

    Args:
        parts: the options that will be read, beside those of the model.
        training: False for prediction and evaluation with given weights, which ask for less.
        honoured: further options whose keys somebody reads, whose values do not matter here. With None the caller knows
            only its own parts: of the keys that no part has only those of MODEL are refused.

    Raises:
        ConfigError: all problems in one message, each with its key and where it was set.
    """
    problems = Problems(cfg, training=training)
    for options in parts:
        options.read(problems)
    _note_old_rules(problems, training)
    problems.raise_if_any()
    choice = check_engine(cfg, training=training)
    if training:
        warn_of_other_zoo_input(cfg, cfg.MODEL.WEIGHTS)
    return choice


def check_combinations(cfg: Config) -> None:
    """The rules below and nothing else, for tests of parts whose rules are still here; it goes with them."""
    problems = Problems(cfg)
    _note_old_rules(problems, training=False)
    problems.raise_if_any()


def _note_old_rules(problems: Problems, training: bool) -> None:
    """The rules that are not yet their parts' own; those below INPUT, DATASETS, SOLVER and TEST go one by one."""
    _check_general(problems)
    _check_input(problems)
    _check_data(problems)
    _check_test(problems)
    check_model(problems)
    if training:
        _check_training(problems)


def _check_training(problems: Problems) -> None:
    cfg = problems.cfg
    if not cfg.MODEL.WEIGHTS:
        frozen = [key for key in _NORMS if cfg[key] == "FrozenBN" and (cfg.MODEL.MASK_ON or "MASK_HEAD" not in key)]
        for key in frozen:
            problems.add(key, "frozen statistics need pretrained MODEL.WEIGHTS; from scratch take BN or GN")
        if cfg.MODEL.FREEZE:
            problems.add("MODEL.FREEZE", "what is frozen needs pretrained MODEL.WEIGHTS; from scratch set []")
        if cfg.MODEL.BACKBONE.FREEZE_AT > 0:
            problems.add("MODEL.BACKBONE.FREEZE_AT", "frozen layers need pretrained MODEL.WEIGHTS; from scratch set 0")
    elif is_torchvision_address(cfg.MODEL.WEIGHTS):
        note_pretrained_input(problems, cfg.MODEL.WEIGHTS)


def _check_general(problems: Problems) -> None:
    cfg = problems.cfg
    if cfg.VERSION != 2:
        problems.add("VERSION", "expected 2; files of Detectron2's version 1 are converted with Detectron2 itself")
    problems.one_of("MODEL.ENGINE", ("auto", *ENGINES))
    if not _DEVICE.fullmatch(cfg.MODEL.DEVICE):
        problems.add("MODEL.DEVICE", "expected auto, cpu, cuda, cuda:0 (any number), mps or xpu")
    if not cfg.OUTPUT_DIR.strip():
        problems.add("OUTPUT_DIR", "expected a folder")


def _check_input(problems: Problems) -> None:
    cfg = problems.cfg
    channels = len(cfg.MODEL.PIXEL_MEAN)
    if not channels:
        problems.add("MODEL.PIXEL_MEAN", "expected one value a channel")
    if len(cfg.MODEL.PIXEL_STD) != channels:
        problems.add("MODEL.PIXEL_STD", f"expected as many values as MODEL.PIXEL_MEAN has ({channels})")
    problems.within("MODEL.PIXEL_STD", above=0)
    problems.one_of("INPUT.FORMAT", ("BGR", "RGB"))
    problems.one_of("INPUT.MASK_FORMAT", ("bitmask", "polygon"))


def _check_data(problems: Problems) -> None:
    cfg = problems.cfg
    names = cfg.DATASETS.CLASSES
    if names and len(names) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        problems.add(
            "DATASETS.CLASSES", f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}: make them agree"
        )


def _check_test(problems: Problems) -> None:
    cfg = problems.cfg
    if cfg.TEST.DETECTIONS_PER_IMAGE != -1:
        problems.within("TEST.DETECTIONS_PER_IMAGE", 1)
    problems.one_of("TEST.AUG.MODE", ("merge_then_mask", "fuse"))
    problems.one_of("TEST.AUG.METHOD", ("nms", "soft_nms", "wbf"))
    problems.one_of("TEST.AUG.MASKS", ("best", "vote", "mean"))
    problems.within("TEST.AUG.THRESHOLD", 0, 1)
    for name in ("MIN_VIEWS", "MIN_SIZES", "MAX_SIZE"):
        problems.within(f"TEST.AUG.{name}", 1)
