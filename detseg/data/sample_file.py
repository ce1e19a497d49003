"""One decoded sample in one file, read by mapping it into memory.

Layout: the magic bytes, the length of the header (uint32, little-endian), the header (JSON: of each array its dtype,
shape and offset; metadata), then the arrays, each at a multiple of 64 bytes. Labels are kept in 16 bits where they fit.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

_MAGIC = b"detseg1\n"
_ALIGNMENT = 64
_PREFIX = struct.Struct("<8sI")


def pack_sample(sample: Sample) -> list[bytes | memoryview]:
    """Return the pieces of the file of a sample with layers: image, layers, classes, ignore, metadata (as JSON)."""
    assert sample.layers is not None
    labels = sample.layers.layers
    arrays = {
        "image": sample.image,
        "layers": labels.astype(np.uint16) if len(sample.layers) < 2**16 else labels,
        "classes": sample.classes,
    }
    if sample.ignore is not None:
        arrays["ignore"] = sample.ignore
    header, offset = {}, 0
    for name, array in arrays.items():
        header[name] = [array.dtype.str, array.shape, offset]
        offset += _padded(array.nbytes)
    text = json.dumps({"arrays": header, "bytes": offset, "metadata": sample.metadata}).encode()
    start = _padded(_PREFIX.size + len(text))
    pieces: list[bytes | memoryview] = [_PREFIX.pack(_MAGIC, len(text)) + text.ljust(start - _PREFIX.size)]
    for array in arrays.values():
        pieces += [memoryview(np.ascontiguousarray(array)).cast("B"), bytes(_padded(array.nbytes) - array.nbytes)]
    return pieces


def read_sample_file(path: Path) -> Sample | None:
    """Return the sample of such a file, without id and name; None where the file is absent or not whole.

    The image is read-only and stays in the file until it is looked at.
    """
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # not there; an empty file cannot be mapped
        return None
    header = _read_header(mapped)
    if header is None:
        return None
    found = {
        name: np.frombuffer(mapped, np.dtype(dtype), math.prod(shape), header["start"] + offset).reshape(shape)
        for name, (dtype, shape, offset) in header["arrays"].items()
    }
    ignore = found.get("ignore")
    return Sample(
        image=found["image"],
        layers=LabelLayers(found["layers"].astype(np.int32), len(found["classes"])),
        classes=found["classes"].copy(),
        ignore=None if ignore is None else ignore.copy(),
        metadata=header["metadata"],
    )


def _read_header(mapped: mmap.mmap) -> dict[str, Any] | None:
    """Return the header, with `start`, where the arrays begin; None for a file that is not whole."""
    if len(mapped) < _PREFIX.size:
        return None
    magic, length = _PREFIX.unpack(mapped[: _PREFIX.size])
    if magic != _MAGIC:
        return None
    start = _padded(_PREFIX.size + length)
    header = json.loads(mapped[_PREFIX.size : _PREFIX.size + length])
    return {**header, "start": start} if len(mapped) == start + header["bytes"] else None


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
