"""A data set that goes to worker processes with its annotations in one file, which all of them map into memory."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset

# Annotations go to started (not forked) workers with all else up to this size in bytes, beyond it through a file.
PICKLED_AT_MOST = 16 * 2**20


class SharedDataset:
    """Holds a data set; where this is pickled, the text of a large one lies in a file and is not pickled.

    The other processes must end before this one. Forked workers share the text without any of this.
    """

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset
        self._text_file: _TextFile | None = None

    def __getstate__(self) -> dict[str, Any]:
        dataset = self.dataset
        table = dataset.table
        if table.text.nbytes <= PICKLED_AT_MOST:
            return {"dataset": dataset, "text": None}
        self._text_file = self._text_file or _TextFile(table.text)
        light = dataclasses.replace(table, text=np.zeros(0, dtype=np.uint8))
        dataset = CocoDataset(dataset.images, dataset.categories, light, dataset.name, dataset.origins)
        return {"dataset": dataset, "text": str(self._text_file.path)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.dataset = state["dataset"]
        self._text_file = None
        if state["text"]:
            text = np.memmap(state["text"], dtype=np.uint8, mode="r")
            self.dataset.table = dataclasses.replace(self.dataset.table, text=text)


class _TextFile:
    """The text of a large data set in a temporary file, which all worker processes map into memory: one copy for all.

    Not shared memory: containers have little of it. The file goes with this object, at the latest when Python ends.
    """

    def __init__(self, text: np.ndarray) -> None:
        descriptor, name = tempfile.mkstemp(prefix="detseg-annotations-")
        self.path = Path(name)
        with open(descriptor, "wb") as file:
            file.write(memoryview(text))
        # Where workers still map the file, Windows keeps it; it lies in the folder for temporary files.
        self._finalizer = weakref.finalize(self, _remove_quietly, self.path)


def _remove_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
