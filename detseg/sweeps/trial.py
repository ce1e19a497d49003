"""One trial: the command of the sweep file as a process of its own, watched until it ends."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from detseg.files.atomic import write_json
from detseg.files.lock import try_lock
from detseg.sweeps.metrics import PROGRAMS, holds_results
from detseg.sweeps.parameters import nested
from detseg.sweeps.search import Claim, Search

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
# Time to save a checkpoint in, before a process that was asked to end is killed.
GRACE_SECONDS = 120.0
# How often a trial whose process something else killed is started again before it counts as failed.
MOST_STARTS = 3


def run_trial(search: Search, claim: Claim, environment: dict[str, str], stopped: Callable[[], bool]) -> None:
    """Run a trial to its end and note it in the study; one that is stopped stays as it is, to be continued.

    environment: what the process gets beside this one's own variables.
    """
    sweep, folder, started = search.sweep, claim.folder, time.monotonic()
    logger.info("trial %d begins: %s", claim.number, _short(claim))
    for _ in _while_in_use(folder):  # by a process of a worker that was killed: it may as well finish
        if stopped():
            claim.lock.release()
            return
    for _ in range(MOST_STARTS):
        ended = _run_once(search, claim, environment, stopped)
        if ended == "stopped":
            claim.lock.release()
            return
        before = claim.trial.user_attrs.get("seconds", 0.0)
        claim.trial.set_user_attr("seconds", round(before + time.monotonic() - started, 1))
        started = time.monotonic()
        if ended == "pruned":
            values = sweep.metric.reported(folder)
            logger.info(
                "trial %d ends early: %s %.4f after %d values", claim.number, sweep.metric.name, values[-1], len(values)
            )
            search.tell(claim, "pruned")
            return
        if 0 <= ended <= 128:
            break
        logger.warning("the process of trial %d was ended from outside (%d): it goes on", claim.number, ended)
    value = sweep.metric.reached(folder) if ended == 0 else None
    if value is None:
        note = _last_words(log_of(folder)) if ended else f"it ended without {sweep.metric.name}"
        logger.warning("trial %d failed (exit status %s, %s): %s", claim.number, ended, log_of(folder), note)
        search.tell(claim, "fail", note=note)
        return
    logger.info("trial %d: %s %.4f", claim.number, sweep.metric.name, value)
    search.tell(claim, "complete", value)


def command_of(search: Search, claim: Claim) -> list[str]:
    """Return the words behind `python` that run a trial."""
    sweep, folder = search.sweep, claim.folder
    json_file = search.folder / f"sweep-{sweep.name}" / f"config-{claim.number:04d}.json"
    if "${args_json_file}" in sweep.words:
        write_json(json_file, nested(claim.values))
    own = [word.format(folder=folder) for word in PROGRAMS[sweep.program]]
    resume = ["--resume"] if sweep.program == "train_net" and holds_results(folder) else []
    return ["-m", "detseg", sweep.program, *sweep.command(claim.values, json_file), *own, *resume]


def log_of(folder: Path) -> Path:
    """Where the output of a trial's process goes."""
    return folder.with_name(f"{folder.name}.log")


def _run_once(search: Search, claim: Claim, environment: dict[str, str], stopped: Callable[[], bool]) -> int | str:
    """Return the exit status of the process; "pruned" or "stopped" where it was made to end."""
    claim.folder.mkdir(exist_ok=True)
    with open(log_of(claim.folder), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, *command_of(search, claim)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which ends its trials in order
        )
    try:
        while True:
            status = process.poll()
            if search.report(claim, search.sweep.metric.reported(claim.folder)) and status is None:
                return "pruned"
            if status is not None:
                return status
            if stopped():
                return "stopped"
            time.sleep(POLL_SECONDS)
    finally:
        end_process(process)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to save and end, and kill it and its children where it takes too long."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except BaseException as error:  # a second Ctrl-C, too
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


def _while_in_use(folder: Path) -> Iterator[None]:
    """Go on as long as another process holds the run folder of a trial, or one of its folds."""
    said = False
    while True:
        held = [path for path in (folder / ".lock", *folder.glob("fold*/.lock")) if path.exists()]
        for path in list(held):
            lock = try_lock(path)
            if lock is not None:
                lock.release()
                held.remove(path)
        if not held:
            return
        if not said:
            logger.info("%s is still in use by a process of an earlier worker: waiting until it has ended", folder)
            said = True
        yield
        time.sleep(POLL_SECONDS)


def _short(claim: Claim) -> str:
    return ", ".join(f"{'.'.join(path)}={json.dumps(value)}" for path, value in claim.values.items())


def _last_words(log: Path) -> str:
    """Return the message with which a process ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    errors = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
    return errors[-1][:500] if errors else "it printed nothing"
