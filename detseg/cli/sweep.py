"""`detseg sweep`: run a W&B sweep file without a server."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from detseg.cli.next_step import beside, command_line, print_next

if TYPE_CHECKING:
    from detseg.sweeps.sweep_file import SweepFile

logger = logging.getLogger(__name__)

DESCRIPTION = """Run a W&B sweep file (`wandb sweep FILE`, `wandb agent ID`) without a server: Optuna chooses values
with the method of the file, worse trials are stopped early, and every trial is a run folder. After any interruption
the same command with --resume continues; started on several machines that share the folder, it shares the trials
between them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="sweep file, such as configs/sweeps/training.yaml")
    parser.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="total number of trials; default: the file's run_cap, else the points of a grid",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="trials at a time; default: one per GPU, or one")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the sweep; default: runs/sweeps/NAME/001 and so on"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the last sweep of this file, or the one in --output"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawn values (%(default)s)")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run the trials on this Ray cluster: HOST:PORT, auto, or local to start one here",
    )
    parser.add_argument("--check", action="store_true", help="print what the file asks for, and run nothing")


def run(arguments: argparse.Namespace) -> int:
    from detseg.errors import ConfigError, RunError
    from detseg.runs.children import visible_gpus
    from detseg.runs.interrupt import StopRequest
    from detseg.runs.ray_cluster import join_ray
    from detseg.sweeps.results import write_results
    from detseg.sweeps.search import Search, import_optuna
    from detseg.sweeps.sweep_file import read_sweep_file
    from detseg.sweeps.sweep_folder import open_sweep
    from detseg.sweeps.workers import work_here, work_on_ray

    for name in ("trials", "workers"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; expected 1 or more")
    sweep = read_sweep_file(arguments.file)
    if arguments.check:
        print(_described(sweep))
        return 0
    import_optuna()
    if arguments.ray:
        join_ray(arguments.ray)
    folder, total = open_sweep(sweep, arguments.output, arguments.trials, resume=arguments.resume)
    workers = arguments.workers or max(1, len(visible_gpus()))
    search = Search(sweep, folder, total, arguments.seed)
    logger.info("sweep in %s: %d trials by %s, %d at a time", folder, total, sweep.method, workers)
    with StopRequest("saving the running trials") as stop:
        if arguments.ray:
            work_on_ray(search, workers, lambda: stop.signal is not None)
        else:
            work_here(search, workers, lambda: stop.signal is not None)
    table, any_complete = write_results(search)
    print(f"\n{table}\n\nEverything is in {folder}:\n{_contents(folder)}")
    if stop.signal is not None:
        words = ["--ray", arguments.ray] if arguments.ray else []
        words += ["--trials", str(total), "--workers", str(workers), "--output", folder, "--resume"]
        print(f"to continue: {command_line('sweep', arguments.file, *words)}")
        return 128 + stop.signal
    if not any_complete:
        raise RunError(f"{folder}: no trial has a result; trials.csv gives the reason for each")
    if (folder / "best.yaml").is_file() and sweep.program == "train_net":
        print_next(command_line("train_net", "--config", folder / "best.yaml"))
    elif (folder / "best.yaml").is_file():
        predict = ["--run", "RUN", "--images", "NEW_IMAGES", "--postprocess", folder / "best.yaml"]
        if (fusion := folder / "best_fusion.yaml").is_file():
            predict = ["--run", "RUN_1", "--run", "RUN_2", *predict[2:], "--fusion", fusion]
        print_next(command_line("predict", *predict, "--output", beside("predictions.json.gz", ".json.gz")))
    return 0


def _described(sweep: SweepFile) -> str:
    goal = "highest" if sweep.metric.maximize else "lowest"
    points = sweep.grid_points()
    lines = [
        f"{sweep.path}: {sweep.program} by {sweep.method}, {goal} {sweep.metric.name}",
        f"trials      {sweep.run_cap or points or 'as many as --trials says'}",
    ]
    if sweep.halving is not None:
        first, eta = sweep.halving.first, sweep.halving.eta
        lines.append(
            f"early end   after {first}, {first * eta}, {first * eta**2}, ... values the best 1/{eta} of trials "
            "continue"
        )
    for parameter in sweep.parameters:
        values = list(parameter.choices) if parameter.choices else f"{parameter.low:g} to {parameter.high:g}"
        lines.append(f"  {parameter.name:36} {values}")
    return "\n".join(lines)


def _contents(folder: Path) -> str:
    about = {
        "trials.csv": "every trial with its values and what it reached",
        "best.yaml": "the best configuration",
        "best_fusion.yaml": "the fusion that belongs to it",
        "slices.png": "what was reached over each parameter",
        "parallel.png": "all parameters of all trials",
        "importance.png": "which parameters matter",
        "trials": "a run folder and a log for each trial",
        "trials.journal": "the study of Optuna",
    }
    return "\n".join(f"  {name:18}{text}" for name, text in about.items() if (folder / name).exists())
