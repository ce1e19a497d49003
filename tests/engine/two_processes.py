"""Run scenarios in two processes that train together, over gloo; run by test_distributed.py.

    python two_processes.py FOLDER SCENARIO [SCENARIO ...]

One scenario after the other in FOLDER, in processes forked from one that has imported everything but computed nothing.
A scenario is a function of this file that takes (processes, folder), or one of `of_system`: NAME_whole, NAME_torn,
NAME_resumed. What it returns, or how it failed, goes into SCENARIO_RANK.json, what it prints into SCENARIO_RANK.txt.
Prints the exit statuses of both, a line for each scenario.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_networks import SYSTEMS
from tiny_segmenter import TinySegmenter
from torch import nn
from train_and_die import die, tiny_config

from detseg.cli.main import run_command
from detseg.engine.train import train
from detseg.engines.build import build_model
from detseg.errors import DataError
from detseg.models.rcnn.layers import SyncBatchNorm2d
from detseg.runs.distributed import SINGLE, Processes, join_processes
from detseg.runs.run_folder import open_run_together


class WholeBatchSegmenter(TinySegmenter):
    """Its loss is a mean over all images, however many processes share them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = SyncBatchNorm2d(4)
        self.drop = nn.Identity()


class Troubled(TinySegmenter):
    """In the process of rank 1 something happens in one of the training passes."""

    def __init__(self, rank: int, at_pass: int, what: Callable[[], None]) -> None:
        super().__init__()
        self.remaining = at_pass if rank == 1 else -1
        self.what = what

    def forward(self, samples):
        losses = super().forward(samples)
        self.remaining -= 1
        if self.remaining == 0:
            return {**losses, "loss_mask": losses["loss_mask"] * (self.what() or 1.0)}
        return losses


def settings(folder: Path, run: str, **changes: object):
    cfg = tiny_config(folder / "data" / "disks.json", folder / run).clone()
    for key, value in {"SOLVER.MAX_ITER": 6, "SOLVER.LOG_PERIOD": 1, "SOLVER.IMS_PER_BATCH": 4, **changes}.items():
        cfg.set(key.replace("__", "."), value)
    return cfg.freeze()


def tiny_run(processes: Processes, folder: Path, run: str, build, *, resume: bool = False, **changes: object) -> dict:
    cfg = settings(folder, run, **changes)
    with open_run_together(cfg, processes, resume=resume) as opened:
        return train(cfg, opened, resume=resume, build=lambda _: build(), processes=processes)


def whole_batch(processes: Processes, folder: Path) -> dict:
    return tiny_run(
        processes, folder, "whole_batch", WholeBatchSegmenter, SOLVER__ACCUMULATE=2, SOLVER__OPTIMIZER="SGD"
    )


def uninterrupted(processes: Processes, folder: Path) -> dict:
    return tiny_run(processes, folder, "uninterrupted", TinySegmenter)


def interrupted(processes: Processes, folder: Path) -> dict:
    """A signal comes to one process alone, in iteration 3."""
    return tiny_run(
        processes,
        folder,
        "interrupted",
        lambda: Troubled(processes.rank, 3, lambda: signal.raise_signal(signal.SIGTERM)),
    )


def resumed(processes: Processes, folder: Path) -> dict:
    return tiny_run(processes, folder, "interrupted", TinySegmenter, resume=True)


def grown(processes: Processes, folder: Path) -> dict:
    """What one process began, two continue."""
    processes.from_main(lambda: tiny_run(SINGLE, folder, "grown", TinySegmenter, SOLVER__MAX_ITER=2))
    return tiny_run(processes, folder, "grown", TinySegmenter, resume=True)


def of_system(name: str, how: str, processes: Processes, folder: Path) -> dict:
    """A network of SYSTEMS: "whole"; "torn", by a signal to one process alone in iteration 2, then "resumed"."""
    changes = SYSTEMS[name] | {"MODEL.ROI_HEADS.NUM_CLASSES": 1, "SOLVER.MAX_ITER": 4, "SOLVER.OPTIMIZER": "SGD"}
    changes = {key.replace(".", "__"): value for key, value in changes.items()}
    run = f"{name}_{'whole' if how == 'whole' else 'torn'}"

    def build() -> nn.Module:
        model, passes = build_model(settings(folder, run, **changes)), itertools.count(1)

        def interrupt(*_: object) -> None:
            if how == "torn" and processes.rank == 1 and next(passes) == 2:
                signal.raise_signal(signal.SIGTERM)

        model.register_forward_pre_hook(interrupt)
        return model

    return tiny_run(processes, folder, run, build, resume=how == "resumed", **changes)


def not_finite(processes: Processes, folder: Path) -> dict:
    return tiny_run(processes, folder, "not_finite", lambda: Troubled(processes.rank, 2, lambda: float("nan")))


def killed(processes: Processes, folder: Path) -> dict:
    return tiny_run(processes, folder, "killed", lambda: Troubled(processes.rank, 2, die))


def out_of_memory(processes: Processes, folder: Path) -> dict:
    def fail() -> None:
        raise MemoryError("no more")

    return tiny_run(processes, folder, "out_of_memory", lambda: Troubled(processes.rank, 2, fail))


def decisions(processes: Processes, folder: Path) -> dict:
    """Errors of one process, and what the main process alone knows."""
    caught = []
    for rank, error in enumerate((DataError("cells.png is cut off"), ValueError("odd"))):
        try:
            with processes.together():
                if processes.rank == rank:
                    raise error
        except Exception as raised:
            caught.append([type(raised).__name__, str(raised), processes.agreed_on(raised)])
    try:
        processes.from_main(lambda: (folder / "nothing" / "there").read_text())
    except Exception as raised:
        caught.append([type(raised).__name__, str(raised), processes.agreed_on(raised)])
    return {
        "caught": caught,
        "from_main": processes.from_main(lambda: os.getpid()),
        "pid": os.getpid(),
        "gathered": processes.gather(processes.rank * 10),
        "mean": processes.mean(torch.tensor([processes.rank, float("nan") if processes.rank else 1.0])).tolist(),
    }


def sync_batch_norm(processes: Processes, folder: Path) -> dict:
    """Against BatchNorm over both processes' values: (3, 2), then (4, 0) and (0, 0) images in them."""
    differences = {}
    for images in ((3, 2), (4, 0), (0, 0)):
        torch.manual_seed(1)
        whole = nn.BatchNorm2d(5)
        nn.init.uniform_(whole.weight)
        own = SyncBatchNorm2d(5)
        own.load_state_dict(whole.state_dict())
        # A mean far from zero: squares would cancel in E[x^2] - E[x]^2.
        every = torch.randn(sum(images), 5, 3, 4) * 0.1 + 50
        weights = torch.randn(every.shape)
        first = sum(images[: processes.rank])
        mine = slice(first, first + images[processes.rank])
        x = every[mine].clone().contiguous(memory_format=torch.channels_last).requires_grad_()
        result = own(x)
        (result * weights[mine]).sum().backward()
        every.requires_grad_()
        if len(every):
            expected = whole(every)
            (expected * weights).sum().backward()
        else:
            expected = every
        gradient = processes.mean(own.weight.grad) * processes.count
        pairs = {
            "output": (result, expected[mine]),
            "input gradient": (x.grad, every.grad[mine] if len(every) else every[mine]),
            "weight gradient": (gradient, whole.weight.grad if len(every) else torch.zeros(5)),
            "running mean": (own.running_mean, whole.running_mean),
            "running variance": (own.running_var, whole.running_var),
            "batches": (own.num_batches_tracked.float(), whole.num_batches_tracked.float()),
        }
        for name, (a, b) in pairs.items():
            a, b = a.detach().double(), b.detach().double()
            close = a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=2e-4)
            differences[f"{images} {name}"] = None if close else f"{a.tolist()} instead of {b.tolist()}"
    return differences


def command(*words: str) -> Callable[[Processes, Path], int]:
    """The command as it is under torchrun, which joins the processes itself."""

    def scenario(processes: Processes, folder: Path) -> int:
        os.chdir(folder)
        return run_command("train_net", ["--config", "disks.yaml", "--num-threads", "1", *words], prog="train_net")

    scenario.joins = True
    return scenario


mask_rcnn = command("OUTPUT_DIR=two")
mask_rcnn_evaluated = command("--eval-only", "OUTPUT_DIR=two")
no_objects = command(
    *("OUTPUT_DIR=no_objects", "DATASETS.TRAIN=['data/one_object.json']", "TEST.EVAL_PERIOD=0", "DATASETS.TEST=[]"),
    *("MODEL.RESNETS.NORM=BN", "MODEL.ROI_MASK_HEAD.NORM=BN", "SOLVER.IMS_PER_BATCH=2"),
)
uneven = command("OUTPUT_DIR=uneven", "SOLVER.IMS_PER_BATCH=3")
occupied = command("OUTPUT_DIR=two")
broken_image = command("OUTPUT_DIR=broken", "DATASETS.TRAIN=['broken/disks.json']", "TEST.EVAL_PERIOD=0")


def run_one(name: str, rank: int, port: int, folder: Path) -> int:
    output = os.open(folder / f"{name}_{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    system, _, how = name.rpartition("_")
    scenario = functools.partial(of_system, system, how) if system in SYSTEMS else globals()[name]
    try:
        if hasattr(scenario, "joins"):
            report = {"result": scenario(SINGLE, folder)}
        else:
            with join_processes() as processes:
                report = {"result": scenario(processes, folder)}
    except BaseException as error:
        report = {"error": type(error).__name__, "message": str(error)}
    (folder / f"{name}_{rank}.json").write_text(json.dumps(report))
    sys.stdout.flush()
    return 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    folder = Path(sys.argv[1])
    for slow in ("torchvision", "torch.utils.tensorboard", "torch._dynamo", "detseg.models.rcnn.build"):
        with contextlib.suppress(ImportError):
            importlib.import_module(slow)  # here once, where a training would import it in each process
    for name in sys.argv[2:]:
        port = free_port()
        children = []
        for rank in range(2):
            child = os.fork()
            if child == 0:
                os._exit(run_one(name, rank, port, folder))
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps([name, statuses]), flush=True)


if __name__ == "__main__":
    main()
