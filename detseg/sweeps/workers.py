"""The workers of a sweep: threads of this process, each with a process for its trial; or tasks on a Ray cluster."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from detseg.runs.children import POLL_SECONDS, worker_environment
from detseg.runs.ray_cluster import cores_and_gpus, cores_per_worker, result_of
from detseg.runs.wandb_run import missing_wandb
from detseg.sweeps.search import Search
from detseg.sweeps.sweep_file import read_sweep_file
from detseg.sweeps.trial import run_trial

logger = logging.getLogger(__name__)


def work(search: Search, environment: dict[str, str], stopped: Callable[[], bool]) -> None:
    """Run trials until all are done, including those of workers that die meanwhile."""
    while not stopped():
        claim = search.claim()
        if claim is not None:
            run_trial(search, claim, environment, stopped)
        elif search.others_run():
            time.sleep(POLL_SECONDS)
        else:
            return


def work_here(search: Search, workers: int, stopped: Callable[[], bool]) -> None:
    """Run trials in `workers` threads of this process. Raises the first exception of any of them."""
    failures: list[BaseException] = []
    stop = threading.Event()

    def run(number: int) -> None:
        try:
            work(search, environment_of(search, number, workers), stop.is_set)
        except BaseException as error:
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=run, args=(number,), name=f"worker {number}") for number in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            if stopped():
                stop.set()
            time.sleep(0.1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def environment_of(search: Search, number: int, workers: int) -> dict[str, str]:
    """Return the environment variables of a worker's trials: its GPU, its share of the cores, the sweep's group."""
    return {**group_environment(search), **worker_environment(number, workers)}


def group_environment(search: Search) -> dict[str, str]:
    """Return the environment variables that group the trials of a sweep in W&B, offline by default."""
    group = os.environ.get("WANDB_RUN_GROUP", f"{search.sweep.name}-{search.folder.name}")
    mode = "disabled" if missing_wandb("auto") else os.environ.get("WANDB_MODE", "offline")
    return {"DETSEG_SWEEP": "1", "WANDB_RUN_GROUP": group, "WANDB_MODE": mode}


def work_on_ray(search: Search, workers: int, stopped: Callable[[], bool]) -> None:
    """Run trials as `workers` concurrent tasks of the Ray cluster that was joined; leave the cluster at the end.

    The folder of the sweep must have the same path on all machines. If a machine is lost, Ray runs its task again,
    which takes over the unfinished trial.
    """
    import ray

    every, gpus = cores_and_gpus()
    cores = cores_per_worker(workers)
    logger.info("Ray: %g cores, %d GPUs; %d trials at a time", sum(every), gpus, workers)
    task = ray.remote(num_cpus=cores, num_gpus=1 if gpus else 0, max_retries=3)(_work_in_task)
    paths = [str(path.absolute()) for path in (search.sweep.path, search.folder)]
    given = (*paths, search.total, search.seed, os.getcwd(), cores)
    stop_file = search.folder / STOP_FILE
    stop_file.unlink(missing_ok=True)  # left by a sweep that was killed while stopping
    try:
        running = [task.remote(*given) for _ in range(workers)]
        while running:
            done, running = ray.wait(running, timeout=POLL_SECONDS)
            for one in done:
                result_of(one)
            if stopped():
                stop_file.touch()
    finally:
        stop_file.unlink(missing_ok=True)
        ray.shutdown()


# While this file exists, tasks on other machines stop their trials, to be resumed later.
STOP_FILE = ".stop"


def _work_in_task(sweep_file: str, folder: str, total: int, seed: int, current: str, cores: int) -> None:
    """Run `work` in a Ray task, on the GPU that Ray has assigned to it."""
    os.chdir(current)
    logging.basicConfig(level=logging.INFO)
    search = Search(read_sweep_file(Path(sweep_file)), Path(folder), total, seed)
    environment = {"OMP_NUM_THREADS": str(cores), **group_environment(search)}
    work(search, environment, (Path(folder) / STOP_FILE).exists)
