"""The images that a model was trained with: stored in its checkpoints, and in the provenance of its predictions.

An image is identified by the content of its file, independent of name and folder.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.coco.dataset import ImageRecord
from detseg.coco.pairing import content_key
from detseg.errors import DataError

# Key in the `info` of a Predictions file and of files derived from it.
FIELD = "trained_images"
# Larger lists are not training images (8 bytes per key).
_MOST_KEYS = 10_000_000


@dataclass(frozen=True)
class TrainedImages:
    """keys: (N,) int64, ascending, the `content_key` of every image."""

    keys: np.ndarray

    @classmethod
    def of_records(cls, records: Sequence[ImageRecord]) -> TrainedImages:
        """Create from image records. Raises DataError if a file cannot be read."""
        with ThreadPoolExecutor(max_workers=8) as pool:  # I/O-bound
            return cls(np.unique(np.fromiter(pool.map(content_key, records), dtype=np.int64)))

    @classmethod
    def from_stored(cls, stored: Any) -> TrainedImages | None:
        """Create from a checkpoint's tensor (N,) int64 of `keys`; None if it is anything else."""
        keys = stored.numpy() if hasattr(stored, "numpy") else None
        fits = keys is not None and keys.dtype == np.int64 and keys.ndim == 1
        return cls(np.unique(keys)) if fits else None

    @classmethod
    def from_plain(cls, stored: Any) -> TrainedImages | None:
        """Create from the result of `to_plain` in a JSON file; None if it is anything else."""
        try:
            unpacking = zlib.decompressobj()
            data = unpacking.decompress(base64.b64decode(stored["zlib"], validate=True), 8 * _MOST_KEYS)
            keys = np.frombuffer(data, dtype="<i8").astype(np.int64)
        except (KeyError, TypeError, ValueError, binascii.Error, zlib.error):
            return None
        return cls(np.unique(keys)) if unpacking.eof and len(keys) == stored.get("count") else None

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for the `info` of a JSON file: the number of images, and their keys, packed."""
        data = zlib.compress(self.keys.astype("<i8").tobytes(), 6)
        return {"count": len(self.keys), "zlib": base64.b64encode(data).decode("ascii")}

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that identify these images in any order."""
        return hashlib.sha256(self.keys.tobytes()).hexdigest()[:16]

    def __or__(self, other: TrainedImages | None) -> TrainedImages:
        return self if other is None else TrainedImages(np.union1d(self.keys, other.keys))

    def __contains__(self, record: ImageRecord) -> bool:
        key = content_key(record)
        position = int(np.searchsorted(self.keys, key))
        return position < len(self.keys) and int(self.keys[position]) == key


def was_in_training(record: ImageRecord, models: Sequence[TrainedImages | None]) -> bool | None:
    """Whether one of several models was trained with an image; None if that is unknown for any."""
    try:
        known = [record in images for images in models if images is not None]
    except DataError:  # the file is missing or unreadable
        return None
    if any(known):
        return True
    return False if len(known) == len(models) else None
