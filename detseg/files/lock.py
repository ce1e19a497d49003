"""Locks between processes, by a file, that the operating system frees when their holder dies, however it dies."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from detseg.errors import RunError
from detseg.files.atomic import writing

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


@contextlib.contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path` (made where absent, never removed) for the `with` block; wait while another has it.

    Not for threads of one process, which do not exclude each other. Where the file system has no locks, a warning is
    logged and the block runs without.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        told = False
        while not try_lock(file):
            if not told:
                logger.info("waiting for another process that holds %s", path)
                told = True
            time.sleep(_POLL_SECONDS)
        # Closing the file frees the lock, on every system.
        yield


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file for this process alone until it is closed; False where another process has it.

    Linux, macOS: a POSIX record lock, which child processes do not inherit (flock they would, and hold it after their
    parent was killed). Windows: a byte-range lock. Where the file system has no locks, as some on a network, a warning
    is logged and the answer is True.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        logger.warning("%s cannot be locked (%s): do not start a second process now", file.name, error)
    return True


# A lock on a folder that the operating system releases when its process ends, however it ends.

# Record locks do not exclude the process that holds them, so folders locked by this one are remembered.
_held_here: set[str] = set()


class FolderLock:
    """Exclusive use of a folder by one process.

    Args:
        folder: must exist; the file `.lock` in it is made and stays.

    Raises:
        RunError: another process uses the folder, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._key = str(folder.resolve())
        if self._key in _held_here:
            raise RunError(f"{folder} is in use by this process already")
        with writing(self.path):
            self._file: IO[str] | None = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 (held until release)
        if not try_lock(self._file):
            holder = self._holder()
            self._file.close()
            raise RunError(f"{folder} is in use by another process{holder}: wait for it, or name another OUTPUT_DIR")
        _held_here.add(self._key)
        if sys.platform != "win32":  # there the locked byte cannot be written around
            self._file.truncate(0)
            self._file.write(f"{os.getpid()}\n")
            self._file.flush()

    def release(self, *, remove: bool = False) -> None:
        """Let others use the folder; `remove` takes the lock's file away too."""
        if self._file is not None:
            if remove and sys.platform != "win32":  # while it is held, so that nobody else's is removed
                self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
            _held_here.discard(self._key)

    def _holder(self) -> str:
        if sys.platform == "win32":
            return ""
        text = self.path.read_text(encoding="utf-8", errors="replace").strip()
        return f" (process {text})" if text.isdigit() else ""
