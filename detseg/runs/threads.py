"""Use as many threads as cores are free: at the start of a command, and again every few seconds while it computes.

A parallel region ends with its last thread. If another program uses a core, the thread on it waits for its turn in each
of the thousands of parallel regions per image: two threads beside a busy process take many times as long as one.
"""

from __future__ import annotations

import ctypes
import logging
import math
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from detseg.errors import ConfigError

logger = logging.getLogger(__name__)

# Seconds between two measurements of the load, and the shortest measurement.
PERIOD, SHORTEST = 2.0, 0.2
# The user has chosen the number of threads if any of these is set.
CHOSEN_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

# Waiting threads sleep instead of spinning; large tensors use huge pages, if the system has them: allocating thousands
# of small pages for each layer's output takes time.
BEFORE_TORCH = {"OMP_WAIT_POLICY": "PASSIVE", "THP_MEM_ALLOC_ENABLE": "1"}
# glibc requests blocks over 32 MiB from the system each time, which clears them first; feature maps are larger.
LARGEST_REUSED = 512 * 2**20
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def prepare_torch() -> None:
    """Set the environment variables that torch reads on import, unless the user has set them, and let malloc reuse the
    memory of feature maps.

    Must be called before torch is imported.
    """
    for name, value in BEFORE_TORCH.items():
        os.environ.setdefault(name, value)
    if sys.platform == "linux" and not {"MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & set(os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries do not have it
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, LARGEST_REUSED)


def choose_threads(asked: int | None) -> None:
    """Compute with `asked` threads (--num-threads), or for None with as many as cores are free, adapting to the load.

    OMP_NUM_THREADS takes precedence over None; the number of threads already set in torch is the upper limit.

    Raises:
        ConfigError: `asked` is below 1.
    """
    global _load
    if asked is not None and asked < 1:
        raise ConfigError(f"--num-threads is {asked}; expected 1 or more")
    before = CoreTime.now()
    import torch

    most = torch.get_num_threads()
    if _load is not None and _load.threads == most:  # set by a previous command in this process
        most = _load.most
    _load = None
    if asked is not None:
        torch.set_num_threads(asked)
    elif before is not None and most > 1 and not any(name in os.environ for name in CHOSEN_BY):
        time.sleep(max(SHORTEST - (time.monotonic() - before.at), 0))  # usually 0: importing torch takes longer
        _load = _Load(before, min(most, cores_allowed()))
        _load.follow()


def follow_load() -> None:
    """Adapt the number of threads to the free cores, if `choose_threads` was called with None.

    To be called often by the computing thread, between images or iterations.
    """
    if _load is not None and time.monotonic() - _load.before.at >= PERIOD:
        _load.follow()


class _Load:
    """before: the last measurement. most: threads if all cores are free. threads: the present number."""

    def __init__(self, before: CoreTime, most: int) -> None:
        self.before = before
        self.most = self.threads = most

    def follow(self) -> None:
        import torch

        now = CoreTime.now()
        if now is None:
            return
        others, self.before = now.used_by_others(self.before), now
        self.threads, current = threads_beside(others, len(_cores()), self.most), torch.get_num_threads()
        if self.threads == current:
            return
        torch.set_num_threads(self.threads)
        logger.info(
            "%d thread%s instead of %d: other programs use %.1f of %d cores (--num-threads N keeps to N; weights "
            "are bit-identical only for the same one)",
            *(self.threads, "" if self.threads == 1 else "s", current, others, len(_cores())),
        )


_load: _Load | None = None


def threads_beside(others: float, cores: int, most: int) -> int:
    """Return how many threads can have a core of their own if other programs use `others` of the cores; at least 1."""
    return max(1, min(most, math.floor(cores - others + 0.5)))


@dataclass(frozen=True)
class CoreTime:
    """Processor time in seconds on the cores available to this process, until a moment.

    at: monotonic clock. busy: of all programs. own: of this process and its children.
    """

    at: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> CoreTime | None:
        """None if the system does not provide it; only Linux does."""
        try:
            lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
            second = os.sysconf("SC_CLK_TCK")
        except (OSError, AttributeError, ValueError):
            return None
        cores = {f"cpu{core}" for core in _cores()}
        busy = 0
        for name, *ticks in (line.split() for line in lines if line.startswith("cpu")):
            if name in cores:  # user nice system idle iowait irq softirq steal
                user, nice, system, _, _, *rest = (int(tick) for tick in ticks[:8])
                busy += user + nice + system + sum(rest)
        ended = os.times()
        own = time.process_time() + ended.children_user + ended.children_system
        children = sum(_ticks_of(child.pid) for child in multiprocessing.active_children())
        return cls(time.monotonic(), busy / second, own + children / second)

    def used_by_others(self, before: CoreTime) -> float:
        """Return how many cores other programs used on average since `before`."""
        busy, own = self.busy - before.busy, self.own - before.own
        return max(busy - own, 0.0) / max(self.at - before.at, 1e-3)


def cores_allowed(control_groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many cores this process may use at once: its CPU affinity, limited by a container's quota."""
    cores = len(_cores())
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # versions 2 and 1
        try:
            quota, period = " ".join((control_groups / name).read_text(encoding="ascii") for name in names).split()
            if int(quota) > 0 and int(period) > 0:
                cores = min(cores, max(1, int(quota) // int(period)))
        except (OSError, ValueError):  # not this version, or "max": no quota
            continue
    return cores


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _ticks_of(process: int | None) -> int:
    """Return the clock ticks of processor time of a running process; 0 if it has just ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()  # the process name before it may contain anything
    return int(fields[11]) + int(fields[12])
