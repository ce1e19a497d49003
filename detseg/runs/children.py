"""Child processes that run detseg commands: their GPUs, cores and termination."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from detseg.files.atomic import make_folder
from detseg.files.lock import try_lock
from detseg.runs.threads import CHOSEN_BY, cores_allowed

POLL_SECONDS = 0.5
# Time to save a checkpoint after SIGTERM, before the process is killed.
GRACE_SECONDS = 120.0
_ENDING_WITH_THIS = """from detseg.files.processes import end_with_input
end_with_input()
from detseg.cli.main import console
console()"""


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, in the notation of CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(index) for index in range(count)]


def worker_environment(number: int, workers: int) -> dict[str, str]:
    """Return the environment variables of worker `number` of `workers`: its GPU and its share of the cores."""
    environment = {}
    gpus = visible_gpus()
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    if workers > 1 and not any(name in os.environ for name in CHOSEN_BY):
        environment["OMP_NUM_THREADS"] = str(max(1, cores_allowed() // workers))
    return environment


def start_command(
    words: Sequence[str], log: IO[bytes], environment: Mapping[str, str], *, ends_with_this: bool = False
) -> subprocess.Popen[bytes]:
    """Start `detseg WORDS` as a child process with its output redirected to `log`.

    environment: variables in addition to this process's own. ends_with_this: the child ends at once if this process is
    killed; otherwise it survives.
    """
    program = ["-m", "detseg"]
    if ends_with_this:
        program = ["-c", _ENDING_WITH_THIS]
    return subprocess.Popen(
        [sys.executable, *program, *words],
        stdin=subprocess.PIPE if ends_with_this else subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, **environment},
        start_new_session=True,  # Ctrl-C reaches only this process, which ends its children in order
    )


def run_command(
    words: Sequence[str], log: Path, environment: Mapping[str, str], stopped: Callable[[], bool]
) -> int | None:
    """Run `detseg WORDS`, appending its output to `log`; ask it to end as soon as `stopped` returns True.

    Returns its exit status, or None if it was asked to end.
    """
    make_folder(log.parent)
    with open(log, "ab") as output:
        process = start_command(words, output, environment, ends_with_this=True)
    try:
        while (status := process.poll()) is None and not stopped():
            time.sleep(POLL_SECONDS / 5)
    finally:
        end_process(process)
    return status


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to save and end; kill it and its children if that takes too long."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except BaseException as error:  # also a second Ctrl-C
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


def while_in_use(folder: Path) -> Iterator[None]:
    """Yield repeatedly while another process holds a run folder or one of its folds."""
    while True:
        held = [path for path in (folder / ".lock", *folder.glob("fold*/.lock")) if path.exists()]
        for path in list(held):
            lock = try_lock(path)
            if lock is not None:
                lock.release()
                held.remove(path)
        if not held:
            return
        yield
        time.sleep(POLL_SECONDS)


def last_error(log: Path) -> str:
    """Return the error message with which a process ended, from the log of its output."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    errors = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
    return errors[-1][:500] if errors else "it printed nothing"
