"""One trial: the command of the sweep file in a process of its own, watched until it ends."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from detseg.config.node import nested
from detseg.files.atomic import write_json
from detseg.runs.children import POLL_SECONDS, end_process, last_error, start_command, while_in_use
from detseg.sweeps.metrics import PROGRAMS, holds_results
from detseg.sweeps.search import Claim, Search

logger = logging.getLogger(__name__)

# How often a trial is started if something else kills its process, before it counts as failed.
MOST_STARTS = 3


def run_trial(search: Search, claim: Claim, environment: dict[str, str], stopped: Callable[[], bool]) -> None:
    """Run a trial to its end and record it in the study; a stopped one stays unfinished, to be resumed.

    environment: environment variables that are added for the process.
    """
    sweep, folder, started = search.sweep, claim.folder, time.monotonic()
    logger.info("trial %d begins: %s", claim.number, _short(claim))
    if not _wait_while_in_use(folder, stopped):  # the process of a killed worker may still finish the trial
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
                "trial %d stopped early: %s %.4f after %d values",
                claim.number,
                sweep.metric.name,
                values[-1],
                len(values),
            )
            search.tell(claim, "pruned")
            return
        if 0 <= ended <= 128:
            break
        logger.warning("the process of trial %d was killed (%d): restarting it", claim.number, ended)
    value = sweep.metric.reached(folder) if ended == 0 else None
    if value is None:
        note = last_error(log_of(folder)) if ended else f"no {sweep.metric.name} in its results"
        logger.warning("trial %d failed (exit status %s, %s): %s", claim.number, ended, log_of(folder), note)
        search.tell(claim, "fail", note=note)
        return
    logger.info("trial %d: %s %.4f", claim.number, sweep.metric.name, value)
    search.tell(claim, "complete", value)


def command_of(search: Search, claim: Claim) -> list[str]:
    """Return the arguments of `detseg` that run a trial."""
    sweep, folder = search.sweep, claim.folder
    json_file = search.json_file(claim.number)
    if "${args_json_file}" in sweep.words:
        write_json(json_file, nested(claim.values))
    own = [word.format(folder=folder) for word in PROGRAMS[sweep.program]]
    resume = ["--resume"] if sweep.program == "train_net" and holds_results(folder) else []
    return [sweep.program, *sweep.command(claim.values, json_file), *own, *resume]


def log_of(folder: Path) -> Path:
    """Return the log file of a trial's process."""
    return folder.with_name(f"{folder.name}.log")


def _run_once(search: Search, claim: Claim, environment: dict[str, str], stopped: Callable[[], bool]) -> int | str:
    """Return the exit status of the process, "pruned" if it was stopped early, or "stopped"."""
    claim.folder.mkdir(exist_ok=True)
    with open(log_of(claim.folder), "ab") as log:
        process = start_command(command_of(search, claim), log, environment)
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


def _wait_while_in_use(folder: Path, stopped: Callable[[], bool]) -> bool:
    """Wait until no other process holds the run folder of a trial; return False if stopped meanwhile."""
    for number, _ in enumerate(while_in_use(folder)):
        if stopped():
            return False
        if number == 0:
            logger.info("%s is still in use by a process of an earlier worker: waiting until that ends", folder)
    return True


def _short(claim: Claim) -> str:
    return ", ".join(f"{'.'.join(path)}={json.dumps(value)}" for path, value in claim.values.items())
