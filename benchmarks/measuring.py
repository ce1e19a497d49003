"""What the benchmarks share: times taken in turns, the memory of a process, the machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

MIB = 2**20


class Timing:
    """The times in seconds of several variants, taken in turns: one of each a round, so that all share the noise."""

    def __init__(self, seconds: Mapping[str, list[float]]) -> None:
        self.seconds = dict(seconds)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> tuple[float, float, float]:
        """How many times faster `fast` is: of the medians, and the smallest and largest of a single round."""
        rounds = [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]
        return self.median(slow) / self.median(fast), min(rounds), max(rounds)


def take_turns(
    variants: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    measured: bool = False,
) -> Timing:
    """Time every variant once a round; every second round goes backwards. The first `warm_up` rounds do not count.

    clock: time.process_time counts the processor time of this process, which other processes hardly change.
    measured: the variants return their seconds themselves.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(-warm_up, rounds):
        for name in names if number % 2 == 0 else reversed(names):
            start = clock()
            answer = variants[name]()
            if number >= 0:
                seconds[name].append(answer if measured else clock() - start)
    return Timing(seconds)


def peak_memory() -> int:
    """The most bytes that this process has held at once, shared libraries included."""
    bytes_held = _from_status("VmHWM")
    if bytes_held is not None:
        return bytes_held
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024


def held_memory() -> int:
    """The bytes that this process holds now; where that is not known, the most that it has held."""
    bytes_held = _from_status("VmRSS")
    return peak_memory() if bytes_held is None else bytes_held


def _from_status(key: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines[key].split()[0]) * 1024 if key in lines else None


def machine(*packages: str) -> str:
    """The processor, the cores open to this process, how busy the machine is, and versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = [f"Python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in packages)]
    return f"{_processor()}, {cores} cores{load}; {', '.join(versions)}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"
