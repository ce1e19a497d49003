"""Locks between processes, by a file, that the operating system frees when their holder dies, however it dies."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

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
