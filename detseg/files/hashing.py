"""Fingerprints of files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Return the first 16 digits of the SHA-256, which tell files apart by their content."""
    return sha256_of(path)[:16]
