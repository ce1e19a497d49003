"""`detseg train_net`: train a model, or evaluate one."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.cli.next_step import beside, command_line, print_next, program
from detseg.errors import ConfigError, DetsegError, RunError
from detseg.runs.threads import choose_threads

if TYPE_CHECKING:
    from detseg.config import Config
    from detseg.runs.distributed import Processes
    from detseg.runs.run_folder import RunFolder

DESCRIPTION = """Train a model from a configuration, evaluate it and draw its predictions. Everything is written to a
new folder, runs/NAME/001 and so on, unless OUTPUT_DIR is given. KEY VALUE, KEY=VALUE and --KEY=VALUE change
configuration keys."""
ACCEPTS_OVERRIDES = True
EXIT_BAD_INPUT = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", "--config-file", metavar="FILE", help="YAML file; may be left out if OUTPUT_DIR contains the run"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the last run of this configuration (or the one in OUTPUT_DIR), with its own settings",
    )
    parser.add_argument("--overwrite", action="store_true", help="remove the run in OUTPUT_DIR first")
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, or the best weights of the last run"
    )
    parser.add_argument(
        "--fold",
        metavar="K",
        help="train without fold K of DATASETS.TRAIN (field `fold` of the images, or DATASETS.FOLDS) and "
        "validate on it; `all`: every fold in turn. With --resume finished folds are skipped. When all "
        "are finished, their predictions are joined in oof.json.gz",
    )
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="processes to start on this machine, one GPU each, with Detectron2's launcher (torchrun works "
        "with either engine)",
    )
    parser.add_argument(
        "--num-threads",
        type=int,
        metavar="N",
        help="CPU threads; default: the number of free cores. Bit-identical runs need the same number",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train or evaluate; print the scores and the output files."""
    if arguments.num_gpus != 1:
        return _launch(arguments)
    choose_threads(arguments.num_threads)
    from detseg.runs.distributed import join_processes

    with join_processes() as processes:
        if not processes.is_main:
            for name in ("detseg", "detectron2"):
                logging.getLogger(name).setLevel(logging.WARNING)
        try:
            return _run(arguments, processes)
        except DetsegError as error:
            if processes.is_main or not processes.agreed_on(error):
                raise
            return EXIT_BAD_INPUT


def _launch(arguments: argparse.Namespace) -> int:
    """Start the processes of --num-gpus, each of which runs this command; return their exit status."""
    from importlib import import_module

    from detseg.engines.choice import choose_engine, not_installed

    count = arguments.num_gpus
    cfg = _given_config(arguments)
    engine = choose_engine(cfg)
    missing = not_installed(engine)
    if missing:
        raise ConfigError(f"MODEL.ENGINE ({cfg.origin('MODEL.ENGINE')}): {missing}")
    if engine.name != "detectron2":
        raise ConfigError(
            f"--num-gpus {count} starts processes by Detectron2's launch, and the engine is native ({engine.reason}): "
            f"start them with torchrun --nproc_per_node {count} tools/train_net.py"
        )
    return import_module("detseg.engine.detectron2.trainer").launch_command(_launched, arguments, count)


def _launched(arguments: argparse.Namespace) -> None:
    """Run the command in one of the processes of --num-gpus, and exit."""
    from detseg.cli.main import leave, run_parsed

    leave(run_parsed(sys.modules[__name__], arguments))


def _run(arguments: argparse.Namespace, processes: Processes) -> int:
    from detseg.engine.evaluate_only import evaluate_only
    from detseg.engine.start import Start
    from detseg.runs.interrupt import TrainingInterrupted
    from detseg.runs.run_folder import is_given_again

    cfg = processes.from_main(lambda: _given_config(arguments))
    if arguments.eval_only and arguments.resume:
        raise RunError("--eval-only evaluates and --resume continues a training: give one of them")
    if arguments.eval_only and arguments.fold is not None:
        raise ConfigError("--fold trains; to evaluate a fold's run again: --eval-only OUTPUT_DIR FOLDER/fold0")
    to_continue: list[str] = []
    is_new = arguments.fold is not None or arguments.overwrite
    is_continued = not is_new and processes.from_main(lambda: is_given_again(cfg))  # restarted by a sweep agent
    start = Start(
        processes,
        resume=arguments.resume or is_continued,
        overwrite=arguments.overwrite,
        overrides=tuple(arguments.overrides),
        finished=_print_results if arguments.fold is None else _print_scores,
        interrupted=lambda run: to_continue.append(resume_command(run, arguments, processes)),
    )
    try:
        if arguments.eval_only:
            folder, metrics = evaluate_only(cfg, arguments.overrides, processes)
            if processes.is_main:
                _print_results(folder, metrics)
        elif arguments.fold is None:
            start.train(cfg)
        else:
            runs, metrics = start.train_folds(cfg, arguments.fold, of_folds=arguments.config is None)
            if processes.is_main:
                _print_folds(runs.path, metrics, runs.unfinished(), runs.count)
    except TrainingInterrupted as interrupted:
        if processes.is_main:
            print(interrupted)
        return 128 + interrupted.signal
    finally:  # the last line of output, even if a second Ctrl-C stopped at once
        for command in to_continue:
            print(f"to continue: {command}")
    return 0


def _given_config(arguments: argparse.Namespace) -> Config:
    from detseg.config import DEFAULT_OUTPUT_DIR, load_config
    from detseg.engines.validation import run_imports
    from detseg.files.run_files import FOLDS_RECORD, advise_run
    from detseg.runs.run_folder import holds_run

    cfg = load_config(arguments.config, arguments.overrides, imports=run_imports)
    if arguments.config is None and not (
        cfg.OUTPUT_DIR != DEFAULT_OUTPUT_DIR and (arguments.resume or arguments.eval_only)
    ):
        raise ConfigError("no configuration is given: --config FILE, for example configs/quickstart/mask_rcnn.yaml")
    folder = Path(cfg.OUTPUT_DIR)
    if arguments.config is None and arguments.resume and not (holds_run(folder) or (folder / FOLDS_RECORD).is_file()):
        raise RunError(f"OUTPUT_DIR {folder} contains no run to continue; {advise_run(folder)}")
    return cfg


def resume_command(run: RunFolder, arguments: argparse.Namespace, processes: Processes) -> str:
    """Return the command that continues this run. Its settings are in its folder; further folds need the options."""
    start = program("train_net")
    if processes.count > 1 and "DETSEG_LAUNCHED" in os.environ:
        start += ["--num-gpus", f"{processes.count}"]
    elif processes.count > 1:
        several = ["--nproc_per_node", f"{processes.local_count}"]
        if processes.count > processes.local_count:
            several = ["OPTIONS-AS-BEFORE"]
        start = ["torchrun", *several, sys.argv[0]]
    words = ["--config", arguments.config] if arguments.config else []
    words += ["--num-threads", f"{arguments.num_threads}"] if arguments.num_threads else []
    words += ["--fold", arguments.fold] if arguments.fold is not None else []
    folder = run.path if arguments.fold is None else run.path.parent
    words += ["--resume", "OUTPUT_DIR", str(folder)]
    if arguments.fold is not None or not run.config.is_file():
        words += _without_output_dir(arguments.overrides)
    return shlex.join([*start, *words])


def _without_output_dir(overrides: Sequence[str]) -> list[str]:
    words, rest = [], iter(overrides)
    for word in rest:
        key, is_one_word, _ = word.removeprefix("--").partition("=")
        pair = [word] if is_one_word else [word, *itertools.islice(rest, 1)]
        words += pair if key != "OUTPUT_DIR" else []
    return words


def _print_results(folder: Path, metrics: dict[str, Any]) -> None:
    _print_scores(folder, metrics)
    _print_next(folder)


def _print_next(folder: Path) -> None:
    """Print how to predict with the trained model, with the known images as an example."""
    from detseg.coco.catalog import resolve_dataset, set_names
    from detseg.config import load_config
    from detseg.runs.run_folder import read_record

    try:
        cfg = load_config(folder / "config.yaml")
        sets = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
        data, name = resolve_dataset(sets[0]), set_names(sets)[0]
    except DetsegError:  # MODEL.IMPORTS, or data that were moved since
        print_next(then=_to_sync(read_record(folder)))
        return
    root = cfg.DATASETS.IMAGE_ROOT or data.image_root
    words = ["--image-root", root] if root else []
    output = beside("predictions.json.gz", ".json.gz")
    commands = [command_line("predict", "--run", folder, "--images", data.json, *words, "--output", output)]
    found, thresholds = folder / "predictions" / f"{name}.json.gz", folder / "postprocess.yaml"
    if found.is_file() and thresholds.is_file():
        words = ["--predictions", found, "--postprocess", thresholds]
        commands.append(command_line("evaluate", "--ground-truth", data.json, *words))
    print_next(*commands, then=_to_sync(read_record(folder)))


def _to_sync(*records: dict[str, Any] | None) -> list[str]:
    """Return the commands that upload offline W&B runs, if there are any."""
    folders = [own for record in records if (own := ((record or {}).get("wandb") or {}).get("to_sync"))]
    return [shlex.join(["wandb", "sync", *folders])] if folders else []


def _print_scores(folder: Path, metrics: dict[str, Any]) -> None:
    from detseg.runs.fold_runs import contents, results_table

    if metrics:
        chosen = (
            f"object scores: after score threshold {metrics['score_threshold']:.3f} (chosen on the validation images) "
            "and with overlaps resolved by score; COCO scores: all detections"
        )
        if metrics["object_ap"] is None:
            chosen = (
                "no score threshold was chosen (object AP, which chooses it, needs masks): postprocess.yaml keeps all "
                "detections, and `predict --score-threshold X` the better ones"
            )
        print(f"\n{results_table(metrics)}\n\n{chosen}")
    print(f"\nEverything is in {folder}:\n{contents(folder)}")


def _print_folds(folder: Path, metrics: dict[str, Any], missing: list[int], count: int) -> None:
    from detseg.data.folds import fold_name
    from detseg.engine.out_of_fold import CONTENTS, fold_table
    from detseg.files.run_files import FOLDS_RECORD, OUT_OF_FOLD_FILE, OUT_OF_FOLD_TRUTH
    from detseg.runs.fold_runs import contents
    from detseg.runs.run_folder import read_record

    if missing:
        names = ", ".join(map(str, missing))
        print(f"\nfold {names} of {count} in {folder} is not trained yet; the last one to finish joins all folds")
        print_next(command_line("train_net", "--fold", f"{missing[0]}", "--resume", "OUTPUT_DIR", folder))
        return
    print(
        f"\n{fold_table(metrics)}\n\neach fold with its own score threshold, `together` with one for all images\n\n"
        f"Everything is in {folder}:\n{contents(folder, CONTENTS)}"
    )
    words = ["--predictions", folder / OUT_OF_FOLD_FILE, "--ground-truth", folder / OUT_OF_FOLD_TRUTH]
    records = [read_record(folder / fold_name(fold)) for fold in range(count)]
    command = command_line("tune_thresholds", *words, "--output", beside(folder / "tuned", ".yaml"))
    print_next(command, then=_to_sync(*records, read_record(folder, FOLDS_RECORD)))
