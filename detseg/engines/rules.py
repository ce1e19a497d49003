"""What must hold between the keys of sizes, crops and random changes of training images."""

from __future__ import annotations

import logging
import re
from typing import Any

from detseg.config.node import Config
from detseg.config.problems import Problems

# A bend of more than this part of the distance of its control points would be cut off, lest it folds the image.
_LARGEST_BEND = 1 / 8


def check_augmentation(problems: Problems) -> None:
    """Add what is wrong with the INPUT keys of training images."""
    cfg = problems.cfg
    problems.one_of("INPUT.RANDOM_FLIP", ("none", "horizontal", "vertical", "both"))
    problems.one_of("INPUT.MIN_SIZE_TRAIN_SAMPLING", ("choice", "range"))
    if not cfg.INPUT.MIN_SIZE_TRAIN:
        problems.add("INPUT.MIN_SIZE_TRAIN", "expected at least one size, or [0] for no resizing")
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        problems.pair("INPUT.MIN_SIZE_TRAIN", 1, float("inf"), equal=True)
    for key in ("INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST"):
        problems.within(key, 0)
    for key in ("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"):
        problems.within(key, 1)
    for key in ("INPUT.RANDOM_INVERT", "INPUT.RANDOM_BRIGHTNESS", "INPUT.RANDOM_CONTRAST"):
        problems.within(key, 0, 1)
    problems.pair("INPUT.RANDOM_SCALE", 0.05, 20, equal=True)
    problems.one_of("INPUT.RANDOM_SCALE_SAMPLING", ("log_uniform", "uniform"))
    problems.one_of("INPUT.BORDER", ("constant", "reflect"))
    problems.within("INPUT.MIN_VISIBLE", 0, 1)
    _check_crop(problems)
    _check_free_transforms(problems)


def _check_crop(problems: Problems) -> None:
    keys = problems.cfg.INPUT.CROP
    problems.one_of("INPUT.CROP.TYPE", ("relative", "relative_range", "absolute", "absolute_range"))
    problems.length("INPUT.CROP.SIZE", 2)
    problems.within("INPUT.CROP.ON_OBJECTS", 0, 1)
    problems.within("INPUT.CROP.BALANCE_POWER", 0, 1)
    if keys.TYPE.startswith("relative"):
        problems.within("INPUT.CROP.SIZE", most=1, above=0)
    elif keys.ENABLED and not all(isinstance(size, int) and size >= 1 for size in keys.SIZE):
        problems.add("INPUT.CROP.SIZE", f"expected [height, width] in pixels for INPUT.CROP.TYPE {keys.TYPE}")
    elif keys.ENABLED and keys.TYPE == "absolute_range":
        problems.pair("INPUT.CROP.SIZE", 1, float("inf"), equal=True)
    if keys.PAD and not (keys.TYPE == "absolute" and keys.AFTER_RESIZE):
        problems.add("INPUT.CROP.PAD", "needs INPUT.CROP.TYPE absolute and INPUT.CROP.AFTER_RESIZE True")
    for name in ("PAD", "ON_OBJECTS"):
        if keys[name] and not keys.ENABLED:
            problems.add(f"INPUT.CROP.{name}", "there is no crop: set INPUT.CROP.ENABLED True")
    if keys.BALANCE_POWER and not keys.ON_OBJECTS:
        problems.add("INPUT.CROP.BALANCE_POWER", "chooses among the objects of INPUT.CROP.ON_OBJECTS: set that above 0")


def _check_free_transforms(problems: Problems) -> None:
    for section in ("INPUT.RANDOM_AFFINE", "INPUT.RANDOM_ELASTIC"):
        problems.within(f"{section}.PROBABILITY", 0, 1)
    problems.within("INPUT.RANDOM_AFFINE.ROTATION", 0, 180)
    problems.within("INPUT.RANDOM_AFFINE.SHEAR", 0, 60)
    problems.within("INPUT.RANDOM_AFFINE.STRETCH", 1, 10)
    problems.within("INPUT.RANDOM_AFFINE.TRANSLATE", 0, 1)
    problems.within("INPUT.RANDOM_ELASTIC.SPACING", 4)
    problems.within("INPUT.RANDOM_ELASTIC.MAGNITUDE", 0)
    keys = problems.cfg.INPUT.RANDOM_ELASTIC
    if keys.MAGNITUDE > keys.SPACING * _LARGEST_BEND:
        problems.add(
            "INPUT.RANDOM_ELASTIC.MAGNITUDE",
            f"expected at most an eighth of INPUT.RANDOM_ELASTIC.SPACING ({keys.SPACING:g}), lest the image folds",
        )


# What must hold between the keys of sampling, copy-paste and the cache of training data.

_OWN_SOURCES = ("train", "image")


def check_training_data(problems: Problems) -> None:
    """Add what is wrong with DATASETS.TRAIN_WEIGHTS, DATALOADER.SAMPLER_TRAIN, CACHE and INPUT.COPY_PASTE."""
    _check_sampling(problems)
    _check_copy_paste(problems)
    problems.one_of("DATALOADER.CACHE", ("none", "memory", "disk"))
    problems.within("DATALOADER.CACHE_SIZE", above=0)


def _check_sampling(problems: Problems) -> None:
    cfg = problems.cfg
    if cfg.DATASETS.TRAIN_WEIGHTS:
        problems.length("DATASETS.TRAIN_WEIGHTS", len(cfg.DATASETS.TRAIN))
        problems.within("DATASETS.TRAIN_WEIGHTS", above=0)
    if cfg.DATALOADER.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        return
    problems.within("DATALOADER.REPEAT_THRESHOLD", 0, 1)
    if not cfg.DATALOADER.REPEAT_THRESHOLD:
        problems.add(
            "DATALOADER.REPEAT_THRESHOLD",
            "expected the share of images below which a class counts as rare, such as 0.1, for "
            "DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler; at 0 it would repeat nothing",
        )
    if cfg.DATALOADER.BALANCE_BY:
        problems.add("DATALOADER.BALANCE_BY", 'expected "" beside RepeatFactorTrainingSampler: one of them decides')


def _check_copy_paste(problems: Problems) -> None:
    section = "INPUT.COPY_PASTE"
    keys = problems.cfg[section]
    problems.within(f"{section}.PROBABILITY", 0, 1)
    problems.one_of(f"{section}.PLACE", ("kept", "free"))
    for name in ("BALANCE_POWER", "MAX_OVERLAP", "MIN_VISIBLE"):
        problems.within(f"{section}.{name}", 0, 1)
    for name in ("LAST_ITER", "MAX_OBJECTS"):
        problems.within(f"{section}.{name}", 0)
    for name in ("SOFT_EDGE", "MARGIN"):
        problems.within(f"{section}.{name}", 0, 50)
    if not keys.SOURCES or not all(name.strip() for name in keys.SOURCES):
        problems.add(f"{section}.SOURCES", f"expected at least one of {', '.join(_OWN_SOURCES)} and names of data sets")
    elif len(set(keys.SOURCES)) != len(keys.SOURCES):
        problems.add(f"{section}.SOURCES", "expected names that differ; SOURCE_WEIGHTS says how often each is drawn")
    if keys.SOURCE_WEIGHTS:
        problems.length(f"{section}.SOURCE_WEIGHTS", len(keys.SOURCES))
        problems.within(f"{section}.SOURCE_WEIGHTS", above=0)


# What weights that were trained elsewhere ask of the images: order of channels, mean, spread and the ResNet's strides.
#
# With another input such weights load and train, but never reach what they could: a mistake that no error would show.

_logger = logging.getLogger(__name__)

_STRIDE = "MODEL.RESNETS.STRIDE_IN_1X1"
# torchvision takes RGB in 0..1 with the mean (0.485, 0.456, 0.406) and the standard deviation (0.229, 0.224, 0.225)
TORCHVISION_INPUT: dict[str, Any] = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}
# Detectron2's zoo, by a part of the address: OpenCV's BGR in 0..255 and the mean (103.53, 116.28, 123.675) for all
_ZOO_INPUT: tuple[tuple[re.Pattern[str], dict[str, Any]], ...] = (
    (re.compile(r"MSRA/R-|mask_rcnn_R_\d+_(FPN|C4|DC5)_[13]x/"), {"MODEL.PIXEL_STD": [1.0, 1.0, 1.0], _STRIDE: True}),
    (re.compile(r"X.101.32x8d"), {"MODEL.PIXEL_STD": [57.375, 57.12, 58.395], _STRIDE: False}),
    (re.compile(r"X.152.32x8d|R-\d+-GN|_R_50_FPN_3x_gn/"), {"MODEL.PIXEL_STD": [1.0, 1.0, 1.0], _STRIDE: False}),
)
_RELATIVE_TOLERANCE = 0.01
_WITH_BOTTLENECKS = (50, 101, 152)


def is_torchvision_address(source: str) -> bool:
    """Whether MODEL.WEIGHTS names weights of torchvision."""
    return source.startswith("torchvision://") or "://download.pytorch.org/" in source


def check_pretrained_input(cfg: Config, source: str) -> None:
    """Refuse an input that weights of torchvision were not trained with; `source` names them.

    Raises:
        ConfigError: with the keys and the values that they need.
    """
    problems = Problems(cfg)
    note_pretrained_input(problems, source)
    problems.raise_if_any()


def note_pretrained_input(problems: Problems, source: str) -> None:
    """`check_pretrained_input`, with other problems."""
    cfg = problems.cfg
    channels = len(cfg.MODEL.PIXEL_MEAN)
    for key, value in TORCHVISION_INPUT.items():
        if channels == 3 and not _agree(cfg[key], value):
            problems.add(key, f"{source} was trained with {value!r}: set it")
    if channels != 3:
        _logger.warning(
            "%s was trained on RGB images of mean 116 and standard deviation 57; for %d channels MODEL.PIXEL_MEAN and "
            "MODEL.PIXEL_STD should bring yours to mean 0 and standard deviation 1",
            source,
            channels,
        )
    native = cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    if native and cfg.MODEL.RESNETS.DEPTH in _WITH_BOTTLENECKS and cfg.MODEL.RESNETS.STRIDE_IN_1X1:
        problems.add(_STRIDE, f"{source} has its strides in the 3 x 3 convolutions: set False")


def warn_of_other_zoo_input(cfg: Config, source: str) -> list[str]:
    """Warn of keys that differ from what weights of Detectron2's zoo were trained with; return the keys."""
    if not source.startswith(("detectron2://", "catalog://")) or len(cfg.MODEL.PIXEL_MEAN) != 3:
        return []
    expected = {"INPUT.FORMAT": "BGR", "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675]}
    for pattern, values in _ZOO_INPUT:
        if pattern.search(source):
            expected |= values
            break
    different = [key for key, value in expected.items() if not _agree(cfg[key], value)]
    for key in different:
        _logger.warning("%s is %r, but %s was trained with %r", key, cfg[key], source, expected[key])
    return different


def _agree(given: Any, expected: Any) -> bool:
    if not isinstance(expected, list):
        return given == expected
    near = (abs(a - b) <= _RELATIVE_TOLERANCE * b for a, b in zip(given, expected, strict=True))
    return len(given) == len(expected) and all(near)
