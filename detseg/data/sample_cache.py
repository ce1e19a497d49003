"""Cache of decoded samples in files, in memory or on disk, shared by all processes that read them.

A sample is one .npy file, which is memory-mapped. Its name is a hash of all its inputs, so outdated ones are simply not
found. Files are written atomically, and readers need no lock. The total size is stored in a file of the folder and
changed under a lock, so that the limit holds for all processes together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.config.options import Options, key
from detseg.data.preprocess import ImagePreprocess
from detseg.data.pseudo_labels import NO_PSEUDO_LABELS, PseudoLabels
from detseg.errors import DataError
from detseg.files.atomic import remove_temporaries, temporary_ending, written_whole
from detseg.files.lock import try_lock, wait_for_lock
from detseg.files.transfer import cache_folder
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample
from detseg.version import __version__

logger = logging.getLogger(__name__)

_SUFFIX = ".npy"
_HEADER_BYTES = 1024  # more than the header of a sample's file has
_TOTAL, _LOCK, _OWNER = "total.txt", "total.lock", "owner.lock"
_TEMPORARY = "detseg-samples-"
_MEMORY_FOLDER = Path("/dev/shm")  # files here are in memory, on Linux
_POLL_SECONDS = 0.002
_NEW_SECONDS = 60
_GIGABYTE = 10**9
# Arrays of a Sample that may be None.
_OPTIONAL = ("ignore", "object_weights", "certainty")


@dataclass(frozen=True)
class CacheOptions(Options):
    """kind: where decoded samples are cached. gigabytes: limit. folder: for "disk"; empty: in the user's cache."""

    section = "DATALOADER"

    kind: str = key("CACHE", choices=("none", "memory", "disk"))
    gigabytes: float = key("CACHE_SIZE", above=0)
    folder: str = key("CACHE_FOLDER")

    def open(self) -> SampleCache | None:
        """Open the cache; None without one. Raises DataError if its folder cannot be written."""
        limit = round(self.gigabytes * _GIGABYTE)
        if self.kind == "memory":
            return SampleCache.in_memory(limit)
        if self.kind == "disk":
            return SampleCache(
                Path(os.path.expanduser(self.folder)) if self.folder else cache_folder() / "samples", limit
            )
        return None


class SampleCache:
    """Samples by key in `folder`, created if needed, with at most `limit` bytes in total.

    Samples that were not used since this cache was opened make room for new ones; the others are kept, because training
    cycles through all images: removing those needed next would gain nothing.

    Raises DataError if the folder cannot be written.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._opened = time.time()
        self._is_full = False
        self._finalizer: Any = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                for left in folder.glob("??/*.sample"):  # in a former format
                    left.unlink(missing_ok=True)
                self._write_total(self._remove_oldest(limit))
        except OSError as error:
            raise DataError(
                f"{folder}: the folder for decoded samples cannot be written ({error.strerror or error}); set "
                "DATALOADER.CACHE_FOLDER to one that can, or DATALOADER.CACHE none"
            ) from None

    @classmethod
    def in_memory(cls, limit: int) -> SampleCache:
        """Open a cache that is removed together with this object.

        In memory if the system has a folder for that (Linux) with space for `limit` bytes, else in a temporary folder,
        which the system caches in memory as far as possible.
        """
        parent = _MEMORY_FOLDER
        if not os.access(parent, os.W_OK) or shutil.disk_usage(parent).free <= limit:
            parent = Path(tempfile.gettempdir())
            logger.info(
                "DATALOADER.CACHE memory: %s has no space for it, samples are cached in %s", _MEMORY_FOLDER, parent
            )
        _remove_abandoned(parent)
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=parent))
        # Held for the lifetime of this object: a folder with a free lock was left by a killed process.
        owner = try_lock(folder / _OWNER)
        cache = cls(folder, limit)
        cache._finalizer = weakref.finalize(cache, _remove_folder, folder, owner, os.getpid())
        return cache

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_finalizer": None}

    def get(self, name: str) -> Sample | None:
        """Return the sample with this name, without id and file name, its image read-only; None if it is not cached."""
        path = self.folder / f"{name}{_SUFFIX}"
        sample = read_sample(path)
        if sample is not None:
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < self._opened:
                    os.utime(path)  # marks it as used
        return sample

    def put(self, name: str, sample: Sample) -> None:
        """Cache a sample if there is space. Failure to write is logged once."""
        if self._is_full:
            return
        record = pack_sample(sample)
        path = self.folder / f"{name}{_SUFFIX}"
        try:
            if not self._reserve(record.nbytes + _HEADER_BYTES):
                self._is_full = True
                logger.info("%s has reached DATALOADER.CACHE_SIZE: other images are read from files", self.folder)
                return
            with written_whole(path, "a decoded sample") as temporary, open(temporary, "wb") as file:
                np.save(file, record, allow_pickle=False)
        except (OSError, DataError) as error:
            self._is_full = True
            if self.folder.exists():  # else the training has ended and its cache was removed
                logger.warning("%s: decoded samples are no longer cached: %s", self.folder, error)

    def _reserve(self, size: int) -> bool:
        """Reserve `size` bytes, removing unused samples (see the class); False if there is no space."""
        with self._locked():
            try:
                total = int((self.folder / _TOTAL).read_text())
            except (OSError, ValueError):
                total = self._remove_oldest(self.limit)
            if total + size > self.limit:
                # A tenth more than needed, because scanning the folder takes time.
                total = self._remove_oldest(self.limit - size - self.limit // 10, unused_since=self._opened)
            fits = total + size <= self.limit
            self._write_total(total + size if fits else total)
        return fits

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return wait_for_lock(self.folder / _LOCK, poll_seconds=_POLL_SECONDS)

    def _write_total(self, total: int) -> None:
        with written_whole(self.folder / _TOTAL, "the size of the cache") as temporary:
            temporary.write_text(str(total))

    def _remove_oldest(self, allowed: int, *, unused_since: float = math.inf) -> int:
        """Remove least recently used samples until `allowed` bytes are left, but none used after `unused_since`.

        Returns the bytes that are left.
        """
        samples = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith(_SUFFIX):
                status = entry.stat()
                samples.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in samples)
        for used, size, path in sorted(samples):
            if total <= allowed or used >= unused_since:
                break
            with contextlib.suppress(OSError):  # on Windows, if another process has mapped it
                os.unlink(path)
                total -= size
        return total


def pack_sample(sample: Sample) -> np.ndarray:
    """Return a sample with layers as an array of one record, whose fields are the arrays of the sample.

    Labels are stored in 16 bits if they fit; metadata are JSON.
    """
    assert sample.layers is not None
    labels = sample.layers.layers
    fields = {
        "image": sample.image,
        "layers": labels.astype(np.uint16) if len(sample.layers) < 2**16 else labels,
        "classes": sample.classes,
        "metadata": np.frombuffer(json.dumps(sample.metadata).encode(), dtype=np.uint8),
    }
    for name in _OPTIONAL:
        if getattr(sample, name) is not None:
            fields[name] = getattr(sample, name)
    record = np.empty(1, dtype=[(name, array.dtype, array.shape) for name, array in fields.items()])
    for name, array in fields.items():
        record[name][0] = array
    return record


def read_sample(path: Path) -> Sample | None:
    """Return the sample from the .npy file of such a record, without id and name; None if it is missing or broken.

    The image is read-only and stays in the file until it is accessed.
    """
    try:
        # As a plain array: fields of a np.memmap are slower.
        records = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        fields = {name: records[name][0] for name in records.dtype.names}
        return Sample(
            image=fields["image"],
            layers=LabelLayers(fields["layers"].astype(np.int32), len(fields["classes"])),
            classes=fields["classes"].copy(),
            **{name: fields[name].copy() for name in _OPTIONAL if name in fields},
            metadata=json.loads(fields["metadata"].tobytes()),
        )
    except (OSError, EOFError, ValueError, TypeError, LookupError):  # not such a file
        return None


def _remove_abandoned(parent: Path) -> None:
    """Remove folders left by killed processes."""
    for folder in parent.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            # A new folder may not be locked yet.
            is_old = folder.stat().st_mtime < time.time() - _NEW_SECONDS
            lock = try_lock(folder / _OWNER) if is_old and (folder / _OWNER).is_file() else None
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                lock.release()


def _remove_folder(folder: Path, owner: Any, process: int) -> None:
    if os.getpid() != process:  # the exit of a forked worker, which does not own the folder
        return
    owner.release()
    shutil.rmtree(folder, ignore_errors=True)


# Images of a data set, decoded and preprocessed, from their files or from a cache.

# Annotations up to this size in bytes are pickled for started (not forked) workers; larger ones go through a file.
PICKLED_AT_MOST = 16 * 2**20


class SampleReader:
    """Reads samples of a data set: the preprocessed image (not expanded: see `ImagePreprocess.expand`), its objects.

    When it is pickled, the annotations of a large data set are written to a file, which all worker processes map into
    memory; those processes must end before this one. Forked workers share the annotations anyway.

    labels: weights of pseudo-labels.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        preprocess: ImagePreprocess,
        cache: SampleCache | None = None,
        labels: PseudoLabels = NO_PSEUDO_LABELS,
    ) -> None:
        self.dataset = dataset
        self._labels = labels
        self._preprocess = preprocess
        self._cache = cache
        self._names: dict[int, str] = {}
        self._text_file: _TextFile | None = None

    def read(self, index: int) -> Sample:
        """Read image `index`; its arrays may be read-only. Raises DataError if it cannot be read."""
        name = None if self._cache is None else self._names.get(index) or self._name_in_cache(index)
        if name is None:
            return self._labels.weigh_image(self._read(index), self.dataset, index)
        self._names[index] = name
        cached = self._cache.get(name)
        if cached is None:
            sample = self._read(index)
            self._cache.put(name, sample)
        else:
            record = self.dataset.images[index]
            sample = dataclasses.replace(cached, image_id=record.image_id, file_name=record.file_name)
        return self._labels.weigh_image(sample, self.dataset, index)

    def _read(self, index: int) -> Sample:
        sample = self._labels.weigh_objects(self.dataset.read_sample(index), self.dataset, index)
        image = self._preprocess.prepare(sample.image, source=sample.file_name, facts=sample.metadata)
        return dataclasses.replace(sample, image=image)

    def _name_in_cache(self, index: int) -> str | None:
        """Return a hash of all inputs of a sample; None if the image file is missing."""
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
            self._labels.confidence_of(self.dataset, index),
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

    Not shared memory, of which containers have little. The file is removed with this object, or when Python exits.
    """

    def __init__(self, text: np.ndarray) -> None:
        remove_temporaries(Path(tempfile.gettempdir()))  # left by killed trainings
        descriptor, name = tempfile.mkstemp(prefix="detseg-annotations-", suffix=temporary_ending())
        self.path = Path(name)
        with open(descriptor, "wb") as file:
            file.write(memoryview(text))
        self._finalizer = weakref.finalize(self, _remove_quietly, self.path)


def _remove_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):  # Windows keeps the file while workers map it
        path.unlink()
