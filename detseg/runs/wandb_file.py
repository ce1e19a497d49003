"""W&B's local file of a run: what a killed training had logged, and the content of an offline run.

`run-ID.wandb` is a LevelDB log: blocks of 32 KiB with pieces of records, each preceded by a checksum of 4 bytes, a
length of 2 and a kind of 1. The records are protocol buffers, defined in the wandb package.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detseg.errors import RunError

_BLOCK = 32 * 1024
_HEADER = 7  # bytes, of the file and of each piece
_WHOLE, _LAST = 1, 4  # kinds of a piece that end a record


def run_files(folder: Path, run_id: str) -> list[Path]:
    """Return the files of all processes that logged to a run, oldest first; `folder` is the `dir` of wandb.init."""
    found = [*folder.glob(f"wandb/*run-*-{run_id}*/run-{run_id}.wandb")]
    return sorted(found, key=lambda path: path.parent.name.removeprefix("offline-"))


def read_records(path: Path) -> Iterator[Any]:
    """Yield the records (wandb.proto.wandb_internal_pb2.Record) up to the end, or to where a crash truncated the file.

    Raises:
        RunError: the file is not one of W&B.
    """
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    if data and data[:4] != b":W&B":
        raise RunError(f"{path} is not the file of a W&B run: it begins with {data[:4]!r}, expected b':W&B'")
    position, record = _HEADER, b""
    while position + _HEADER <= len(data):
        rest = _BLOCK - position % _BLOCK
        if rest < _HEADER:
            position += rest
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        piece = data[position + _HEADER : position + _HEADER + length]
        if kind == 0 or len(piece) < length:
            return
        record += piece
        position += _HEADER + length
        if kind in (_WHOLE, _LAST):
            parsed = wandb_internal_pb2.Record()
            parsed.ParseFromString(record)
            record = b""
            yield parsed


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the logged rows by full names; `_step` is their step."""
    rows = []
    for record in read_records(path):
        if record.WhichOneof("record_type") == "history":
            rows.append(
                {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            )
    return rows
