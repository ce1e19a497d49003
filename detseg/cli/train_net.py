"""The train_net command: train a model, or evaluate one."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.errors import ConfigError, DetsegError, RunError

if TYPE_CHECKING:
    import numpy as np

    from detseg.coco.dataset import CocoDataset
    from detseg.config import Config
    from detseg.runs.distributed import Processes
    from detseg.runs.fold_runs import FoldRuns
    from detseg.runs.run_folder import RunFolder

DESCRIPTION = """Train a model from a configuration, evaluate it and draw what it sees. Everything goes into a folder of
its own, runs/NAME/001 and so on, unless OUTPUT_DIR is given. KEY VALUE, KEY=VALUE and --KEY=VALUE change keys."""
ACCEPTS_OVERRIDES = True
EXIT_BAD_INPUT = 2

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", "--config-file", metavar="FILE", help="YAML file; may be left out where OUTPUT_DIR holds the run"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the last run of this configuration (or that in OUTPUT_DIR), with its own settings",
    )
    parser.add_argument("--overwrite", action="store_true", help="remove the run that lies in OUTPUT_DIR first")
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, or the best weights of the last run"
    )
    parser.add_argument(
        "--fold",
        metavar="K",
        help="train without fold K of DATASETS.TRAIN (its images' field `fold`, or DATASETS.FOLDS) and validate on it; "
        "`all`: every fold in turn. With --resume finished folds are passed over. When all are done, their predictions "
        "are joined to oof.json.gz",
    )
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="processes to start on this machine, one GPU each, by Detectron2's launch (torchrun does it for either "
        "engine)",
    )
    parser.add_argument("--num-threads", type=int, metavar="N", help="threads; a bit-identical resume needs as many")


def run(arguments: argparse.Namespace) -> int:
    """Train or evaluate; print the scores and where everything lies."""
    # Threads that wait for each other sleep, not spin: where cores are shared (with the loader's workers, with
    # other programs) training was up to ten times as fast. OpenMP reads it when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if arguments.num_gpus != 1:
        return _launch(arguments)
    import torch

    from detseg.runs.distributed import join_processes

    if arguments.num_threads is not None:
        if arguments.num_threads < 1:
            raise ConfigError(f"--num-threads is {arguments.num_threads}; expected 1 or more")
        torch.set_num_threads(arguments.num_threads)
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

    from detseg.engines.choice import check_engine

    count = arguments.num_gpus
    engine = check_engine(_given_config(arguments))
    if engine.name != "detectron2":
        raise ConfigError(
            f"--num-gpus {count} starts processes by Detectron2's launch, and the engine is native ({engine.reason}): "
            f"start them with torchrun --nproc_per_node {count} tools/train_net.py"
        )
    return import_module("detseg.engine.detectron2.launch").launch_command(_launched, arguments, count)


def _launched(arguments: argparse.Namespace) -> None:
    """One of the processes of --num-gpus: the command, and the end of the process."""
    from detseg.cli import train_net
    from detseg.cli.main import leave, run_parsed

    leave(run_parsed(train_net, arguments))


def _run(arguments: argparse.Namespace, processes: Processes) -> int:
    from detseg.runs.interrupt import TrainingInterrupted

    cfg = processes.from_main(lambda: _given_config(arguments))
    try:
        if arguments.fold is not None:
            return _train_folds(cfg, arguments, processes)
        work = _evaluate if arguments.eval_only else _train
        folder, metrics = work(cfg, arguments, processes)
    except TrainingInterrupted as interrupted:
        if processes.is_main:
            print(interrupted)
        return 128 + interrupted.signal
    if processes.is_main:
        _print_results(folder, metrics)
    return 0


def _given_config(arguments: argparse.Namespace) -> Config:
    from detseg.config import DEFAULT_OUTPUT_DIR, load_config
    from detseg.engines.imports import run_imports

    cfg = load_config(arguments.config, arguments.overrides, imports=run_imports)
    if arguments.config is None and not (
        cfg.OUTPUT_DIR != DEFAULT_OUTPUT_DIR and (arguments.resume or arguments.eval_only)
    ):
        raise ConfigError("no configuration is given: --config FILE, for example configs/quickstart/mask_rcnn.yaml")
    return cfg


def _train(cfg: Config, arguments: argparse.Namespace, processes: Processes) -> tuple[Path, dict[str, Any]]:
    from detseg.engine.train import train
    from detseg.engine.validation import validate_config
    from detseg.runs.interrupt import TrainingInterrupted
    from detseg.runs.run_folder import open_run_together

    if not arguments.resume:
        processes.from_main(lambda: validate_config(cfg))
    with open_run_together(cfg, processes, resume=arguments.resume, overwrite=arguments.overwrite) as run_folder:
        if arguments.resume:
            cfg = processes.from_main(lambda: _resumed_config(cfg, run_folder, arguments))
        try:
            return run_folder.path, train(cfg, run_folder, resume=arguments.resume, processes=processes)
        except (TrainingInterrupted, KeyboardInterrupt):
            if processes.is_main:
                print(f"to continue: {resume_command(run_folder, arguments, processes)}")
            raise


def _resumed_config(cfg: Config, run_folder: RunFolder, arguments: argparse.Namespace) -> Config:
    from detseg.config import load_config
    from detseg.engine.validation import validate_config
    from detseg.engines.choice import as_trained
    from detseg.engines.imports import same_imports
    from detseg.runs.run_folder import read_record

    if run_folder.config.is_file():
        cfg = load_config(run_folder.config, arguments.overrides, imports=same_imports(cfg))
        cfg = as_trained(cfg, (read_record(run_folder) or {}).get("engine"))
        logger.info("the settings are those of %s and of this command line", run_folder.config)
    validate_config(cfg)
    return cfg


def resume_command(run_folder: RunFolder, arguments: argparse.Namespace, processes: Processes) -> str:
    """The words that continue this run."""
    config = f"--config {arguments.config} " if arguments.config else ""
    program = f"python {sys.argv[0]}" if sys.argv[0].endswith(".py") else "detseg train_net"
    if processes.count > 1 and "DETSEG_LAUNCHED" in os.environ:
        program = f"{program} --num-gpus {processes.count}"
    elif processes.count > 1:
        several = f"--nproc_per_node {processes.local_count}"
        if processes.count > processes.local_count:
            several = "OPTIONS-AS-BEFORE"
        program = f"torchrun {several} {sys.argv[0]}"
    if arguments.fold is not None:
        return f"{program} {config}--fold {arguments.fold} --resume OUTPUT_DIR {run_folder.path.parent}"
    return f"{program} {config}--resume OUTPUT_DIR {run_folder.path}"


def _train_folds(cfg: Config, arguments: argparse.Namespace, processes: Processes) -> int:
    """Train the folds that are asked for and, when none is missing, join what they predict."""
    from detseg.engine.data_sets import load_folded_set
    from detseg.engine.validation import validate_config
    from detseg.runs.fold_runs import open_fold_runs

    if arguments.eval_only:
        raise ConfigError("--fold trains; to evaluate the run of a fold again: --eval-only OUTPUT_DIR FOLDER/fold0")
    if arguments.config is None:
        cfg = processes.from_main(lambda: _config_of_folds(cfg, arguments))
    elif not arguments.resume:
        processes.from_main(lambda: validate_config(_with_fold(cfg, 0)))
    with processes.together():
        dataset, folds = load_folded_set(cfg)
    runs = processes.from_main(lambda: open_fold_runs(cfg, arguments.fold, dataset, folds, resume=arguments.resume))
    if processes.is_main and cfg.DATASETS.TEST:
        logger.info("DATASETS.TEST is not looked at: every fold is validated on its own images")
    try:
        for fold in runs.wanted:
            if arguments.resume and processes.from_main(lambda fold=fold: runs.is_finished(fold)):
                logger.info("fold %d is finished: %s", fold, runs.folder(fold))
                continue
            folder, metrics = _train(runs.config(cfg, fold), arguments, processes)
            if processes.is_main:
                _print_results(folder, metrics)
    finally:
        if processes.is_main:
            runs.forget_unused()
    if processes.is_main:
        _join_folds(cfg, runs, dataset, folds)
    return 0


def _config_of_folds(cfg: Config, arguments: argparse.Namespace) -> Config:
    """The settings of the folds that lie in OUTPUT_DIR."""
    from detseg.config import load_config
    from detseg.engines.imports import same_imports

    present = sorted(Path(cfg.OUTPUT_DIR).glob("fold*/config.yaml"))
    if not present:
        raise ConfigError(f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds no fold that was begun: give --config FILE")
    own = load_config(present[0], arguments.overrides, imports=same_imports(cfg))
    return _with_fold(own, -1, OUTPUT_DIR=cfg.OUTPUT_DIR)


def _with_fold(cfg: Config, fold: int, **keys: str) -> Config:
    own = cfg.clone()
    for key, value in {"DATASETS.FOLD": fold, **keys}.items():
        own.set(key, value, origin=f"--fold {fold}")
    own.freeze()
    return own


def _join_folds(cfg: Config, runs: FoldRuns, dataset: CocoDataset, folds: np.ndarray) -> None:
    from detseg.engine.out_of_fold import CONTENTS, collect, fold_table
    from detseg.runs.results_table import contents

    missing = runs.unfinished()
    if missing:
        names = ", ".join(map(str, missing))
        print(f"\nfold {names} of {runs.count} in {runs.path} is not trained yet; the last one joins them all")
        return
    metrics = collect(cfg, runs, dataset, folds)
    print(
        f"\n{fold_table(metrics)}\n\neach fold with its own score threshold, `together` with one for all images\n\n"
        f"Everything lies in {runs.path}:\n{contents(runs.path, CONTENTS)}"
    )


def _evaluate(cfg: Config, arguments: argparse.Namespace, processes: Processes) -> tuple[Path, dict[str, Any]]:
    from detseg.engine.evaluate_only import evaluate_only

    if arguments.resume:
        raise RunError("--eval-only evaluates and --resume trains on: give one of them")
    return evaluate_only(cfg, arguments.overrides, processes)


def _print_results(folder: Path, metrics: dict[str, Any]) -> None:
    from detseg.runs.results_table import contents, results_table

    if metrics:
        threshold = metrics["score_threshold"]
        print(
            f"\n{results_table(metrics)}\n\nobject scores: after score threshold {threshold:.3f} (chosen on "
            "the validation images) and with overlaps resolved by score; COCO scores: all detections"
        )
    print(f"\nEverything lies in {folder}:\n{contents(folder)}")
