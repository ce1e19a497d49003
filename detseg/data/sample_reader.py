"""Images of a data set, decoded and prepared, from their files or from a cache."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.data.preprocess import ImagePreprocess
from detseg.data.sample_cache import SampleCache
from detseg.files.atomic import remove_temporaries, temporary_ending
from detseg.structures.sample import Sample
from detseg.version import __version__

# Annotations go to started (not forked) workers with all else up to this size in bytes, beyond it through a file.
PICKLED_AT_MOST = 16 * 2**20


class SampleReader:
    """Reads samples of a data set: the image prepared (not expanded: see `ImagePreprocess.expand`), its objects.

    Where it is pickled, the annotations of a large data set are written to a file, which all worker processes map into
    memory; the other processes must end before this one. Forked workers share them without any of this.
    """

    def __init__(self, dataset: CocoDataset, preprocess: ImagePreprocess, cache: SampleCache | None = None) -> None:
        self.dataset = dataset
        self._preprocess = preprocess
        self._cache = cache
        self._names: dict[int, str] = {}
        self._text_file: _TextFile | None = None

    def read(self, index: int) -> Sample:
        """Read image number `index`; its arrays may be read-only. Raises DataError where it cannot be read."""
        name = None if self._cache is None else self._names.get(index) or self._name_in_cache(index)
        if name is None:
            return self._read(index)
        self._names[index] = name
        cached = self._cache.get(name)
        if cached is None:
            sample = self._read(index)
            self._cache.put(name, sample)
            return sample
        record = self.dataset.images[index]
        return dataclasses.replace(cached, image_id=record.image_id, file_name=record.file_name)

    def _read(self, index: int) -> Sample:
        sample = self.dataset.read_sample(index)
        image = self._preprocess.prepare(sample.image, source=sample.file_name, facts=sample.metadata)
        return dataclasses.replace(sample, image=image)

    def _name_in_cache(self, index: int) -> str | None:
        """Return a hash of all that a sample is made of; None where the image file is not there."""
        record, table = self.dataset.images[index], self.dataset.table
        try:
            status = record.path.stat()
        except OSError:
            return None
        rows = table.rows(index)
        known = (
            __version__,
            str(record.path.absolute()),
            status.st_size,
            status.st_mtime_ns,
            record.height,
            record.width,
            self._preprocess,
            record.metadata,
            table.classes[rows].tolist(),
            table.crowd[rows].tolist(),
        )
        digest = hashlib.blake2b(repr(known).encode("utf-8", "surrogateescape"), digest_size=16)
        for start, end in zip(table.starts[rows], table.ends[rows], strict=True):
            digest.update(table.text[start:end])
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        dataset, table = self.dataset, self.dataset.table
        if table.text.nbytes <= PICKLED_AT_MOST:
            return self.__dict__
        self._text_file = self._text_file or _TextFile(table.text)
        light = dataclasses.replace(table, text=np.zeros(0, dtype=np.uint8))
        dataset = CocoDataset(dataset.images, dataset.categories, light, dataset.name, dataset.origins)
        return {**self.__dict__, "dataset": dataset, "_text_file": None, "text_path": str(self._text_file.path)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        path = state.pop("text_path", None)
        self.__dict__.update(state)
        if path is not None:
            text = np.memmap(path, dtype=np.uint8, mode="r")
            self.dataset.table = dataclasses.replace(self.dataset.table, text=text)


class _TextFile:
    """The annotations of a large data set in a temporary file, one copy for all processes.

    Not shared memory: containers have little of it. The file is removed with this object, or when Python ends.
    """

    def __init__(self, text: np.ndarray) -> None:
        remove_temporaries(Path(tempfile.gettempdir()))  # of trainings that were killed
        descriptor, name = tempfile.mkstemp(prefix="detseg-annotations-", suffix=temporary_ending())
        self.path = Path(name)
        with open(descriptor, "wb") as file:
            file.write(memoryview(text))
        self._finalizer = weakref.finalize(self, _remove_quietly, self.path)


def _remove_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):  # where workers still map the file, Windows keeps it
        path.unlink()
