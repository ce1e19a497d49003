"""Which images a model was trained with: stored in its checkpoints, and said of every image that it predicts.

An image is known by the content of its file, whatever its name and folder are.
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

# In the `info` of a Predictions file, and of what is made of it.
FIELD = "trained_images"
# More keys than this are no list of training images (8 bytes each).
_MOST_KEYS = 10_000_000


@dataclass(frozen=True)
class TrainedImages:
    """keys: (N,) int64, ascending, the `content_key` of every image."""

    keys: np.ndarray

    @classmethod
    def of_records(cls, records: Sequence[ImageRecord]) -> TrainedImages:
        """Raises DataError where a file cannot be read."""
        with ThreadPoolExecutor(max_workers=8) as pool:  # they wait for the disk
            return cls(np.unique(np.fromiter(pool.map(content_key, records), dtype=np.int64)))

    @classmethod
    def from_stored(cls, stored: Any) -> TrainedImages | None:
        """What a checkpoint holds, a tensor (N,) int64 of `keys`; None where it is anything else."""
        keys = stored.numpy() if hasattr(stored, "numpy") else None
        fits = keys is not None and keys.dtype == np.int64 and keys.ndim == 1
        return cls(np.unique(keys)) if fits else None

    @classmethod
    def from_plain(cls, stored: Any) -> TrainedImages | None:
        """What `to_plain` returned, as a JSON file gives it; None where it is anything else."""
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
        """16 hexadecimal digits that tell these images apart, whatever their order."""
        return hashlib.sha256(self.keys.tobytes()).hexdigest()[:16]

    def __or__(self, other: TrainedImages | None) -> TrainedImages:
        return self if other is None else TrainedImages(np.union1d(self.keys, other.keys))

    def __contains__(self, record: ImageRecord) -> bool:
        key = content_key(record)
        position = int(np.searchsorted(self.keys, key))
        return position < len(self.keys) and int(self.keys[position]) == key


def was_in_training(record: ImageRecord, models: Sequence[TrainedImages | None]) -> bool | None:
    """Whether one of several models was trained with an image; None where that is not known of all."""
    try:
        known = [record in images for images in models if images is not None]
    except DataError:  # no file, or one that cannot be read any more
        return None
    if any(known):
        return True
    return False if len(known) == len(models) else None
