"""One process at a time makes what several want: a lock that waits, and that the system frees when its holder dies."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

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
        while not _try_lock(file):
            if not told:
                logger.info("waiting for another process that holds %s", path)
                told = True
            time.sleep(_POLL_SECONDS)
        # Closing the file frees the lock, on every system.
        yield


def _try_lock(file: IO[bytes]) -> bool:
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
