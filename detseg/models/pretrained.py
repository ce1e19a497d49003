"""The input that pretrained weights need: channel order, mean, standard deviation; and the strides of a ResNet.

With other input such weights load and train, but the model stays worse, without any error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from typing import Any

from detseg.config.node import Config
from detseg.config.options import Problems
from detseg.errors import WeightsError
from detseg.models.imagenet import PACKAGE, TIMM, named_weights, package_file

_logger = logging.getLogger(__name__)

_STRIDE = "MODEL.RESNETS.STRIDE_IN_1X1"
# torchvision expects RGB in 0..1 with the mean (0.485, 0.456, 0.406) and the standard deviation (0.229, 0.224, 0.225).
_TORCHVISION: dict[str, Any] = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}
# Detectron2's zoo expects OpenCV's BGR in 0..255. Differences between its models, by a part of the address.
_ZOO: dict[str, Any] = {"INPUT.FORMAT": "BGR", "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675]}
_ZOO_MODELS: tuple[tuple[re.Pattern[str], dict[str, Any]], ...] = (
    (re.compile(r"MSRA/R-|mask_rcnn_R_\d+_(FPN|C4|DC5)_[13]x/"), {"MODEL.PIXEL_STD": [1.0, 1.0, 1.0], _STRIDE: True}),
    (re.compile(r"X.101.32x8d"), {"MODEL.PIXEL_STD": [57.375, 57.12, 58.395], _STRIDE: False}),
    (re.compile(r"X.152.32x8d|R-\d+-GN|_R_50_FPN_3x_gn/"), {"MODEL.PIXEL_STD": [1.0, 1.0, 1.0], _STRIDE: False}),
)
_RELATIVE_TOLERANCE = 0.01


def is_torchvision_address(source: str) -> bool:
    """Whether MODEL.WEIGHTS names weights of torchvision."""
    return source.startswith("torchvision://") or "://download.pytorch.org/" in source


def note_torchvision_input(problems: Problems, source: str, keys: Collection[str]) -> None:
    """Report input that differs from that of torchvision's training. source: the address of the weights.

    keys: those that the model uses.
    """
    cfg = problems.cfg
    channels = len(cfg.MODEL.PIXEL_MEAN)
    if channels == 3:
        for key in _different_keys(cfg, _TORCHVISION):
            problems.add(key, f"{source} was trained with {_TORCHVISION[key]!r}: set it")
    else:
        _logger.warning(
            "%s was trained on RGB images of mean 116 and standard deviation 57; for %d channels MODEL.PIXEL_MEAN and "
            "MODEL.PIXEL_STD should normalise yours to mean 0 and standard deviation 1",
            source,
            channels,
        )
    if _STRIDE in keys and cfg[_STRIDE]:
        problems.add(_STRIDE, f"{source} has its strides in the 3 x 3 convolutions: set False")


def is_named(source: str) -> bool:
    """Whether MODEL.WEIGHTS names weights of `package://` or `timm://`."""
    return source.startswith((PACKAGE, TIMM))


def note_named_weights(problems: Problems, source: str, keys: Collection[str]) -> None:
    """Report weights with such a name that are missing, or belong to another network. keys: those the model uses."""
    try:
        network = named_weights(source).network
        if source.startswith(PACKAGE):
            package_file(source.removeprefix(PACKAGE))
    except WeightsError as error:
        problems.add("MODEL.WEIGHTS", str(error))
        return
    if "MODEL.TIMM.NAME" not in keys:
        key = (
            "MODEL.UNET.ENCODER timm" if "MODEL.UNET.ENCODER" in keys else "MODEL.BACKBONE.NAME build_timm_fpn_backbone"
        )
        expected = f"they belong to timm's {network}: set {key} and MODEL.TIMM.NAME"
        problems.add("MODEL.WEIGHTS", expected)
    elif problems.cfg.MODEL.TIMM.NAME.partition(".")[0] != network:
        problems.add("MODEL.TIMM.NAME", f"{source} belongs to {network}: set it")


def warn_of_other_input(cfg: Config, source: str) -> list[str]:
    """Warn of keys that differ from the training of weights from Detectron2's zoo, `package://` or `timm://`.

    Returns the keys.
    """
    expected = _expected_input(cfg, source)
    different = _different_keys(cfg, expected)
    for key in different:
        _logger.warning("%s is %r, but %s was trained with %r", key, cfg[key], source, expected[key])
    return different


def _expected_input(cfg: Config, source: str) -> dict[str, Any]:
    channels = len(cfg.MODEL.PIXEL_MEAN)
    if is_named(source):
        order = {} if channels != 3 or cfg.INPUT.GRAYSCALE else {"INPUT.FORMAT": "RGB"}
        return order | named_weights(source).pixel_statistics(channels)
    if not source.startswith(("detectron2://", "catalog://")) or channels != 3:
        return {}
    return _ZOO | next((values for pattern, values in _ZOO_MODELS if pattern.search(source)), {})


def _different_keys(cfg: Config, expected: dict[str, Any]) -> list[str]:
    """The keys whose values differ from the expected ones by more than rounding."""

    def agree(given: Any, wanted: Any) -> bool:
        if not isinstance(wanted, list):
            return given == wanted
        pairs = zip(given, wanted, strict=True)
        return len(given) == len(wanted) and all(abs(a - b) <= _RELATIVE_TOLERANCE * b for a, b in pairs)

    return [key for key, value in expected.items() if not agree(cfg[key], value)]
