"""The predictions of the tiles of an image, one file a tile, until they are combined.

Work that was interrupted goes on there, and several processes share the tiles of one image.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.files.atomic import written_whole
from detseg.structures.predictions import Predictions


class TileFolder:
    """A folder of tiles' predictions, used like a dictionary by the tile's index.

    computed: plain values that say what is computed: each gets a folder of its own below `folder`.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], computed: Mapping[str, Any]) -> None:
        text = json.dumps(computed, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: the tiles that are done cannot be kept here ({error})") from None

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npz"

    def __contains__(self, index: int) -> bool:
        return self._path(index).is_file()

    def __setitem__(self, index: int, predictions: Predictions) -> None:
        """Write the predictions of a tile. Raises DataError where they cannot be written."""
        with written_whole(self._path(index), "a tile") as temporary, open(temporary, "wb") as file:
            np.savez(file, **_to_arrays(predictions))

    def __getitem__(self, index: int) -> Predictions:
        """Read the predictions of a tile. Raises DataError where the file is broken."""
        path = self._path(index)
        try:
            with np.load(path, allow_pickle=False) as stored:
                return _from_arrays(stored)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error}); delete it and predict again") from None


def _to_arrays(predictions: Predictions) -> dict[str, np.ndarray]:
    arrays = {
        "size": np.array([predictions.height, predictions.width]),
        "boxes": predictions.boxes,
        "scores": predictions.scores,
        "classes": predictions.classes,
    }
    if predictions.rles is not None:
        counts = [rle["counts"] for rle in predictions.rles]
        texts = [text if isinstance(text, bytes) else text.encode() for text in counts]
        arrays["rle_lengths"] = np.array([len(text) for text in texts], dtype=np.int64)
        arrays["rle_text"] = np.frombuffer(b"".join(texts), dtype=np.uint8)
    if predictions.soft_masks is not None:
        arrays["soft_sizes"] = np.array([mask.shape for mask in predictions.soft_masks], dtype=np.int64).reshape(-1, 2)
        arrays["soft"] = np.concatenate([np.zeros(0, np.uint8), *(mask.ravel() for mask in predictions.soft_masks)])
    return arrays


def _from_arrays(stored: Mapping[str, np.ndarray]) -> Predictions:
    height, width = (int(edge) for edge in stored["size"])
    rles = soft = None
    if "rle_text" in stored:
        text = stored["rle_text"].tobytes()
        ends = np.cumsum(stored["rle_lengths"]).tolist()
        rles = [
            {"size": [height, width], "counts": text[start:end]}
            for start, end in zip([0, *ends][: len(ends)], ends, strict=True)
        ]
    if "soft" in stored:
        sizes = stored["soft_sizes"]
        parts = np.split(stored["soft"], np.cumsum(sizes.prod(axis=1))[:-1]) if len(sizes) else []
        soft = [part.reshape(*size) for part, size in zip(parts, sizes.tolist(), strict=True)]
    return Predictions(0, "", height, width, stored["boxes"], stored["scores"], stored["classes"], rles, soft)
