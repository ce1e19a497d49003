"""Run tasks: each once, independent ones in parallel, in processes on this machine or on a Ray cluster.

A task is done when its command has succeeded; only then is its record written. Commands write their outputs atomically,
and trainings resume from their checkpoint, so a task that was killed is simply run again. A task belongs to the holder
of its lock, so several machines can work on one folder.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from detseg.errors import DetsegError, RunError
from detseg.files.atomic import make_folder, read_json, write_json
from detseg.files.lock import try_lock
from detseg.files.run_files import CONFIG_FILE
from detseg.runs.children import POLL_SECONDS, last_error, run_command, while_in_use, worker_environment
from detseg.runs.ray_cluster import cores_and_gpus, result_of
from detseg.study.plan import Plan, read_record

logger = logging.getLogger(__name__)

# How often a process is started in all if a signal kills it.
MOST_STARTS = 3
# Commands that run a network.
ON_GPU = ("train_net", "predict")
# While this file exists, tasks on other machines stop, to be resumed later.
STOP_FILE = ".stop"
Stopped = Callable[[], bool]
Spec = Mapping[str, Any]


def run_stage(spec: Spec, environment: Mapping[str, str], stopped: Stopped) -> list[str] | None:
    """Run a task unless it is done; return its output files, None if it was stopped.

    spec: from `Plan.spec`. environment: environment variables that are added for its process.

    Raises RunError if its command fails.
    """
    paths = {name: Path(path) for name, path in spec["paths"].items()}
    make_folder(paths["lock"].parent)
    while (lock := try_lock(paths["lock"])) is None:  # another machine runs it
        if stopped():
            return None
        time.sleep(POLL_SECONDS)
    try:
        if (record := read_record(paths["json"])) is not None:
            return record["files"]
        for _ in while_in_use(Path(spec["run"])) if spec["run"] else ():  # a killed process may still be running
            if stopped():
                return None
        for file in spec["files"]:
            make_folder(Path(file).parent)
        started, group = time.monotonic(), {"WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP", spec["group"])}
        for start in range(1, MOST_STARTS + 1):
            status = run_command(_words_of(spec), paths["log"], {**group, **environment}, stopped)
            if status is None:
                return None
            if status >= 0:
                break
            logger.warning("%s was killed by signal %d (start %d of %d)", spec["name"], -status, start, MOST_STARTS)
        if status == 1 and spec["words"][0] == "predict":  # some images could not be read; all others are predicted
            logger.warning("%s: %s", spec["name"], last_error(paths["log"]))
        elif status:
            said = last_error(paths["log"])
            raise RunError(f"{spec['name']} failed (exit status {status}): {said}\nSee its log: {paths['log']}")
        record = {name: spec[name] for name in ("name", "words", "files", "parts")}
        write_json(paths["json"], {**record, "seconds": time.monotonic() - started, "machine": platform.node()})
        return list(spec["files"])
    finally:
        lock.release()


def _words_of(spec: Spec) -> list[str]:
    """Return the arguments that start a task, or resume it."""
    if not spec["run"]:
        return [*spec["words"], "--overwrite"]
    # Without a configuration file no training has started there.
    begun = (Path(spec["run"]) / CONFIG_FILE).is_file()
    return [*spec["words"], "--resume"] if begun else list(spec["words"])


class Runner(Protocol):
    """Runs tasks in parallel."""

    def start(self, spec: Spec) -> Any:
        """Start a task; return its handle."""

    def wait(self, running: Sequence[Any]) -> list[Any]:
        """Return the handles of tasks that have ended, after at most half a second."""

    def result(self, ended: Any) -> list[str] | None:
        """Return the output files of a task, None if it was stopped. Raises DetsegError if it failed."""

    def close(self) -> None:
        """Release the processes or the cluster."""


class Processes:
    """One process per worker, each with a GPU and a share of the cores."""

    def __init__(self, workers: int, stopped: Stopped) -> None:
        self.stopped = stopped
        self._pool = ThreadPoolExecutor(workers)
        self._free: SimpleQueue[dict[str, str]] = SimpleQueue()
        for number in range(workers):
            self._free.put(worker_environment(number, workers))

    def start(self, spec: Spec) -> Future[list[str] | None]:
        return self._pool.submit(self._run, spec)

    def _run(self, spec: Spec) -> list[str] | None:
        environment = self._free.get()
        try:
            return None if self.stopped() else run_stage(spec, environment, self.stopped)
        finally:
            self._free.put(environment)

    def wait(self, running: Sequence[Future[list[str] | None]]) -> list[Future[list[str] | None]]:
        return list(wait_for_futures(running, POLL_SECONDS, FIRST_COMPLETED).done)

    def result(self, ended: Future[list[str] | None]) -> list[str] | None:
        return ended.result()

    def close(self) -> None:
        self._pool.shutdown()


class RayTasks:
    """Tasks on the Ray cluster that was joined (`runs.ray_cluster.join_ray`).

    If a machine is lost, Ray runs its tasks again. The folder of the study has the same path on all machines.

    cores: of a task that trains or predicts; it gets a GPU if the cluster has any.
    """

    def __init__(self, cores: int, stop_file: Path) -> None:
        import ray

        self._ray = ray
        self._cores = cores
        self._given = os.getcwd(), str(stop_file)
        self._gpus = min(cores_and_gpus()[1], 1)
        self._task = ray.remote(max_retries=MOST_STARTS)(_run_in_task)

    def start(self, spec: Spec) -> Any:
        gpus, cores = (self._gpus, self._cores) if spec["words"][0] in ON_GPU else (0, 1)
        return self._task.options(num_cpus=cores, num_gpus=gpus, name=spec["name"]).remote(spec, cores, *self._given)

    def wait(self, running: Sequence[Any]) -> list[Any]:
        return self._ray.wait(list(running), timeout=POLL_SECONDS)[0]

    def result(self, ended: Any) -> list[str] | None:
        return result_of(ended)

    def close(self) -> None:
        self._ray.shutdown()


def _run_in_task(spec: Spec, cores: int, current: str, stop_file: str) -> list[str] | None:
    """Call `run_stage` in a Ray task, on the GPU that Ray has assigned to it."""
    os.chdir(current)
    return run_stage(spec, {"OMP_NUM_THREADS": str(cores)}, Path(stop_file).exists)


@contextmanager
def stop_file_of(folder: Path, stopped: Stopped) -> Iterator[tuple[Path, Stopped]]:
    """Yield a file that makes tasks on other machines stop, and a `stopped` that also creates the file."""
    path = folder / STOP_FILE
    path.unlink(missing_ok=True)  # left by a study that was killed while stopping

    def told() -> bool:
        if stopped():
            path.touch()
            return True
        return False

    try:
        yield path, told
    finally:
        path.unlink(missing_ok=True)


def run_tasks(
    plan: Plan, names: Sequence[str], runner: Runner, stopped: Stopped, ended: Callable[[str, str], None]
) -> list[str]:
    """Run tasks of a plan, each after those that it needs; return the messages of those that failed.

    Tasks that need a failed one are skipped; all others are run. ended: called with the name of each task and its
    outcome.

    Raises RunError if tasks need others that are neither done nor selected.
    """
    wanted = set(names)
    before = {name: plan.needs(name) for name in names}
    missing = [need for needs in before.values() for need in needs if need not in wanted and not plan.is_done(need)]
    if missing:
        raise RunError(f"these stages are needed but not done: {', '.join(dict.fromkeys(missing))}; run them too")
    sorter = TopologicalSorter({name: [need for need in needs if need in wanted] for name, needs in before.items()})
    sorter.prepare()
    running: dict[Any, str] = {}
    failed: dict[str, str] = {}
    while sorter.is_active() and (running or not stopped()):
        for name in sorter.get_ready() if not stopped() else ():
            if plan.is_done(name):
                sorter.done(name)
                ended(name, "done before")
            elif lost := [need for need in before[name] if need in failed]:
                failed[name] = ""
                sorter.done(name)
                ended(name, f"left out: {lost[0]} is missing")
            else:
                running[runner.start(plan.spec(plan.tasks[name]))] = name
        for one in runner.wait(list(running)) if running else ():
            name = running.pop(one)
            try:
                made = runner.result(one)
            except DetsegError as error:
                failed[name] = str(error)
                ended(name, "failed")
            else:
                if made is None:
                    continue  # stopped
                ended(name, f"done, {read_json(plan.path(plan.tasks[name], '.json'))['seconds']:.0f} s")
            sorter.done(name)
    return [message for message in failed.values() if message]
