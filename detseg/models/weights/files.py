"""Weight files: all formats are read without executing anything in them; .safetensors and .pth are written."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detseg.config.kinds import shorten
from detseg.errors import WeightsError, first_line
from detseg.files.atomic import written_whole
from detseg.files.reading import check_regular
from detseg.files.safe_pickle import as_array, loads
from detseg.models.weights.torch_file import OLD_TORCH, read_torch_file

_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit for safetensors
_ORIGIN = "detseg.origin"  # the key of `Weights.origin` in files
_ABOUT = "detseg.checkpoint"  # that of `Weights.about` in the text of .safetensors files
WRITTEN_SUFFIXES = (".safetensors", ".pth")


@dataclass(frozen=True)
class Weights:
    """state: tensors by name. origin: whose training made them, if that implies a certain input: "torchvision",
    "caffe2"; "" for detseg's and Detectron2's own. trained_images, object_diameter: facts about the training images in
    a checkpoint of detseg. about: its other facts (configuration, classes, ...) in a .safetensors file.
    """

    state: dict[str, Tensor]
    origin: str = ""
    trained_images: Any = None
    object_diameter: Any = None
    about: Any = None


def read_weights(path: str | Path) -> Weights:
    """Read a .pth, .pkl or .safetensors file, recognized by its content, not its name.

    Raises:
        WeightsError: no such file, no such format, truncated, or with anything but tensors and plain values.
    """
    path = Path(path)
    check_regular(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file of weights")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if head.startswith((b"PK", OLD_TORCH)):
        return _from_content(path, read_torch_file(path))
    if _is_safetensors(head):
        return _read_safetensors(path)
    if head.startswith(b"\x80") or path.suffix.lower() in (".pkl", ".pickle"):
        try:
            content = loads(path.read_bytes())
        except Exception as error:  # a malicious file can make the reader fail in any way
            raise WeightsError(
                f"{path}: cannot be read as weights ({first_line(error)}); expected a pickle with only names and NumPy "
                "arrays, as distributed by model zoos. It may be truncated or have the wrong suffix; get another copy"
            ) from None
        return _from_content(path, content)
    raise WeightsError(
        f"{path}: neither a .pth, a .pkl nor a .safetensors file (it begins with {head[:8]!r}); it may be truncated, "
        "or a web page saved under this name"
    )


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like a .safetensors file."""
    try:
        with path.open("rb") as file:
            return _is_safetensors(file.read(16))
    except OSError:
        return False


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER


def _from_content(path: Path, content: Any) -> Weights:
    """Find the state_dict in the content of a file: under "model" (detseg, Detectron2), "blobs" (Detectron) or bare."""
    origin: Any = ""
    trained_images = object_diameter = None
    if isinstance(content, Mapping):
        origin = content.get(_ORIGIN)
        trained_images, object_diameter = content.get("trained_images"), content.get("object_diameter")
        average = content.get("ema")
        if isinstance(average, Mapping) and isinstance(average.get("model"), Mapping):
            content = average["model"]  # a run evaluates the averaged weights
        else:
            content = next((content[key] for key in ("model", "blobs", "state_dict") if key in content), content)
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f'{path}: has no weights; expected {{"model": {{name: tensor}}}} or {{name: tensor}}')
    state: dict[str, Tensor] = {}
    left = 4 * path.stat().st_size + 2**20  # a pickle can name the same array many times
    for name, value in content.items():
        tensor = _as_tensor(path, name, value) if isinstance(name, str) else None
        if tensor is None:
            found = f"is a {type(value).__name__}" if isinstance(name, str) else "is in the place of a name"
            raise WeightsError(
                f"{path}: has no weights: {shorten(name)} {found}; expected "
                '{"model": {name: tensor}} or {name: tensor}'
            )
        left -= tensor.numel() * tensor.element_size()
        if left < 0:
            raise WeightsError(f"{path}: has the same numbers many times; this is not a weight file")
        state[name] = tensor
    return Weights(state, origin if isinstance(origin, str) else "", trained_images, object_diameter)


def _as_tensor(path: Path, name: Any, value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    array = as_array(value)
    if array is None:
        return None
    try:
        return torch.from_numpy(array.copy())
    except TypeError as error:
        raise WeightsError(f"{path}: {name} has a dtype that torch does not support: {error}") from error


def _read_safetensors(path: Path) -> Weights:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise WeightsError(f"{path}: reading it needs the package safetensors: pip install safetensors") from error
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
            metadata = file.metadata() or {}
            about = json.loads(metadata[_ABOUT]) if _ABOUT in metadata else None
    except Exception as error:  # the package passes on torch's exceptions for unsupported dtypes
        raise WeightsError(f"{path}: cannot be read as a safetensors file ({error}); it may be truncated") from None
    if not state:
        raise WeightsError(f"{path}: has no weights")
    object_diameter = about.get("object_diameter") if isinstance(about, dict) else None
    return Weights(state, metadata.get(_ORIGIN, ""), object_diameter=object_diameter, about=about)


def write_weights(path: str | Path, weights: Weights) -> None:
    """Write a .safetensors file, or a .pth file {"model": state_dict, ...} that Detectron2's checkpointer loads.

    Names must be Detectron2's; a file with only a backbone is marked for Detectron2's matching by suffixes.

    Raises:
        WeightsError: another suffix. DataError: it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITTEN_SUFFIXES:
        raise WeightsError(f"{path}: expected a name that ends in {' or '.join(WRITTEN_SUFFIXES)}")
    state = {name: value.detach().clone().contiguous() for name, value in weights.state.items()}
    with written_whole(path, "the weights") as temporary:
        if path.suffix.lower() == ".pth":
            content = {"model": state, "__author__": "detseg", _ORIGIN: weights.origin}
            # Detectron2 then finds a backbone's place in the model like detseg.
            torch.save(content | {"matching_heuristics": is_backbone_alone(state)}, temporary)
            return
        try:
            from safetensors.torch import save
        except ImportError as error:
            raise WeightsError(f"{path}: writing it needs the package safetensors: pip install safetensors") from error
        # Not by save_file, whose files are readable only by their owner.
        metadata = {"format": "pt", _ORIGIN: weights.origin}
        if weights.about is not None:
            metadata[_ABOUT] = json.dumps(weights.about)
        temporary.write_bytes(save(state, metadata=metadata))


def is_backbone_alone(state: Collection[str]) -> bool:
    """Whether the names are Detectron2's for a backbone, without its prefix in a model."""
    return "stem.conv1.weight" in state
