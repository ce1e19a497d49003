"""Start trainings in their run folders: new, resumed, or for all folds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.config import load_config, load_flat_config
from detseg.engine.data_sets import load_folds
from detseg.engine.out_of_fold import collect
from detseg.engine.plan import EvaluationOptions
from detseg.engine.train import train
from detseg.engine.validation import validate_config
from detseg.engines.choice import as_trained
from detseg.engines.validation import same_imports
from detseg.errors import ConfigError
from detseg.files.run_files import FOLDS_RECORD, REPORT_FILE
from detseg.report.run.page import write_report
from detseg.runs.distributed import Processes
from detseg.runs.fold_runs import FoldRuns, open_fold_runs
from detseg.runs.interrupt import TrainingInterrupted
from detseg.runs.run_folder import RunFolder, open_run_together, read_record
from detseg.runs.wandb_tracker import folds_of_a_trial

if TYPE_CHECKING:
    from detseg.config import Config

logger = logging.getLogger(__name__)

# Seconds: a shorter training gets no report, which would take longer to write.
SHORTEST_REPORTED = 30


@dataclass(frozen=True)
class Start:
    """Starts trainings.

    resume: continue an existing run with its own settings. overwrite: remove it first. overrides: command-line
    arguments, which override a resumed run's settings. finished: called in the main process with the folder and the
    scores of each training. interrupted: called with the folder of a training that a signal ended.
    """

    processes: Processes
    resume: bool = False
    overwrite: bool = False
    overrides: tuple[str, ...] = ()
    finished: Callable[[Path, dict[str, Any]], None] = lambda folder, metrics: None
    interrupted: Callable[[RunFolder], None] = lambda run: None

    def train(self, cfg: Config) -> None:
        """Open the run folder and train in it."""
        processes = self.processes
        if not self.resume:
            processes.from_main(lambda: validate_config(cfg))
        with open_run_together(cfg, processes, resume=self.resume, overwrite=self.overwrite) as run:
            if self.resume:
                cfg = processes.from_main(lambda: self._resumed_config(cfg, run))
            began = time.monotonic()
            try:
                metrics = train(cfg, run, resume=self.resume, processes=processes)
            except (TrainingInterrupted, KeyboardInterrupt):
                if processes.is_main:
                    self.interrupted(run)
                raise
            if processes.is_main:
                write_report_at_end(cfg, run.path, time.monotonic() - began)
        if processes.is_main:
            self.finished(run.path, metrics)

    def _resumed_config(self, cfg: Config, run: RunFolder) -> Config:
        if run.config.is_file():
            record = read_record(run.path) or {}
            given, cfg = cfg, load_config(run.config, self.overrides, imports=same_imports(cfg))
            cfg = as_trained(cfg, record.get("engine"))
            logger.info("the settings are those of %s and of this command line", run.config)
            # A file of the same name in another folder may be meant, or the file has changed since.
            own, asked = cfg.flatten(), given.flatten()
            expected = ("SEED", *(key for key in own if key in " ".join(record.get("command", []))))
            differing = [key for key in asked if given.origin(key) != "default" and asked[key] != own[key]]
            if others := [key for key in differing if key not in expected]:
                logger.warning("other values in %s are ignored: %s", given.source, ", ".join(others))
        validate_config(cfg)
        return cfg

    def train_folds(self, cfg: Config, asked: str, *, of_folds: bool = False) -> tuple[FoldRuns, dict[str, Any]]:
        """Train the requested folds ("all", or a number) and, once all are finished, join their predictions.

        of_folds: the settings are those of the folds in OUTPUT_DIR.

        Returns:
            the folds, and the content of their joint final_metrics.json; {} while a fold is missing, and in processes
            other than the main one.
        """
        processes = self.processes
        if of_folds:
            cfg = processes.from_main(lambda: self._config_of_folds(cfg))
        elif not self.resume:
            processes.from_main(lambda: validate_config(_with_fold(cfg, 0)))
        with processes.together():
            sets = load_folds(cfg)
        runs = processes.from_main(lambda: open_fold_runs(cfg, asked, sets, resume=self.resume))
        if processes.is_main and sets.has_own_truth:
            logger.info("every fold is validated on its images as %s annotates them", sets.validation.name)
        elif processes.is_main and cfg.DATASETS.TEST:
            logger.warning(
                "DATASETS.TEST has no image of DATASETS.TRAIN and is not used: every fold is validated on its own "
                "images as DATASETS.TRAIN annotates them"
            )
        began = time.monotonic()
        try:
            for fold in runs.wanted:
                if self.resume and processes.from_main(lambda fold=fold: runs.is_finished(fold)):
                    logger.info("fold %d is finished: %s", fold, runs.folder(fold))
                    continue
                with folds_of_a_trial() if len(runs.wanted) > 1 else nullcontext():
                    self.train(runs.config(cfg, fold))
        finally:
            if processes.is_main:
                runs.forget_unused()
        if not processes.is_main or runs.unfinished():
            return runs, {}
        metrics = collect(cfg, runs, sets)
        write_report_at_end(cfg, runs.path, time.monotonic() - began)
        return runs, metrics

    def _config_of_folds(self, cfg: Config) -> Config:
        record = read_record(Path(cfg.OUTPUT_DIR), FOLDS_RECORD) or {}
        if "settings" not in record:
            raise ConfigError(f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds no folds to continue: give --config FILE")
        asked = {key: value for key, value in cfg.flatten().items() if cfg.origin(key) == "command line"}
        own = load_flat_config({**record["settings"], **asked}, imports=same_imports(cfg))
        return _with_fold(own, -1, OUTPUT_DIR=cfg.OUTPUT_DIR)


def _with_fold(cfg: Config, fold: int, **keys: str) -> Config:
    own = cfg.clone()
    for key, value in {"DATASETS.FOLD": fold, **keys}.items():
        own.set(key, value, origin=f"--fold {fold}")
    return own.freeze()


def write_report_at_end(cfg: Config, folder: Path, seconds: float) -> None:
    """Write report.html for a training that took `seconds`, if TEST.REPORT requests it.

    A failure is only logged. Very short trainings get no report, because it would take longer than the training.
    """
    if not EvaluationOptions.from_config(cfg).report:
        return
    command = f"detseg report --run {folder}"
    if seconds < SHORTEST_REPORTED:
        logger.info("the training took %.0f s: no report is written, %s makes one", seconds, command)
        return
    try:
        write_report([folder], imports=same_imports(cfg))
    except Exception as error:
        logger.warning("no %s was written (%s: %s); %s tries again", REPORT_FILE, type(error).__name__, error, command)
