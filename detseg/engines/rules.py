"""What weights that were trained elsewhere ask of the images: order of channels, mean, spread, the ResNet's strides.

With another input such weights load and train, but never reach what they could: a mistake that no error would show.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from detseg.config.node import Config
from detseg.config.problems import Problems

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
