"""Processes that another one started."""

from __future__ import annotations

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
