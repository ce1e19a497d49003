"""Files of torch.save: reading them runs no code, and takes memory only in proportion to the file's size.

torch.load with weights_only=True runs no code, but trusts the file: an array of 8 GB or a tensor of 16 GB can be
declared in a few bytes. Here the file's pickle is first read with stand-ins, which compare every declared size with
the bytes in the file; only then torch reads it.
"""

from __future__ import annotations

import io
import math
import mmap
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detseg.errors import WeightsError, first_line
from detseg.files.safe_pickle import ALLOWED, Named, loads

# The start of files of torch.save before they were zip archives: a pickled magic number.
OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_DEEPEST = 100  # nested containers; a checkpoint has 6
# A checkpoint may contain a tensor several times, such as tied weights; more copies are meant to exhaust memory.
_MOST_COPIES = 4
_ELEMENT_BYTES = {
    "Byte": 1,
    "Char": 1,
    "Bool": 1,
    "Untyped": 1,
    "Short": 2,
    "Half": 2,
    "BFloat16": 2,
    "Int": 4,
    "Float": 4,
    "Long": 8,
    "Double": 8,
    "ComplexFloat": 8,
    "ComplexDouble": 16,
}


def read_torch_file(path: Path) -> Any:
    """Read a file of torch.save onto the CPU: dense tensors and plain values, in dicts, lists and tuples.

    Raises:
        WeightsError: truncated, not a file of torch.save, with other content, or with sizes beyond the file.
    """
    try:
        with path.open("rb") as file:
            is_archive = file.read(2) == b"PK"
        _check_archive(path) if is_archive else _check_old_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        return _plain(content, 0, {}, [_MOST_COPIES * path.stat().st_size + 2**20])
    except WeightsError:
        raise
    except Exception as error:  # a hostile file can make the readers fail in any way
        raise WeightsError(
            f"{path}: cannot be read ({_reason(error)}); expected a .pth file of tensors and plain values, as written "
            "by detseg and Detectron2. It may be truncated, or another kind of file; get another "
            "copy"
        ) from None


def _reason(error: Exception) -> str:
    """The first line of an error; the rest of torch's own explains how to load the file unsafely."""
    line = first_line(error)
    is_torchs = line.startswith("Weights only load failed")
    return "damaged, or contains more than tensors and plain values" if is_torchs else line


def _check_archive(path: Path) -> None:
    """Refuse zip archives that torch.save cannot have written, and sizes beyond the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            sizes = {entry.filename: entry.file_size for entry in entries}
            top = entries[0].filename.split("/")[0] if entries else ""
            if any(name.split("/")[-1] == "constants.pkl" for name in sizes):
                raise WeightsError(
                    f"{path}: is a TorchScript program, not weights; save the model's state_dict instead"
                )
            if f"{top}/data.pkl" not in sizes:
                raise WeightsError(
                    f"{path}: is a zip archive, but not a PyTorch checkpoint (it has no data.pkl); unpack it first"
                )
            unpacked = sum(entry.file_size for entry in entries)
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or unpacked > path.stat().st_size:
                raise WeightsError(
                    f"{path}: is a compressed archive, which torch.save does not write, of {unpacked} bytes; if you "
                    "trust it, load it with torch and save it again"
                )
            if len(sizes) < len(entries):
                raise WeightsError(f"{path}: contains two members with the same name, which torch.save does not write")
            pickled = archive.read(f"{top}/data.pkl")
    # For a broken member zipfile raises NotImplementedError, EOFError, struct.error, ...
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise WeightsError(f"{path}: is a zip archive that cannot be read ({error}); it may be truncated") from None
    claims = _Claims()
    claims.read(io.BytesIO(pickled), num_storages=len(entries))
    for key, size in claims.storages.items():
        if size > sizes.get(f"{top}/data/{key}", 0):
            raise WeightsError(f"{path}: a tensor claims {size} bytes, but the file has fewer; it may be truncated")


def _check_old_file(path: Path) -> None:
    """The same for torch before 1.6: pickles of magic number, version, system, content and keys; then storages."""
    claims, size = _Claims(), path.stat().st_size
    # Memory-mapped, because reading beyond the end of a file allocates memory, but not that of a map.
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
        if file.read(len(OLD_TORCH)) != OLD_TORCH:
            raise WeightsError(
                f"{path}: is not a file of torch.save; it may be truncated, or a web page with this name"
            )
        for _ in range(4):
            claims.read(file, num_storages=size // 1024)
    if sum(claims.storages.values()) > size:
        raise WeightsError(
            f"{path}: its tensors claim {sum(claims.storages.values())} bytes, but the file has {size}; it may be "
            "truncated"
        )


class _Storage(NamedTuple):
    length: int  # elements


class _Claims:
    """Reads a pickle of torch.save with stand-ins. storages: key -> size that its tensors claim, bytes."""

    def __init__(self) -> None:
        self.storages: dict[str, int] = {}
        self._allowed = {
            **ALLOWED,
            ("torch._utils", "_rebuild_tensor_v2"): Named(self._tensor),
            ("torch._utils", "_rebuild_tensor"): Named(self._tensor),
            ("torch._utils", "_rebuild_parameter"): Named(lambda tensor, *_: tensor),
            ("torch._utils", "_rebuild_parameter_with_state"): Named(lambda tensor, *_: tensor),
            ("torch._tensor", "_rebuild_from_type_v2"): Named(lambda make, kind, arguments, _: make(*arguments)),
            ("torch", "Size"): Named(tuple),
            ("torch", "device"): Named(lambda *_: None),
            ("torch", "Tensor"): Named(None),
            ("torch.nn.parameter", "Parameter"): Named(None),
            ("collections", "OrderedDict"): Named(OrderedDict),
            ("collections", "Counter"): Named(dict),
            ("__builtin__", "set"): Named(set),
            ("builtins", "set"): Named(set),
        }
        for name, size in _ELEMENT_BYTES.items():
            self._allowed["torch", f"{name}Storage"] = self._allowed["torch.storage", f"{name}Storage"] = size
        numbers = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128"
        self._allowed |= {("torch", name): name for name in numbers.split()}

    def read(self, file: Any, num_storages: int) -> None:
        # Every tensor has about five tuples.
        loads(file, self._allowed, persistent_load=self._storage, more_tuples=8 * num_storages)

    def _storage(self, saved: Any) -> _Storage:
        # ("storage", type, key, device, number of elements), and for old files None or the part of another storage that
        # it is
        _, element_bytes, key, _, length = saved[:5]
        if type(element_bytes) is not int or type(length) is not int or length < 0 or not isinstance(key, str):
            raise ValueError("a tensor's storage is malformed")
        if self.storages.setdefault(key, element_bytes * length) != element_bytes * length:
            raise ValueError(f"the storage {key[:20]} has two sizes")
        return _Storage(length)

    @staticmethod
    def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Storage:
        numbers = (offset, *size, *stride)
        if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a tensor is malformed")
        if len(size) != len(stride) or len(size) > 64:
            raise ValueError("a tensor's shape is malformed")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if all(size) else -1
        # More elements than numbers: the same ones repeated by a stride of 0.
        if last >= storage.length or math.prod(size) > storage.length:
            raise ValueError(f"a tensor of shape {tuple(size)} has only {storage.length} numbers in the file")
        return storage


def _plain(value: Any, depth: int, seen: dict[int, Any], left: list[int]) -> Any:
    """Copy the containers of a file as plain ones. left: [remaining bytes for tensors], counted down."""
    if isinstance(value, Tensor):
        left[0] -= value.numel() * value.element_size()
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise ValueError("it contains a sparse or quantized tensor, or one without data; expected dense ones")
        if left[0] < 0:
            raise ValueError("its tensors repeat the same numbers many times")
        return value.detach()
    if not isinstance(value, (dict, list, tuple)):
        return value
    if depth > _DEEPEST:
        raise ValueError(f"its values are nested more than {_DEEPEST} levels deep")
    if id(value) not in seen:
        if isinstance(value, dict):  # not value.items(), which a file can replace
            plain: Any = {key: _plain(item, depth + 1, seen, left) for key, item in dict.items(value)}
        else:
            plain = [_plain(item, depth + 1, seen, left) for item in value]
            plain = plain if isinstance(value, list) else tuple(plain)
        seen[id(value)] = plain
    return seen[id(value)]
