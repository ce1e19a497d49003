"""Names of weights of timm's networks: in other programs, and in timm's feature extractors.

In a model the network's names follow `timm.`: backbone.bottom_up.timm.blocks.0.0.conv_dw.weight. timm flattens some
(stages_0 for stages.0) and adds `model.` before others, depending on the network and on timm's version; matching
ignores both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from torch import Tensor

# Comes before the network's own names in those of a model.
PLACE = ".timm."

_BLOCK = re.compile(r"_blocks\.(\d+)\.(_\w+)\.(.+)")
# Layers of a block of EfficientNet-PyTorch -> timm's: without and with a convolution that expands the channels.
_LAYERS = (
    {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"},
    {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    },
)
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def is_efficientnet_pytorch(names: Collection[str]) -> bool:
    """Whether these are the names of the package EfficientNet-PyTorch and similar ones."""
    return "_conv_stem.weight" in names and "_blocks.0._depthwise_conv.weight" in names


def from_efficientnet_pytorch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename to timm's names; unknown names are kept.

    Blocks are counted through there, and within stages by timm: a stage begins where the number of channels changes.
    """
    places: dict[str, str] = {}
    channels, stage, within = None, -1, 0
    for number in range(len(state)):
        projection = state.get(f"_blocks.{number}._project_conv.weight")
        if projection is None:
            break
        stage, within = (stage, within + 1) if len(projection) == channels else (stage + 1, 0)
        channels = len(projection)
        places[str(number)] = f"blocks.{stage}.{within}"
    renamed = {}
    for name, value in state.items():
        if (match := _BLOCK.fullmatch(name)) and match[1] in places:
            layers = _LAYERS[f"_blocks.{match[1]}._expand_conv.weight" in state] | _SQUEEZE
            name = f"{places[match[1]]}.{layers.get(match[2], match[2])}.{match[3]}"
        else:
            layer, _, rest = name.partition(".")
            name = f"{_AROUND.get(layer, layer)}.{rest}"
        renamed[name] = value
    return renamed


def names_in_model(names: Collection[str], own: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, its name among `own`, a model's) of entries of a network of timm, bare or in a model."""
    places = {_key(name.partition(PLACE)[2]): name for name in own if PLACE in name}
    for name in names:
        _, place, bare = name.partition(PLACE)
        yield name, places.get(_key(bare if place else name), name)


def _key(name: str) -> str:
    return name.removeprefix("model.").replace(".", "_")
