"""Commands of detseg as steps of a larger job: run in parallel, each once, resumable after any interruption.

A step is done when its command has succeeded; only then is its record written. Commands write their outputs atomically,
and trainings and predictions resume by themselves, so a step that was killed is simply run again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from detseg.errors import RunError
from detseg.files.atomic import read_json, write_json
from detseg.runs.children import last_error, run_command, while_in_use, worker_environment

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """name: of its record and log, such as round1/train_mask_rcnn_fold0. words: arguments, the command first.

    run: run folder of a training, None for other commands, whose outputs are overwritten.
    """

    name: str
    words: tuple[str, ...]
    run: Path | None = None

    @property
    def command(self) -> tuple[str, ...]:
        """The arguments that start it, or resume it."""
        if self.run is None:
            return (*self.words, "--overwrite")
        # Without a configuration file no training has started there, and its checks must be run.
        return (*self.words, "--resume") if (self.run / "config.yaml").is_file() else self.words


class Steps:
    """Runs steps, one per worker at a time, with records and logs in `folder`/steps.

    stopped: whether a signal asks to stop.
    """

    def __init__(self, folder: Path, workers: int, stopped: Callable[[], bool]) -> None:
        self.folder = folder
        self.workers = workers
        self.stopped = stopped
        self._free: SimpleQueue[int] = SimpleQueue()
        for number in range(workers):
            self._free.put(number)
        self._failed = threading.Event()

    def run(self, steps: Sequence[Step]) -> bool:
        """Run independent steps; return True when all are done, False if stopped.

        Raises RunError if one fails, with the message that it printed.
        """
        waiting = [step for step in steps if not self.is_done(step)]
        with ThreadPoolExecutor(max_workers=self.workers) as pool:
            futures = [pool.submit(self._run, step) for step in waiting]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            if any(future.exception() is not None for future in done):
                self._failed.set()  # stops the others
        for future in futures:
            future.result()
        return all(map(self.is_done, steps))

    def is_done(self, step: Step) -> bool:
        """Whether a step has been done. Raises RunError if it was done by another command."""
        path = self._path(step, ".json")
        if not path.is_file():
            return False
        before = read_json(path).get("words")
        if before != list(step.words):
            raise RunError(
                f"{path}: this step was done by another command ({' '.join(map(str, before or []))}); the settings, or "
                "the version of detseg, have changed: use another folder (--output)"
            )
        return True

    def _path(self, step: Step, suffix: str) -> Path:
        return self.folder / "steps" / f"{step.name}{suffix}"

    def _run(self, step: Step) -> None:
        worker = self._free.get()
        try:
            self._run_by(worker, step)
        finally:
            self._free.put(worker)

    def _run_by(self, worker: int, step: Step) -> None:
        for _ in while_in_use(step.run) if step.run is not None else ():  # a killed process may still be running
            if self._ends():
                return
        if self._ends():
            return
        log, started = self._path(step, ".log"), time.monotonic()
        logger.info("%s begins: %s", step.name, log)
        status = run_command(step.command, log, worker_environment(worker, self.workers), self._ends)
        if status is None:
            return
        if status == 1 and step.words[0] == "predict":  # some images could not be read; all others are predicted
            logger.warning("%s: %s", step.name, last_error(log))
        elif status:
            raise RunError(f"{step.name} failed (exit status {status}): {last_error(log)}\nSee its log: {log}")
        logger.info("%s is done, %.0f s", step.name, time.monotonic() - started)
        write_json(self._path(step, ".json"), {"words": list(step.words), "seconds": time.monotonic() - started})

    def _ends(self) -> bool:
        return self._failed.is_set() or self.stopped()
