"""File locks between processes, which the operating system releases when the holder ends, however it ends."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from detseg.errors import RunError
from detseg.files.atomic import writing

if TYPE_CHECKING:
    from filelock import BaseFileLock

logger = logging.getLogger(__name__)

# Errors of file systems without locks, such as some network file systems.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


def try_lock(path: Path) -> BaseFileLock | None:
    """Take the lock file `path`, creating it if absent; return None if it is already held, also by this process.

    The lock is held until `release` or the end of this process; forked children do not inherit it, and the file stays.
    On a file system without locks, a warning is logged and the lock excludes nobody.

    Raises:
        OSError: the file cannot be opened.
    """
    from filelock import FileLock, Timeout  # the import takes 30 ms

    lock = FileLock(path, thread_local=False, preserve_lock_file=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s cannot be locked (%s): do not start a second process now", path, error)
    return lock


@contextmanager
def wait_for_lock(path: Path, *, poll_seconds: float = 0.2) -> Iterator[None]:
    """Hold the lock file `path` during the `with` block; log if waiting for it takes more than a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    started, logged = time.monotonic(), False
    while (lock := try_lock(path)) is None:
        if not logged and time.monotonic() - started > 1:
            logger.info("waiting for another process that holds %s", path)
            logged = True
        time.sleep(poll_seconds)
    try:
        yield
    finally:
        lock.release()


class FolderLock:
    """Exclusive use of a folder by one process.

    Args:
        folder: must exist; the file `.lock` is created in it and stays.

    Raises:
        RunError: the folder is in use or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        with writing(self.path):
            self._lock = try_lock(self.path)
            if self._lock is None:
                raise RunError(f"{folder} is in use by {self._holder()}: wait for it, or name another OUTPUT_DIR")
            if sys.platform != "win32":  # on Windows a locked file cannot be written through another handle
                self.path.write_text(f"{os.getpid()}\n", encoding="utf-8")

    def release(self, *, remove: bool = False) -> None:
        """Release the lock; `remove` also deletes the lock file."""
        if self._lock is not None:
            if remove and sys.platform != "win32":  # before the release, so that no other process's file is deleted
                self.path.unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def _holder(self) -> str:
        text = "" if sys.platform == "win32" else self.path.read_text(encoding="utf-8", errors="replace").strip()
        if text == str(os.getpid()):
            return "this process already"
        return f"another process (process {text})" if text.isdigit() else "another process"
