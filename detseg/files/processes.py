"""Processes that another one started."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """End this process, which `multiprocessing` started, as soon as its parent is gone, however that ended.

    Daemonic processes are ended by a parent that leaves Python, not by one that is killed.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def end_with_input() -> None:
    """End this process as soon as its standard input does: that of a pipe ends with the process that holds it."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os._exit(1)

    threading.Thread(target=wait, name="input", daemon=True).start()
