"""Decoded samples kept in files of a folder, in memory or on the disk, for all processes that read them.

A sample's name is a hash of all that it is made of, so that what changed is simply not found. Files appear whole or not
at all, and readers need no lock. The sum of all sizes stands in a file of the folder, changed under a lock, so that the
limit holds for all processes together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import mmap
import os
import shutil
import struct
import tempfile
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detseg import __version__
from detseg.coco.dataset import CocoDataset
from detseg.data.preprocess import ImagePreprocess
from detseg.data.shared_dataset import SharedDataset
from detseg.errors import DataError
from detseg.files.atomic import written_whole
from detseg.files.lock import try_lock, wait_for_lock
from detseg.files.transfer import cache_folder
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from detseg.config import Config


# One decoded sample in one file, read by mapping it into memory.
#
# Layout: the magic bytes, the length of the header (uint32, little-endian), the header (JSON: of each array its dtype,
# shape and offset; metadata), then the arrays, each at a multiple of 64 bytes. Labels are kept in 16 bits where they
# fit.

_MAGIC = b"detseg1\n"
_ALIGNMENT = 64
_PREFIX = struct.Struct("<8sI")


def pack_sample(sample: Sample) -> list[bytes | memoryview]:
    """Return the pieces of the file of a sample with layers: image, layers, classes, ignore, metadata (as JSON)."""
    assert sample.layers is not None
    labels = sample.layers.layers
    arrays = {
        "image": sample.image,
        "layers": labels.astype(np.uint16) if len(sample.layers) < 2**16 else labels,
        "classes": sample.classes,
    }
    if sample.ignore is not None:
        arrays["ignore"] = sample.ignore
    header, offset = {}, 0
    for name, array in arrays.items():
        header[name] = [array.dtype.str, array.shape, offset]
        offset += _padded(array.nbytes)
    text = json.dumps({"arrays": header, "bytes": offset, "metadata": sample.metadata}).encode()
    start = _padded(_PREFIX.size + len(text))
    pieces: list[bytes | memoryview] = [_PREFIX.pack(_MAGIC, len(text)) + text.ljust(start - _PREFIX.size)]
    for array in arrays.values():
        pieces += [memoryview(np.ascontiguousarray(array)).cast("B"), bytes(_padded(array.nbytes) - array.nbytes)]
    return pieces


def read_sample_file(path: Path) -> Sample | None:
    """Return the sample of such a file, without id and name; None where the file is absent or not whole.

    The image is read-only and stays in the file until it is looked at.
    """
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # not there; an empty file cannot be mapped
        return None
    header = _read_header(mapped)
    if header is None:
        return None
    found = {
        name: np.frombuffer(mapped, np.dtype(dtype), math.prod(shape), header["start"] + offset).reshape(shape)
        for name, (dtype, shape, offset) in header["arrays"].items()
    }
    ignore = found.get("ignore")
    return Sample(
        image=found["image"],
        layers=LabelLayers(found["layers"].astype(np.int32), len(found["classes"])),
        classes=found["classes"].copy(),
        ignore=None if ignore is None else ignore.copy(),
        metadata=header["metadata"],
    )


def _read_header(mapped: mmap.mmap) -> dict[str, Any] | None:
    """Return the header, with `start`, where the arrays begin; None for a file that is not whole."""
    if len(mapped) < _PREFIX.size:
        return None
    magic, length = _PREFIX.unpack(mapped[: _PREFIX.size])
    if magic != _MAGIC:
        return None
    start = _padded(_PREFIX.size + length)
    header = json.loads(mapped[_PREFIX.size : _PREFIX.size + length])
    return {**header, "start": start} if len(mapped) == start + header["bytes"] else None


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


logger = logging.getLogger(__name__)

_SUFFIX = ".sample"
_TALLY, _LOCK, _OWNER = "total.txt", "total.lock", "owner.lock"
_VOLATILE = "detseg-samples-"
_MEMORY_FOLDER = Path("/dev/shm")  # files here lie in memory, on Linux
_POLL_SECONDS = 0.002
_NEW_SECONDS = 60
_GIGABYTE = 10**9


class SampleCache:
    """Samples by key in `folder`, of `limit` bytes in all.

    Samples that nobody used since this cache was opened make room for new ones; those that were used stay, since
    training asks for all images again and again: throwing out what comes next would help nobody.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._opened = time.time()
        self._full = False
        self._volatile: Any = None

    @classmethod
    def on_disk(cls, folder: Path, limit: int) -> SampleCache:
        """Open the cache of a folder, made where absent; what is beyond the limit is removed.

        Raises DataError where the folder cannot be written.
        """
        cache = cls(folder, limit)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with cache._locked():
                cache._write_total(cache._remove_oldest(cache._sizes(), room=0))
        except OSError as error:
            raise DataError(
                f"{folder}: the folder for decoded samples cannot be written ({error.strerror or error}); set "
                "DATALOADER.CACHE_FOLDER to one that can, or DATALOADER.CACHE none"
            ) from None
        return cache

    @classmethod
    def in_memory(cls, limit: int) -> SampleCache:
        """Open a cache that goes with this object: in memory where the system has a folder for that (Linux) with room
        for `limit` bytes, else in a temporary folder, of which the system keeps in memory what it can.
        """
        parent = _MEMORY_FOLDER
        if not _has_room(parent, limit):
            parent = Path(tempfile.gettempdir())
            logger.info(
                "DATALOADER.CACHE memory: %s has no room for it, samples are kept in %s", _MEMORY_FOLDER, parent
            )
        _remove_abandoned(parent)
        folder = Path(tempfile.mkdtemp(prefix=f"{_VOLATILE}{os.getpid()}-", dir=parent))
        cache = cls.on_disk(folder, limit)
        # Held as long as this object lives: a folder whose lock is free was left by a process that was killed.
        owner = try_lock(folder / _OWNER)
        cache._volatile = weakref.finalize(cache, _remove_folder, folder, owner, os.getpid())
        return cache

    @classmethod
    def from_config(cls, cfg: Config) -> SampleCache | None:
        """Open the cache of DATALOADER.CACHE, CACHE_SIZE and CACHE_FOLDER; None for none."""
        limit = round(cfg.DATALOADER.CACHE_SIZE * _GIGABYTE)
        if cfg.DATALOADER.CACHE == "memory":
            return cls.in_memory(limit)
        if cfg.DATALOADER.CACHE == "disk":
            named = cfg.DATALOADER.CACHE_FOLDER
            return cls.on_disk(Path(named).expanduser() if named else cache_folder() / "samples", limit)
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_volatile": None}

    def get(self, key: str) -> Sample | None:
        """Return the sample of a key, without id and name, its image read-only; None where it is not here."""
        path = self._path(key)
        sample = read_sample_file(path)
        if sample is not None:
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < self._opened:
                    os.utime(path)
        return sample

    def put(self, key: str, sample: Sample) -> None:
        """Keep a sample, where there is room for it. That it cannot be written is logged, once."""
        if self._full:
            return
        pieces = pack_sample(sample)
        size = sum(memoryview(piece).nbytes for piece in pieces)
        path = self._path(key)
        try:
            if not self._reserve(size):
                self._full = True
                logger.info("%s holds DATALOADER.CACHE_SIZE: further images are read from their files", self.folder)
                return
            path.parent.mkdir(exist_ok=True)
            with written_whole(path, "a decoded sample") as temporary, open(temporary, "wb") as file:
                file.writelines(pieces)
        except (OSError, DataError) as error:
            self._full = True
            if self.folder.exists():  # else the training is over, and took the cache with it
                logger.warning("%s: decoded samples are no longer kept: %s", self.folder, error)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def _reserve(self, size: int) -> bool:
        """Count `size` bytes more, removing samples that nobody used since this cache was opened; False for no room."""
        with self._locked():
            total = self._read_total()
            if total + size > self.limit:
                # A tenth more than asked for: looking through the folder takes time.
                total = self._remove_oldest(self._sizes(), room=size + self.limit // 10, unused=True)
            fits = total + size <= self.limit
            self._write_total(total + size if fits else total)
        return fits

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return wait_for_lock(self.folder / _LOCK, poll_seconds=_POLL_SECONDS)

    def _read_total(self) -> int:
        try:
            return int((self.folder / _TALLY).read_text())
        except (OSError, ValueError):
            return sum(size for _, size, _ in self._sizes())

    def _write_total(self, total: int) -> None:
        (self.folder / _TALLY).write_text(str(total))

    def _sizes(self) -> list[tuple[float, int, str]]:
        """Return time of the last use, size and path of all samples."""
        found = []
        for part in os.scandir(self.folder):
            if part.is_dir():
                for entry in os.scandir(part.path):
                    with contextlib.suppress(OSError):  # removed by another process
                        status = entry.stat()
                        found.append((status.st_mtime, status.st_size, entry.path))
        return found

    def _remove_oldest(self, samples: list[tuple[float, int, str]], *, room: int, unused: bool = False) -> int:
        """Remove the least recently used samples until `room` bytes are free; return the bytes that are left.

        unused: stop at those that were used since this cache was opened.
        """
        total = sum(size for _, size, _ in samples)
        for used, size, path in sorted(samples):
            if total + room <= self.limit or (unused and used >= self._opened):
                break
            with contextlib.suppress(OSError):  # mapped by another process, on Windows
                os.unlink(path)
                total -= size
        return total


def _has_room(folder: Path, size: int) -> bool:
    try:
        return os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > size
    except OSError:
        return False


def _remove_abandoned(parent: Path) -> None:
    """Remove what processes left that were killed."""
    for folder in parent.glob(f"{_VOLATILE}*"):
        with contextlib.suppress(OSError):
            # What is new may not be locked yet.
            is_old = folder.stat().st_mtime < time.time() - _NEW_SECONDS
            lock = try_lock(folder / _OWNER) if is_old and (folder / _OWNER).is_file() else None
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                lock.release()


def _remove_folder(folder: Path, owner: Any, process: int) -> None:
    if os.getpid() != process:  # a forked worker ends: the folder is not its own
        return
    owner.release()
    shutil.rmtree(folder, ignore_errors=True)


# Images of a data set, decoded and prepared, from their files or from a cache.


class SampleReader:
    """Reads samples of a data set: the image prepared (not expanded: see `ImagePreprocess.expand`), its objects."""

    def __init__(
        self, dataset: CocoDataset | SharedDataset, preprocess: ImagePreprocess, cache: SampleCache | None = None
    ) -> None:
        self._shared = dataset if isinstance(dataset, SharedDataset) else SharedDataset(dataset)
        self._preprocess = preprocess
        self._cache = cache
        self._keys: dict[int, str] = {}

    @property
    def dataset(self) -> CocoDataset:
        return self._shared.dataset

    def read(self, index: int) -> Sample:
        """Read image number `index`; its arrays may be read-only. Raises DataError where it cannot be read."""
        if self._cache is None:
            return self._read(index)
        key = self._keys.get(index) or self._key(index)
        if key is None:
            return self._read(index)
        self._keys[index] = key
        cached = self._cache.get(key)
        if cached is None:
            sample = self._read(index)
            self._cache.put(key, sample)
            return sample
        record = self.dataset.images[index]
        return dataclasses.replace(cached, image_id=record.image_id, file_name=record.file_name)

    def _read(self, index: int) -> Sample:
        sample = self.dataset.read_sample(index)
        image = self._preprocess.prepare(sample.image, source=sample.file_name, facts=sample.metadata)
        return dataclasses.replace(sample, image=image)

    def _key(self, index: int) -> str | None:
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
