"""What a detector says about the tiles of an image, kept until they are put together: in memory, or in a folder.

In a folder every tile is a file, so that work that was interrupted goes on, and several processes share it.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.structures.predictions import Predictions


class TileAnswers(ABC):
    """The answer of every tile, by its index; in pixels of the tile."""

    @abstractmethod
    def __contains__(self, index: int) -> bool: ...

    @abstractmethod
    def put(self, index: int, answer: Predictions) -> None: ...

    @abstractmethod
    def get(self, index: int) -> Predictions: ...


class AnswersInMemory(TileAnswers):
    """For an image whose objects fit into memory twice."""

    def __init__(self) -> None:
        self._answers: dict[int, Predictions] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._answers

    def put(self, index: int, answer: Predictions) -> None:
        self._answers[index] = answer

    def get(self, index: int) -> Predictions:
        return self._answers[index]


class AnswersInFolder(TileAnswers):
    """One file a tile. what: plain values that say what is computed: each gets a folder of its own below `folder`.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], what: Mapping[str, Any]) -> None:
        text = json.dumps(what, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: the tiles that are done cannot be kept here ({error})") from None

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npz"

    def __contains__(self, index: int) -> bool:
        return self._path(index).is_file()

    def put(self, index: int, answer: Predictions) -> None:
        """Write an answer; the file is there as a whole or not at all. Raises DataError where it cannot be written."""
        temporary = self.folder / f".{index:06d}.{os.getpid()}.npz"
        try:
            np.savez(temporary, **_to_arrays(answer))
            os.replace(temporary, self._path(index))
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise DataError(f"{self._path(index)}: cannot be written ({error})") from None

    def get(self, index: int) -> Predictions:
        """Read an answer. Raises DataError where the file is broken."""
        path = self._path(index)
        try:
            with np.load(path, allow_pickle=False) as stored:
                return _from_arrays(stored)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error}); delete it and predict again") from None


def _to_arrays(answer: Predictions) -> dict[str, np.ndarray]:
    arrays = {
        "size": np.array([answer.height, answer.width]),
        "boxes": answer.boxes,
        "scores": answer.scores,
        "classes": answer.classes,
    }
    if answer.rles is not None:
        texts = [rle["counts"] if isinstance(rle["counts"], bytes) else rle["counts"].encode() for rle in answer.rles]
        arrays["rle_lengths"] = np.array([len(text) for text in texts], dtype=np.int64)
        arrays["rle_text"] = np.frombuffer(b"".join(texts), dtype=np.uint8)
    if answer.soft_masks is not None:
        arrays["soft_sizes"] = np.array([mask.shape for mask in answer.soft_masks], dtype=np.int64).reshape(-1, 2)
        arrays["soft"] = np.concatenate([np.zeros(0, np.uint8), *(mask.ravel() for mask in answer.soft_masks)])
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
