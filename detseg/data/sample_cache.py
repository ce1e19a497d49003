"""Decoded samples kept in files of a folder, in memory or on the disk, for all processes that read them.

A sample's name is a hash of all that it is made of, so that what changed is simply not found. Files appear whole or not
at all, and readers need no lock. The sum of all sizes stands in a file of the folder, changed under a lock, so that the
limit holds for all processes together.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.data.sample_file import pack_sample, read_sample_file
from detseg.errors import DataError
from detseg.structures.atomic_write import written_whole
from detseg.structures.cache_folder import cache_folder
from detseg.structures.file_lock import try_lock
from detseg.structures.sample import Sample

if TYPE_CHECKING:
    from detseg.config import Config

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
        # Held open as long as this object lives: a folder whose lock is free was left by a process that was killed.
        owner = open(folder / _OWNER, "a+b")  # noqa: SIM115
        try_lock(owner)
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

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.folder / _LOCK, "a+b") as file:
            while not try_lock(file):
                time.sleep(_POLL_SECONDS)
            yield

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
        # This process would get its own locks, and lose them; what is new may not be locked yet.
        own = folder.name.startswith(f"{_VOLATILE}{os.getpid()}-")
        abandoned = False
        with contextlib.suppress(OSError):
            if not own and folder.stat().st_mtime < time.time() - _NEW_SECONDS:
                with open(folder / _OWNER, "r+b") as owner:
                    abandoned = try_lock(owner)
        if abandoned:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_folder(folder: Path, owner: Any, process: int) -> None:
    if os.getpid() != process:  # a forked worker ends: the folder is not its own
        return
    owner.close()
    shutil.rmtree(folder, ignore_errors=True)
