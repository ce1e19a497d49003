"""`detseg run_study`: many trainings and the steps after them, as stages that resume after any interruption."""

from __future__ import annotations

import argparse
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from detseg.cli.next_step import command_line

if TYPE_CHECKING:
    from detseg.study.plan import Plan

logger = logging.getLogger(__name__)

DESCRIPTION = """Run a study: prepare and split data, train models in folds, predict, pseudo-label, fuse, tune,
evaluate and submit, and compare the rows of its table with intervals. Finished stages are not repeated unless their
settings, data or code have changed. To continue after any interruption, run the same command again; started on
several machines that share the folder, it shares the stages between them."""
DEFAULT_PARENT = Path("runs") / "studies"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="a study, such as studies/quickstart.yaml")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"default: {DEFAULT_PARENT}/NAME")
    parser.add_argument("--dry-run", action="store_true", help="list the stages with their times, and run nothing")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="STAGE",
        help="run only these stages: train, train/NAME, train/NAME/fold0, '*/x*'",
    )
    parser.add_argument(
        "--rows", nargs="+", default=[], metavar="ROW", help="only these rows of the table, and their bases"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="stages at a time; default: one per GPU, or one")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run the stages on this Ray cluster: HOST:PORT, auto, or local to start one here",
    )
    parser.add_argument("--ignore-code", action="store_true", help="accept results of another version of detseg's code")


def run(arguments: argparse.Namespace) -> int:
    from detseg.errors import ConfigError, RunError, list_problems
    from detseg.files.atomic import make_folder
    from detseg.files.plain_yaml import near_name
    from detseg.runs.children import visible_gpus
    from detseg.runs.interrupt import StopRequest
    from detseg.runs.ray_cluster import cores_per_worker, join_ray
    from detseg.study.plan import Plan
    from detseg.study.results import write_results
    from detseg.study.running import Processes, RayTasks, Runner, run_tasks, stop_file_of
    from detseg.study.study_file import Study

    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"--workers is {arguments.workers}; expected 1 or more")
    study = Study.load(arguments.config)
    if unknown := [name for name in arguments.rows if name not in study.rows]:
        raise ConfigError(f"--rows {unknown[0]}: the study has no such row{near_name(unknown[0], study.rows)}")
    folder = arguments.output or DEFAULT_PARENT / study.name
    plan = Plan.of(study, folder, arguments.rows, ignore_code=arguments.ignore_code)
    chosen = plan.chosen(arguments.only)
    plan.check()
    workers = arguments.workers or max(1, len(visible_gpus()))
    if arguments.dry_run:
        print(_described(plan, chosen, workers))
        return 0
    if arguments.ray:
        join_ray(arguments.ray)
    make_folder(folder)
    number = 0

    def ended(name: str, what: str) -> None:
        nonlocal number
        number += 1
        print(f"[{number} of {len(chosen)}] {name}: {what}", flush=True)

    with StopRequest("saving the running stages") as stop, ExitStack() as stack:
        stop_file, stopped = stack.enter_context(stop_file_of(folder, lambda: stop.signal is not None))
        runner: Runner = Processes(workers, stopped)
        if arguments.ray:
            runner = RayTasks(cores_per_worker(workers), stop_file)
        stack.callback(runner.close)
        failures = run_tasks(plan, chosen, runner, stopped, ended)
    rows, files = write_results(plan)
    if rows:
        print(f"\n{files[0].read_text(encoding='utf-8')}\nwritten: {', '.join(map(str, files))}")
    if stop.signal is not None:
        print(f"to continue: {_same_command(arguments)}")
        return 128 + stop.signal
    if failures:
        raise RunError(
            f"{len(failures)} stages failed, and stages that need them were skipped:\n{list_problems(failures)}"
        )
    return 0


def _same_command(arguments: argparse.Namespace) -> str:
    words = ["--config", arguments.config]
    for name in ("output", "workers", "ray", "only", "rows"):
        if value := getattr(arguments, name):
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return command_line("run_study", *words, *(["--ignore-code"] if arguments.ignore_code else []))


def _described(plan: Plan, chosen: list[str], workers: int) -> str:
    """Return a table of the chosen stages with state and expected time, and the totals."""
    from detseg.files.table import text_table
    from detseg.study.plan import DONE
    from detseg.study.results import in_words

    rows, total, unknown, left = [["stage", "state", "why", "time"]], 0.0, 0, 0
    for name in chosen:
        task = plan.tasks[name]
        state, why = plan.state(task)
        seconds = None if state == DONE else plan.estimate(task)
        if state != DONE:
            left += 1
            unknown += seconds is None
            total += seconds or 0.0
        rows.append([name, state, why, "" if state == DONE else "?" if seconds is None else in_words(seconds)])
    said = f"{left} of {len(chosen)} stages are to be run"
    if left == unknown:
        said += "; how long they take is known when some have run" if left else ""
    else:
        said += f", {in_words(total)} of work, as measured so far"
        said += f" ({unknown} of them never ran: their time is not known)" if unknown else ""
        said += f"; with {workers} at a time {in_words(total / workers)} or more" if workers > 1 else ""
    return f"{text_table(rows, left=(0, 1, 2))}\n\n{said}"
