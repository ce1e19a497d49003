"""Open untrusted files: regular files only, with a limit on their unpacked size."""

from __future__ import annotations

import gzip
import io
import os
import stat
from pathlib import Path
from typing import IO, BinaryIO

from detseg.errors import DataError

# Unpacked bytes allowed for any file, and per packed byte. Polygons and run lengths compress to a third or a tenth;
# only files made to exhaust memory compress to a thousandth.
_ALWAYS, _PER_BYTE = 2**26, 50


def unpacked_limit(packed: int) -> int:
    """Return the largest unpacked size, in bytes, that is accepted for `packed` bytes of gzip or zip."""
    return _ALWAYS + _PER_BYTE * packed


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise DataError for pipes, sockets and devices, which might block for ever.

    Missing and inaccessible files pass; opening them raises the error.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise DataError(f"{path}: is a {kind}; expected a file: write the data to one first")


def open_plain_or_gzip(path: Path) -> BinaryIO:
    """Open a plain or gzip-compressed file (told by its first bytes) for reading the unpacked content.

    Raises OSError, and DataError for a folder; reading raises EOFError or zlib.error for a broken gzip file, DataError
    if the content is larger than `unpacked_limit`.
    """
    check_regular(path)
    if os.path.isdir(path):
        raise DataError(
            f"{path}: is a folder; expected a COCO or Predictions file, .json or .json.gz. To convert label images, "
            "use `detseg prepare label_images` (to a COCO file) or `detseg fuse --inputs FOLDER --ground-truth FILE` "
            "(to a Predictions file)"
        )
    file = open(path, "rb")  # noqa: SIM115 (it is returned)
    is_packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return io.BufferedReader(_Unpacked(path, file)) if is_packed else file


class _Unpacked(io.RawIOBase):
    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file, self._unpacked = path, file, gzip.GzipFile(fileobj=file)
        self._left = unpacked_limit(os.fstat(file.fileno()).st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        count = self._unpacked.readinto(buffer)  # type: ignore[arg-type]
        self._left -= count
        if self._left < 0:
            raise DataError(
                f"{self._path}: unpacks to more than {_PER_BYTE} times its size, which no list of objects does; if "
                "the file is right, unpack it with gunzip and give the unpacked file"
            )
        return count

    def close(self) -> None:
        self._unpacked.close()
        self._file.close()
        super().close()
