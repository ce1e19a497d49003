"""Weights under Detectron2's names, written for detseg (.safetensors) and for Detectron2 (.pth)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from detseg.errors import WeightsError
from detseg.files.atomic import written_whole
from detseg.models.weights.files import ORIGIN
from detseg.models.weights.names import NamedWeights, is_backbone_alone

SUFFIXES = (".safetensors", ".pth")


def write_weights(path: str | Path, named: NamedWeights) -> None:
    """Write a .safetensors file, or a .pth file {"model": state_dict, ...} that Detectron2's checkpointer loads.

    A backbone alone is marked for Detectron2's matching by the ends of names; whose input the weights need is kept.

    Raises:
        WeightsError: another suffix. DataError: it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise WeightsError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    state = {name: value.detach().clone().contiguous() for name, value in named.state.items()}
    with written_whole(path, "the weights") as temporary:
        if path.suffix.lower() == ".pth":
            torch.save(_detectron2_checkpoint(state, named.origin), temporary)
        else:
            _save_safetensors(temporary, state, named.origin)


def _detectron2_checkpoint(state: dict[str, Tensor], origin: str) -> dict[str, object]:
    return {
        "model": state,
        "__author__": "detseg",
        # Detectron2 then finds a backbone's place in the model, as detseg does
        "matching_heuristics": is_backbone_alone(state),
        ORIGIN: origin,
    }


def _save_safetensors(path: Path, state: dict[str, Tensor], origin: str) -> None:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise WeightsError(f"{path}: writing it needs the package safetensors: pip install safetensors") from error
    # not by its save_file, whose files nobody but their owner can read
    path.write_bytes(save(state, metadata={"format": "pt", ORIGIN: origin}))
