"""Locks between processes: held once, free again when their holder is killed, not inherited by its children."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from detseg.errors import RunError
from detseg.files.lock import FolderLock, try_lock, wait_for_lock

HOLD = """
import os, sys, time
from pathlib import Path
from detseg.files.lock import try_lock
lock = try_lock(Path(sys.argv[1]))
child = os.fork() if hasattr(os, "fork") else 0
if not child and hasattr(os, "fork"):
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""


def test_a_lock_is_held_once_also_within_a_process(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    assert try_lock(tmp_path / "lock") is None
    lock.release()
    with wait_for_lock(tmp_path / "new" / "lock"):
        assert try_lock(tmp_path / "new" / "lock") is None
    with wait_for_lock(tmp_path / "lock"):
        pass
    assert (tmp_path / "lock").is_file()


def test_a_killed_process_frees_its_lock_although_its_children_live(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        child = int(holder.stdout.readline())
        try:
            assert try_lock(tmp_path / "lock") is None
            holder.kill()
            holder.wait(timeout=60)
            with wait_for_lock(tmp_path / "lock"):
                pass
        finally:
            if child:
                os.kill(child, 9)


def test_a_long_wait_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = try_lock(tmp_path / "lock")
    threading.Timer(1.5, lock.release).start()
    with caplog.at_level(logging.INFO), wait_for_lock(tmp_path / "lock", poll_seconds=0.05):
        pass
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting for another process that holds {tmp_path / 'lock'}"
    ]


def test_a_folder_is_used_once_and_its_lock_can_go_with_it(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(RunError, match="in use by this process already"):
        FolderLock(tmp_path)
    lock.release()
    FolderLock(tmp_path).release(remove=True)
    assert not list(tmp_path.iterdir()) or sys.platform == "win32"
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        FolderLock(tmp_path / "file")
