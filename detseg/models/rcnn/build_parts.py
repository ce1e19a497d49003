"""Small parts of the R-CNN family from configuration keys, and the refusal of values that are not known."""

from __future__ import annotations

from typing import Any

from torch import nn

from detseg.errors import ConfigError
from detseg.models.rcnn.layers import NORMS
from detseg.models.rcnn.matching import Matcher
from detseg.models.rcnn.pooler import Pooler


def make_matcher(key: str, node: Any, allow_low_quality_matches: bool = False) -> Matcher:
    """Build the Matcher of a section (`key`, `node`) of the configuration."""
    try:
        return Matcher(tuple(node.IOU_THRESHOLDS), tuple(node.IOU_LABELS), allow_low_quality_matches)
    except ValueError as error:
        raise ConfigError(f"{key}.IOU_THRESHOLDS and {key}.IOU_LABELS: {error}") from None


def make_pooler(key: str, node: Any, strides: list[int]) -> Pooler:
    """Build the pooling of a section (`key`, `node`) for feature maps of these strides."""
    known(f"{key}.POOLER_TYPE", node.POOLER_TYPE, ("ROIAlignV2",))
    return Pooler(output_size=node.POOLER_RESOLUTION, strides=strides, sampling_ratio=node.POOLER_SAMPLING_RATIO)


def strides_and_channels(key: str, names: Any, backbone: nn.Module) -> tuple[list[int], int]:
    """Return the strides of the named feature maps and their number of channels, which must be one."""
    for name in names:
        known(key, name, tuple(backbone.strides))
    channels = {backbone.channels[name] for name in names}
    if len(channels) != 1:
        raise ConfigError(f"{key}: these feature maps have different numbers of channels: {sorted(channels)}")
    return [backbone.strides[name] for name in names], channels.pop()


def one_list_for_all(values: Any) -> Any:
    """A flat list of numbers stands for all levels."""
    return values if isinstance(values[0], (list, tuple)) else [values]


def known_norm(key: str, name: str) -> str:
    """Return the name of a normalisation that there is, or raise ConfigError."""
    return known(key, name, NORMS)


def known(key: str, value: Any, choices: Any) -> Any:
    """Return a value that is among the choices, or raise ConfigError naming the key and the choices."""
    if value not in choices:
        raise ConfigError(
            f"{key} is {value!r}; the native engine knows {', '.join(repr(name) for name in choices) or 'nothing here'}"
        )
    return value
