"""`predict` with several processes: each predicts shards of the images, and a share of the tiles of large ones.

The main process gathers the shards in the order of the images, so that the output equals that of a single process.
Processes are started here (--processes), by torchrun, or by Ray (--ray), also on several machines that share the output
folder. A process that is killed is started again, and its shard is predicted again.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.cli.predict_job import Job, find_job_images, load_job
from detseg.cli.predict_shards import Shards
from detseg.runs.threads import choose_threads

if TYPE_CHECKING:
    from detseg.inference.image_list import ImageList, SkippedImage
    from detseg.structures.predictions import Predictions

logger = logging.getLogger(__name__)

# Killed processes before the command gives up.
MOST_DEATHS = 3


def processes_of_torchrun() -> int:
    """Return the number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@dataclass(frozen=True)
class Result:
    """The prediction of a command: images, classes, the file's `info`, and a function that predicts all images, appends
    those that it cannot predict to a list, and updates a progress bar. skipped: images already known to fail.
    """

    images: ImageList
    classes: Sequence[str]
    info: dict[str, Any]
    predictions: Callable[[list[SkippedImage], Any], Iterator[Predictions]]
    skipped: list[SkippedImage] = field(default_factory=list)


def state_folder(arguments: argparse.Namespace) -> Path:
    """Return the folder that keeps shards, tiles and folds until the end: beside the output."""
    target = Path(arguments.output or arguments.label_images)
    folder = target.with_name(f"{target.name}.parts")
    return folder if arguments.fold is None else folder / f"fold{arguments.fold}"


def all_predictions(
    arguments: argparse.Namespace, job: Job, skipped: list[SkippedImage], bar: Any
) -> Iterator[Predictions]:
    """Yield the predictions of all images, including those that an interrupted command has left."""
    shards = Shards(job, state_folder(arguments))
    # Other processes must use the precision of this one, whatever `auto` means on their machine.
    precisions = {model.precision for predictor in job.predictors for model in predictor.detector.models}
    given = {"precision": precisions.pop()} if len(precisions) == 1 else {}
    others = argparse.Namespace(**{**vars(arguments), **given})

    def show() -> None:
        bar.update(max(shards.done() - bar.n, 0))

    if arguments.ray:
        run_on_ray(others, shards.settings, show)
    elif (arguments.processes or 1) > 1:
        run_children(others, arguments.processes, shards.settings, show)
    yield from shards.gather(skipped, bar)


def make_shards(arguments: argparse.Namespace, rank: int, count: int, settings: str = "") -> None:
    """Load the model once and predict shards, as one of `count` processes.

    settings: hash of the main process's settings.
    Raises RunError if those of this process differ.
    """
    from detseg.errors import RunError

    shards = Shards(load_job(arguments, find_job_images(arguments)), state_folder(arguments))
    if settings not in ("", shards.settings):
        raise RunError(
            f"process {rank} of {count}, on {os.uname().nodename if hasattr(os, 'uname') else 'this machine'}, would "
            "predict with other weights, settings or versions of detseg and torch than the main process: use the same "
            "installation and the same files everywhere"
        )
    shards.work(rank, count)


def run_children(arguments: argparse.Namespace, count: int, settings: str, show: Callable[[], Any]) -> None:
    """Start processes, show their progress, and wait for them; killed ones are started again.

    Raises RunError if a process fails, which prints why, or too many are killed.
    """
    import multiprocessing
    import time

    from detseg.errors import RunError

    context = multiprocessing.get_context("spawn")

    def start(rank: int) -> Any:
        child = context.Process(target=_child, args=(arguments, rank, count, settings), daemon=True)
        child.start()
        return child

    children, deaths = {rank: start(rank) for rank in range(count)}, 0
    try:
        while children:
            for rank, child in list(children.items()):
                if child.is_alive():
                    continue
                code = children.pop(rank).exitcode
                if code > 0:
                    raise RunError(f"process {rank} of {count} ended with status {code}; see above")
                if code < 0:
                    deaths += 1
                    if deaths > MOST_DEATHS:
                        raise RunError(
                            f"{deaths} of the processes were killed, the last one by signal {-code}: if memory is "
                            "short, use fewer (--processes); finished work is kept, and the same command continues"
                        )
                    logger.warning(
                        "process %d of %d was killed by signal %d; a new one replaces it", rank, count, -code
                    )
                    children[rank] = start(rank)
            show()
            time.sleep(0.1)
    finally:
        for child in children.values():
            child.terminate()
            child.join()


def _child(arguments: argparse.Namespace, rank: int, count: int, settings: str) -> None:
    import sys

    import torch

    from detseg.errors import DetsegError
    from detseg.files.names import printable
    from detseg.files.processes import end_with_parent

    end_with_parent()
    if arguments.num_threads is None:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    choose_threads(arguments.num_threads)
    try:
        make_shards(arguments, rank, count, settings)
    except DetsegError as error:
        # The progress bar belongs to the main process, which reports the failure; print the message below the bar.
        above = "\n" if sys.stderr.isatty() else ""
        print(f"{above}error: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def run_on_ray(arguments: argparse.Namespace, settings: str, show: Callable[[], Any]) -> None:
    """Predict the shards with workers of a Ray cluster, one per GPU or core unless --processes is given.

    Folders must have the same path on all machines. Ray runs the task of a worker again if that or its machine dies.
    """
    from detseg.errors import RunError
    from detseg.runs.ray_cluster import cores_and_gpus, cores_of_workers, join_ray, result_of

    join_ray(arguments.ray)
    import ray

    try:
        cores, gpus = cores_and_gpus()
        count = arguments.processes or gpus or int(sum(cores))
        each = 1 if gpus else cores_of_workers(cores, count)
        if (gpus and count > gpus) or not each:
            have = f"{gpus} GPUs" if gpus else f"{sum(cores):g} cores"
            raise RunError(f"--processes is {count}, but the Ray cluster has {have}: ask for fewer")
        logger.info("Ray: %g cores, %d GPUs; %d workers", sum(cores), gpus, count)
        task = ray.remote(num_cpus=each, num_gpus=1 if gpus else 0, max_retries=MOST_DEATHS)(_predict_on_ray)
        running = [task.remote(arguments, rank, count, settings, os.getcwd(), each) for rank in range(count)]
        while running:
            done, running = ray.wait(running, timeout=0.5)
            for one in done:
                result_of(one)
            show()
    finally:
        ray.shutdown()


def _predict_on_ray(
    arguments: argparse.Namespace, rank: int, count: int, settings: str, current: str, cores: int
) -> None:
    """The task of a Ray worker."""
    import torch

    os.chdir(current)
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(cores)
    choose_threads(arguments.num_threads)
    make_shards(arguments, rank, count, settings)
