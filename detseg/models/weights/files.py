"""Files of weights: any format is read, and nothing in a file is ever run; .safetensors and .pth are written."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detseg.errors import WeightsError
from detseg.files.atomic import written_whole
from detseg.files.safe_pickle import as_array, loads

# How torch.save began its files before they were zip archives: a pickled magic number.
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit for safetensors
_ORIGIN = "detseg.origin"  # the key of `Weights.origin` in files
WRITTEN_SUFFIXES = (".safetensors", ".pth")


@dataclass(frozen=True)
class Weights:
    """state: tensors by name. origin: whose training made them, where that asks for a certain input: "torchvision",
    "caffe2"; "" for detseg's and Detectron2's own."""

    state: dict[str, Tensor]
    origin: str = ""


def read_weights(path: str | Path) -> Weights:
    """Read a .pth, .pkl or .safetensors file; its content, not its name, says which it is.

    Raises:
        WeightsError: no such file, no such format, cut off, or with more in it than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file of weights")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if head.startswith((b"PK", _OLD_TORCH)):
        if head.startswith(b"PK"):
            _check_archive(path)
        expected = 'a .pth file of tensors and plain values, {"model": state_dict}, as detseg and Detectron2 write it'
        return _from_content(path, _read(path, _torch_load, expected))
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER:
        return _read_safetensors(path)
    if head.startswith(b"\x80") or path.suffix.lower() in (".pkl", ".pickle"):
        expected = "a pickle of names and NumPy arrays, as model zoos ship them"
        return _from_content(path, _read(path, lambda path: loads(path.read_bytes()), expected))
    raise WeightsError(
        f"{path}: this is neither a .pth, a .pkl nor a .safetensors file (it begins with {head[:8]!r}); is it cut off, "
        "or a web page saved under this name?"
    )


def _torch_load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read(path: Path, read: Callable[[Path], Any], expected: str) -> Any:
    try:
        return read(path)
    except Exception as error:  # a hostile file can make a reader fail in any way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{path}: cannot be read as weights ({reason[:200]}); expected {expected}, and nothing else in it. Is it "
            "cut off, or not what its name says? Take another copy of it"
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse zip archives that torch.save cannot have written, before torch unpacks them."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise WeightsError(f"{path}: is a zip archive that cannot be read ({error}); is it cut off?") from error
    names = [entry.filename.split("/")[-1] for entry in entries]
    if "constants.pkl" in names:
        raise WeightsError(f"{path}: is a TorchScript program, not weights; save the model's state_dict instead")
    if "data.pkl" not in names:
        raise WeightsError(f"{path}: is a zip archive, but no PyTorch checkpoint (no data.pkl in it); unpack it first")
    unpacked = sum(entry.file_size for entry in entries)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or unpacked > path.stat().st_size:
        raise WeightsError(
            f"{path}: is a compressed archive, which torch.save does not write, of {unpacked} bytes; if you trust it, "
            "load it with torch and save it again"
        )


def _from_content(path: Path, content: Any) -> Weights:
    """Find the state_dict in what a file holds: under "model" (detseg, Detectron2), "blobs" (Detectron) or bare."""
    origin: Any = ""
    if isinstance(content, Mapping):
        origin = content.get(_ORIGIN)
        average = content.get("ema")
        if isinstance(average, Mapping) and isinstance(average.get("model"), Mapping):
            content = average["model"]  # the averaged weights are what a run evaluates
        else:
            content = next((content[key] for key in ("model", "blobs", "state_dict") if key in content), content)
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f'{path}: holds no weights; expected {{"model": {{name: tensor}}}} or {{name: tensor}}')
    state = {}
    for name, value in content.items():
        tensor = _as_tensor(path, name, value)
        if tensor is None or not isinstance(name, str):
            raise WeightsError(
                f"{path}: holds no weights: {str(name)[:80]!r} is a {type(value).__name__}; expected "
                '{"model": {name: tensor}} or {name: tensor}'
            )
        state[name] = tensor
    return Weights(state, origin if isinstance(origin, str) else "")


def _as_tensor(path: Path, name: Any, value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value if value.layout == torch.strided and not value.is_quantized else None
    array = as_array(value)
    if array is None:
        return None
    try:
        return torch.from_numpy(array.copy())
    except TypeError as error:
        raise WeightsError(f"{path}: {name} has numbers of a type that torch does not know: {error}") from error


def _read_safetensors(path: Path) -> Weights:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise WeightsError(f"{path}: reading it needs the package safetensors: pip install safetensors") from error
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            origin = (file.metadata() or {}).get(_ORIGIN, "")
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise WeightsError(f"{path}: cannot be read as a safetensors file ({error}); is it cut off?") from error
    if not state:
        raise WeightsError(f"{path}: holds no weights")
    return Weights(state, origin)


def write_weights(path: str | Path, weights: Weights) -> None:
    """Write a .safetensors file, or a .pth file {"model": state_dict, ...} that Detectron2's checkpointer loads.

    The names are to be Detectron2's; a file of only a backbone is marked for its matching by the ends of names.

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
            # Detectron2 then finds a backbone's place in the model, as detseg does.
            torch.save(content | {"matching_heuristics": is_backbone_alone(state)}, temporary)
            return
        try:
            from safetensors.torch import save
        except ImportError as error:
            raise WeightsError(f"{path}: writing it needs the package safetensors: pip install safetensors") from error
        # Not by its save_file, whose files only their owner can read.
        temporary.write_bytes(save(state, metadata={"format": "pt", _ORIGIN: weights.origin}))


def is_backbone_alone(state: Collection[str]) -> bool:
    """Whether the names are Detectron2's of a backbone without the prefix that it has in a model."""
    return "stem.conv1.weight" in state
