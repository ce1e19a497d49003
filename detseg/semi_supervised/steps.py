"""Commands of detseg as steps of a larger work: side by side, each done once, and continued after any kill.

A step is done when its command has ended well; only then its record is written. Commands write their outputs whole or
not at all, and trainings and predictions go on by themselves where they were: so a step that was killed is run again.
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
from detseg.runs.children import last_words, run_command, while_in_use, worker_environment

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """name: of its record and log, such as round1/train_mask_rcnn_fold0. words: of the command, its name first.

    run: the folder of the training that it is, None for other commands, whose outputs are written anew.
    """

    name: str
    words: tuple[str, ...]
    run: Path | None = None

    @property
    def command(self) -> tuple[str, ...]:
        """The words with which it begins, or goes on."""
        if self.run is None:
            return (*self.words, "--overwrite")
        # Without a configuration nothing has begun there: all of it is still to be checked.
        return (*self.words, "--resume") if (self.run / "config.yaml").is_file() else self.words


class Steps:
    """Steps whose records and logs are in `folder`/steps; as many at a time as there are workers.

    stopped: whether a signal has asked to end.
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
        """Run steps that do not depend on one another; return whether all are done, False where that was stopped.

        Raises RunError where one fails, with the message that it printed.
        """
        waiting = [step for step in steps if not self.is_done(step)]
        with ThreadPoolExecutor(max_workers=self.workers) as pool:
            futures = [pool.submit(self._run, step) for step in waiting]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            if any(future.exception() is not None for future in done):
                self._failed.set()  # the others end in order
        for future in futures:
            future.result()
        return all(map(self.is_done, steps))

    def is_done(self, step: Step) -> bool:
        """Whether a step was done before. Raises RunError where that was another command."""
        path = self._path(step, ".json")
        if not path.is_file():
            return False
        before = read_json(path).get("words")
        if before != list(step.words):
            raise RunError(
                f"{path}: this step was done by another command ({' '.join(map(str, before or []))}); the settings, or "
                "what detseg makes of them, have changed: take another folder (--output)"
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
        for _ in while_in_use(step.run) if step.run is not None else ():  # what was killed is still ending
            if self._ends():
                return
        if self._ends():
            return
        log, started = self._path(step, ".log"), time.monotonic()
        logger.info("%s begins: %s", step.name, log)
        status = run_command(step.command, log, worker_environment(worker, self.workers), self._ends)
        if status is None:
            return
        if status == 1 and step.words[0] == "predict":  # some images could not be read; all others are there
            logger.warning("%s: %s", step.name, last_words(log))
        elif status:
            raise RunError(f"{step.name} failed (exit status {status}): {last_words(log)}\nAll that it said: {log}")
        logger.info("%s is done, %.0f s", step.name, time.monotonic() - started)
        write_json(self._path(step, ".json"), {"words": list(step.words), "seconds": time.monotonic() - started})

    def _ends(self) -> bool:
        return self._failed.is_set() or self.stopped()
