"""Several processes on one machine, started by Detectron2's launch: one GPU each."""

from __future__ import annotations

import argparse
import copy
import os
import signal
from collections.abc import Callable

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from detseg.errors import ConfigError
from detseg.runs.distributed import TIMEOUT

Command = Callable[[argparse.Namespace], None]


def launch_command(command: Command, arguments: argparse.Namespace, count: int) -> int:
    """Run `command(arguments)` in `count` new processes; return their exit status.

    command: importable by name, ends its process. arguments: with `num_gpus`, which is 1 in the new processes.

    Raises:
        ConfigError: there are fewer GPUs than processes.
    """
    if count < 1:
        raise ConfigError(f"--num-gpus is {count}; expected 1 or more")
    if torch.cuda.is_available() and count > torch.cuda.device_count():
        raise ConfigError(f"--num-gpus is {count}, but this machine has {torch.cuda.device_count()} GPUs")
    own = copy.copy(arguments)
    own.num_gpus = 1
    # Ctrl-C reaches the new processes too, which end after the iteration; this one waits for them.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        launch(_work, count, dist_url="auto", args=(command, own, count), timeout=TIMEOUT)
    except ProcessExitedException as error:
        return error.exit_code
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def _work(command: Command, arguments: argparse.Namespace, count: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # this process inherited that it is not listened to
    os.environ["DETSEG_LAUNCHED"] = "1"
    os.environ["LOCAL_RANK"] = str(comm.get_local_rank())
    os.environ["LOCAL_WORLD_SIZE"] = str(count)
    command(arguments)
