"""Child processes that end with their parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """End this process, started by `multiprocessing`, as soon as its parent ends, however it ends.

    A daemonic process ends when its parent exits normally, but not when the parent is killed.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def end_with_input() -> None:
    """End this process at the end of its standard input: a pipe is closed when the process that holds it ends."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os._exit(1)

    threading.Thread(target=wait, name="input", daemon=True).start()
