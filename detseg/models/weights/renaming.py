"""From the names of a file of weights to those of a model."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from detseg.errors import WeightsError
from detseg.models.weights import names, torchvision_names
from detseg.models.weights.reading import ORIGIN, StoredWeights

TORCHVISION = "torchvision"
# Weights that torchvision uses with norms of epsilon 0, by the name of their file.
_WITHOUT_EPSILON = "maskrcnn_resnet50_fpn_coco-bf2d0c1e"
# What follows the model's own prefix in the name of a backbone's entry.
_BARE = re.compile(r"(?:.+\.)?((?:stem|res[2-5])\..+)")


@dataclass(frozen=True)
class NamedWeights:
    """state: tensors by name. origin: "torchvision", "caffe2" or "" for detseg's and Detectron2's own."""

    state: dict[str, Tensor]
    origin: str


def detectron2_names(stored: StoredWeights, file_name: str = "") -> NamedWeights:
    """Rename to Detectron2's names what has those of Caffe2 or torchvision; the names of a backbone alone stay bare."""
    state = _without_epsilon(stored.state, file_name)
    if names.is_caffe2(state):
        return NamedWeights(names.from_caffe2(state), "caffe2")
    if torchvision_names.is_torchvision_mask_rcnn(state):
        return NamedWeights(torchvision_names.from_mask_rcnn(state), TORCHVISION)
    if torchvision_names.is_torchvision_resnet(state):
        return NamedWeights(torchvision_names.from_resnet(state), TORCHVISION)
    return NamedWeights(dict(state), stored.metadata.get(ORIGIN, ""))


def names_of_model(stored: StoredWeights, own: Collection[str], file_name: str = "") -> NamedWeights:
    """Rename to the names of a model, `own`.

    Raises:
        WeightsError: entries of a backbone that fit several places of the model.
    """
    state = _without_epsilon(stored.state, file_name)
    if "backbone.body.conv1.weight" in own:  # a model with torchvision's own names
        if torchvision_names.is_torchvision_resnet(state):
            state = {f"backbone.body.{name}": value for name, value in state.items()}
        return NamedWeights(dict(state), TORCHVISION)
    renamed = detectron2_names(StoredWeights(state, stored.metadata))
    if any(name in own for name in renamed.state):
        return renamed
    return NamedWeights(_with_prefixes(renamed.state, own), renamed.origin)


def is_backbone_alone(state: Collection[str]) -> bool:
    """Whether the names are those of a backbone without the prefix that it has in a model."""
    return "stem.conv1.weight" in state


def _without_epsilon(state: Mapping[str, Tensor], file_name: str) -> Mapping[str, Tensor]:
    return torchvision_names.without_epsilon(state) if _WITHOUT_EPSILON in file_name else state


def _with_prefixes(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Put a bare backbone where the model has it: res5 of a C4 model is in roi_heads."""
    places: dict[str, str] = {}
    for name in own:
        if match := _BARE.fullmatch(name):
            if match[1] in places:
                raise WeightsError(f"the model has two places for {match[1]}: {places[match[1]]} and {name}")
            places[match[1]] = name
    return {places.get(name, name): value for name, value in state.items()}
