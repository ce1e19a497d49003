"""Checkpoints: tensors and plain Python values only, so that reading one runs no code.

`last.pth` continues a training: model, optimizer, schedule, ema, scaler, progress, iteration, position (samples taken
from the sampler's stream), rng, and rng_of_others if several processes train. `best.pth` is for prediction and has only
the model. Both hold config (flat keys), classes (names), trained_images (their keys), object_diameter (pixels, see
data.object_size), versions, threads. 'model' is a state_dict with Detectron2's names; in `best.pth` it holds the
averaged weights if SOLVER.EMA is on. `export_checkpoint` writes a .safetensors file that also predicts, for
environments that do not accept pickles.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detseg.errors import WeightsError, list_problems
from detseg.files.atomic import write_atomically
from detseg.models.weights.files import Weights, is_safetensors, read_weights, write_weights
from detseg.models.weights.torch_file import read_torch_file

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` atomically, with NumPy numbers and tuples of the configuration converted to plain values.

    Raises:
        TypeError: `state` holds something that cannot be read back safely.
    """
    plain = to_plain({"format": FORMAT, **state})
    write_atomically(path, lambda file: torch.save(plain, file))


def load_checkpoint(path: str | Path, *, for_training: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: the file.
        for_training: also require everything that is needed to continue a training.

    Raises:
        WeightsError: the file is missing, truncated, incomplete, or not a checkpoint of detseg.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"there is no checkpoint {path}")
    if is_safetensors(path) and not for_training:
        weights = read_weights(path)
        state = {**(weights.about if isinstance(weights.about, dict) else {}), "model": weights.state}
        if "config" not in state:
            raise WeightsError(f"{path} holds weights without a configuration; give the one of its model (--config)")
    else:
        state = read_torch_file(path)
    needed = {"model"} | ({"optimizer", "iteration", "position", "rng", "progress"} if for_training else set())
    missing = sorted(needed - state.keys()) if isinstance(state, dict) else sorted(needed)
    if missing:
        purpose = "to continue a training" if for_training else "as a checkpoint"
        raise WeightsError(f"{path} lacks {', '.join(missing)} {purpose}")
    problems = [
        f"{key}: {expected}" for key, (fits, expected) in _PARTS.items() if key in state and not fits(state[key])
    ]
    if problems:
        raise WeightsError(
            f"{path} is not a checkpoint of detseg, or is damaged; expected\n{list_problems(problems)}\nIf it is "
            "another program's, begin a training from it (MODEL.WEIGHTS), or predict with the configuration of its "
            "model (--config)"
        )
    return state


def export_checkpoint(path: Path, output: Path) -> dict[str, Any]:
    """Write the parts of a checkpoint that prediction needs as a .safetensors file: weights (averaged, if it has such),
    configuration, classes, engine, intensities and object diameter. Return all of these but the weights.

    Raises:
        WeightsError: the checkpoint cannot be read or has no configuration. DataError: the file cannot be written.
    """
    state = load_checkpoint(path)
    if "config" not in state:
        raise WeightsError(f"{path} holds weights without a configuration: it is not the checkpoint of a training")
    model = state["ema"]["model"] if state.get("ema") else state["model"]
    kept = ("config", "classes", "engine", "intensities", "object_diameter", "iteration")
    about = {key: state[key] for key in kept if key in state}
    write_weights(output, Weights(model, about=about))
    return about


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items()
    )


def _is_average(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and _is_state(value.get("model")) and "updates" in value)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


# Parts of a checkpoint: a check of the value, and its description for messages.
_PARTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is_state, "a mapping of names to tensors"),
    "ema": (_is_average, "None, or a mapping of names to tensors in `model`, and the number of updates"),
    "config": (_is_named, "a mapping of keys to values"),
    "classes": (_is_names, "a list of names"),
    "engine": (lambda value: isinstance(value, str), "a name"),
    "iteration": (_is_count, "an integer of 0 or more"),
    "position": (_is_count, "an integer of 0 or more"),
    "optimizer": (
        lambda value: _is_named(value) and {"state", "param_groups"} <= value.keys(),
        "state and param_groups",
    ),
    "rng": (_is_named, "states of random generators by name"),
    "rng_of_others": (
        lambda value: isinstance(value, list) and all(map(_is_named, value)),
        "a list of states of random generators",
    ),
    "progress": (lambda value: _is_named(value) and {"best", "window"} <= value.keys(), "best and window"),
    "trained_images": (
        lambda value: isinstance(value, torch.Tensor) and value.dtype == torch.int64 and value.ndim == 1,
        "a vector of integers",
    ),
    "object_diameter": (
        lambda value: type(value) in (int, float) and 0 < value < math.inf,
        "a diameter in pixels",
    ),
    "environment": (_is_named, "a mapping of names to versions"),
}


def keep_numbered(last: Path, iteration: int, keep: int) -> None:
    """Keep the newest `keep` periodic checkpoints under their own names, iteration_N.pth, if keep is above 1.

    The newest of them is a hard link to `last` if the file system has hard links.
    """
    if keep <= 1:
        return
    copy = last.with_name(f"iteration_{iteration:07d}.pth")
    if not copy.exists():
        try:
            os.link(last, copy)
        except OSError:
            with open(last, "rb") as source:
                write_atomically(copy, lambda file: shutil.copyfileobj(source, file))
    for old in sorted(last.parent.glob("iteration_*.pth"))[:-keep]:
        old.unlink(missing_ok=True)


def to_plain(value: Any) -> Any:
    """Copy nested containers: tensors unchanged, NumPy values as Python's, tuples as lists.

    Raises:
        TypeError: a value of any other type.
    """
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values only, not {type(value)}: {value!r}")
