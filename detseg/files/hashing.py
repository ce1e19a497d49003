"""Fingerprints of files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256."""
    return sha256_of(path)[:16]


_BLOCK = 2**14


def fingerprint(path: Path, part: str = "") -> int:
    """Return a 63-bit hash of an image file's size, beginning, middle and end; the rest is not read.

    For a folder (Zarr), its name and its parent's are hashed. part: which image, in a file of several. Raises OSError
    if the file cannot be read.
    """
    digest = hashlib.sha256(part.encode())
    if path.is_dir():
        digest.update("/".join(path.resolve().parts[-2:]).encode("utf-8", "surrogatepass"))
    else:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(str(size).encode())
            for start in (0, max(size - _BLOCK, 0) // 2, max(size - _BLOCK, 0)):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    return int.from_bytes(digest.digest()[:8], "big") >> 1
