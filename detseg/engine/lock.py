"""A lock on a folder that the operating system releases when its process ends, however it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO

from detseg.engine.files import writing
from detseg.errors import RunError
from detseg.structures.file_lock import try_lock

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
