"""Ray clusters: join one, and divide its cores among workers. Ray is imported only when needed."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from detseg.errors import DetsegError, RunError

CONNECT_SECONDS = 10.0


def join_ray(address: str) -> None:
    """Join the Ray cluster at an address, or start one here ("local"). Call it before signal handlers are set, because
    Ray installs its own for SIGTERM.

    Raises:
        RunError: Ray is not installed, or no cluster responds.
    """
    try:
        import ray
    except ImportError:
        raise RunError('--ray needs Ray: pip install "detseg[ray]" or pip install "ray[tune]"') from None
    remedy = "start one with `ray start --head`, or give the address that it printed"
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        if host and port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    except (OSError, ValueError, OverflowError, RuntimeError) as error:
        raise RunError(f"--ray {address}: no cluster answers ({error}); {remedy}") from None


def result_of(task: Any) -> Any:
    """Return the result of a Ray task, or raise the DetsegError that it raised.

    Raises RunError if Ray has lost the task in all of its attempts.
    """
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DetsegError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise RunError(f"Ray lost a task ({error}); finished work is kept: run the same command again") from None


def cores_and_gpus() -> tuple[list[float], int]:
    """Return the number of cores of each machine of the joined Ray cluster, and the total number of GPUs."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [machine.get("CPU", 0) for machine in machines], int(sum(machine.get("GPU", 0) for machine in machines))


def cores_of_workers(cores: Sequence[float], workers: int) -> int:
    """Return how many cores each of `workers` workers can have; 0 if the workers do not all fit.

    cores: of each machine. A worker runs on one machine, so machines of 3 cores have room for one worker with 2 cores.
    """
    most = int(max(cores, default=0))
    return next((each for each in range(most, 0, -1) if sum(int(one) // each for one in cores) >= workers), 0)


def cores_per_worker(workers: int) -> int:
    """Return the cores per worker on the joined Ray cluster: one if workers have GPUs."""
    cores, gpus = cores_and_gpus()
    return 1 if gpus else max(1, cores_of_workers(cores, workers))
