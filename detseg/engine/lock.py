"""A lock on a folder that the operating system releases when its process ends, however it ends."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import IO

from detseg.engine.files import writing
from detseg.errors import RunError

logger = logging.getLogger(__name__)

# Record locks do not exclude the process that holds them, so folders locked by this one are remembered.
_held_here: set[str] = set()


class FolderLock:
    """Exclusive use of a folder by one process.

    Linux, macOS: a POSIX record lock, which worker processes do not inherit (flock they would, and hold it after the
    training was killed). Windows: a byte-range lock.

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
        if not _try_lock(self._file):
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


def _try_lock(file: IO[str]) -> bool:
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
        # Some network file systems have no locks; training there is still possible.
        logger.warning("%s cannot be locked (%s): do not start a second training in this folder", file.name, error)
    return True
