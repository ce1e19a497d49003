"""Threads by load: as many as cores are free, one at least, and never more than the user or a container allows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from detseg.errors import ConfigError
from detseg.runs import threads
from detseg.runs.threads import CoreTime, choose_threads, cores_allowed, follow_load, threads_beside


@pytest.fixture(autouse=True)
def threads_as_before(monkeypatch):
    for name in threads.CHOSEN_BY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_load", None)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("others", "cores", "most", "expected"),
    [
        (0.0, 2, 2, 2),
        (0.3, 2, 2, 2),  # what an idle machine does beside
        (0.67, 2, 2, 1),  # one busy process beside two threads of ours
        (1.0, 2, 2, 1),
        (7.0, 2, 2, 1),
        (1.0, 64, 32, 32),
        (48.0, 64, 32, 16),
    ],
)
def test_every_thread_has_a_core_of_its_own(others, cores, most, expected):
    assert threads_beside(others, cores, most) == expected


def test_time_of_this_process_and_its_children_is_not_that_of_others():
    before, after = CoreTime(10.0, busy=100.0, own=50.0), CoreTime(12.0, busy=104.0, own=52.5)
    assert after.used_by_others(before) == pytest.approx(0.75)
    assert before.used_by_others(before) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the load is known on Linux")
def test_a_busy_process_is_seen():
    before = CoreTime.now()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(1.0)
        assert CoreTime.now().used_by_others(before) > 0.1
    finally:
        busy.kill()
        busy.wait()


def test_the_number_follows_the_load(monkeypatch):
    times = iter(
        [
            CoreTime(0, 0, 0),
            CoreTime(3, 3, 0),
            CoreTime(6, 3, 0),
            CoreTime(9, 6, 0),
            CoreTime(12, 6, 0),
            CoreTime(15, 6, 0),
        ]
    )
    monkeypatch.setattr(CoreTime, "now", classmethod(lambda cls: next(times)))
    monkeypatch.setattr(threads, "_cores", lambda: {0, 1})
    torch.set_num_threads(2)
    choose_threads(None)
    assert torch.get_num_threads() == 1, "another program held a core from the start"
    monkeypatch.setattr(threads.time, "monotonic", lambda: 1e9)
    follow_load()
    assert torch.get_num_threads() == 2, "it has ended"
    follow_load()
    assert torch.get_num_threads() == 1, "there is another one"
    choose_threads(None)  # the next command in this process
    assert threads._load.most == 2


@pytest.mark.parametrize("by", ["option", "environment", "torch"])
def test_a_number_that_was_chosen_is_kept(monkeypatch, by):
    chosen = 1 if by == "torch" else 2
    torch.set_num_threads(chosen)
    if by == "environment":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(threads, "threads_beside", lambda *_: 7)
    choose_threads(2 if by == "option" else None)
    follow_load()
    assert torch.get_num_threads() == chosen
    with pytest.raises(ConfigError, match="--num-threads is 0"):
        choose_threads(0)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu.max": "nonsense"}, 8),
    ],
)
def test_quota_of_a_container(tmp_path: Path, monkeypatch, files, expected):
    monkeypatch.setattr(threads, "_cores", lambda: set(range(8)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores_allowed(tmp_path) == expected


HOLD_A_FEATURE_MAP = """
import ctypes, sys
from detseg.runs.threads import prepare_torch
class Mallinfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    _fields_ = [(name, ctypes.c_size_t) for name in names]
mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
if mallinfo is None:
    sys.exit("no mallinfo2")
mallinfo.restype = Mallinfo
prepare_torch()
before = mallinfo().hblkhd
held = bytearray(100 * 2**20)
print(mallinfo().hblkhd - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
@pytest.mark.parametrize("chosen", [False, True])
def test_memory_of_feature_maps_is_kept_for_the_next_call(chosen: bool):
    """A block from the system, which clears it anew in every call, counts in hblkhd; a user's own choice stays."""
    own = {
        name: value for name, value in os.environ.items() if name not in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    }
    environment = own | ({"MALLOC_MMAP_THRESHOLD_": "1000000"} if chosen else {})
    answer = subprocess.run(
        [sys.executable, "-c", HOLD_A_FEATURE_MAP], env=environment, capture_output=True, text=True, check=False
    )
    if "no mallinfo2" in answer.stderr:
        pytest.skip("needs glibc 2.33")
    assert (int(answer.stdout) > 0) == chosen
