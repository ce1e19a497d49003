"""`detseg pseudo_label --config FILE`: rounds of pseudo-labels, each accepted only if it improves the scores."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from detseg.cli.next_step import command_line, print_next

logger = logging.getLogger(__name__)

DEFAULT_PARENT = Path("runs") / "semi_supervised"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    rounds = parser.add_argument_group("rounds, without a step")
    rounds.add_argument("--config", metavar="FILE", help="plan of the rounds, such as semi_supervised/sartorius.yaml")
    rounds.add_argument("--output", type=Path, metavar="DIR", help=f"default: {DEFAULT_PARENT}/NAME")
    rounds.add_argument("--resume", action="store_true", help="continue the rounds in the folder")
    rounds.add_argument("--workers", type=int, metavar="N", help="commands at a time; default: one per GPU, or one")
    rounds.add_argument("--check", action="store_true", help="report whether the plan can be followed, and do nothing")


def run(arguments: argparse.Namespace) -> int:
    from detseg.errors import ConfigError
    from detseg.files.atomic import make_folder
    from detseg.files.lock import FolderLock
    from detseg.runs.children import visible_gpus
    from detseg.runs.interrupt import StopRequest
    from detseg.semi_supervised.rounds import Rounds, check_plan, open_folder
    from detseg.semi_supervised.rounds_file import RoundsPlan
    from detseg.semi_supervised.steps import Steps

    if not arguments.config:
        raise ConfigError("give a plan of rounds (--config FILE) or a step (label)")
    if arguments.overrides:
        raise ConfigError(
            f"unrecognized arguments: {' '.join(arguments.overrides)}; to change settings, write your own plan"
        )
    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"--workers is {arguments.workers}; expected 1 or more")
    plan = RoundsPlan.load(arguments.config)
    check_plan(plan)
    folder = arguments.output or DEFAULT_PARENT / Path(arguments.config).stem
    workers = arguments.workers or max(1, len(visible_gpus()))
    if arguments.check:
        print(f"{plan.source}: {', '.join(plan.models)}; {plan.rounds} rounds; {workers} commands at a time: in order")
        return 0
    make_folder(folder)
    lock = FolderLock(folder)
    try:
        open_folder(plan, folder, resume=arguments.resume)
        with StopRequest("saving the running commands") as stop:
            rounds = Rounds(plan, folder, Steps(folder, workers, lambda: stop.signal is not None))
            answer = rounds.run(lambda name, said: print(f"{name}  {said}", flush=True))
    finally:
        lock.release()
    if answer is None:
        words = ["--workers", f"{arguments.workers}"] if arguments.workers else []
        words = ["--config", arguments.config, "--output", folder, *words, "--resume"]
        print(f"to continue: {command_line('pseudo_label', *words)}")
        return 128 + (stop.signal or 0)
    print(f"\nThe result is {answer.name}: {', '.join(map(str, answer.models.values()))}\nEverything is in {folder}")
    runs = [answer.run_of(model, fold) for model in answer.models for fold in range(rounds.sets.count)]
    several = [word for path in dict.fromkeys(runs) for word in ("--run", path)]
    print_next(command_line("predict", *several, "--images", "NEW_IMAGES", "--output", "predictions.json.gz"))
    return 0
