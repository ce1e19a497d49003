"""A session: what is decided once at the start of a training or an evaluation, and passed on from there."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from detseg.config import config_hash, dump_config
from detseg.engines.choice import EngineChoice, choose_engine
from detseg.errors import DetsegError, RunError
from detseg.files.atomic import write_text
from detseg.runs.distributed import SINGLE, Processes
from detseg.runs.interrupt import StopRequest, TrainingInterrupted
from detseg.runs.run_folder import RunFolder, read_record, this_process, update_record
from detseg.runs.trackers import Trackers

if TYPE_CHECKING:
    from detseg.config import Config

logger = logging.getLogger(__name__)


@dataclass
class Session:
    """One training or evaluation.

    cfg: the run's configuration, with its seed, folder and engine.
    engine: the chosen engine, and the reason.
    run: the folder; not locked unless it is a training.
    processes: those that work together, each with its own session.
    trackers: receive numbers and pictures; none in processes other than the main one.
    stop: records signals while it is entered.
    iteration, last_evaluation: of the checkpoint from which a training continues; 0 for a new one.
    summary: the final scores, as in final_metrics.json; {} until there are any.
    beginning: entries for run.json about this start; {} in an evaluation, and after they were written.
    """

    cfg: Config
    engine: EngineChoice
    run: RunFolder
    processes: Processes = SINGLE
    trackers: Trackers = field(default_factory=Trackers)
    stop: StopRequest = field(default_factory=StopRequest)
    iteration: int = 0
    last_evaluation: int = 0
    summary: dict[str, Any] = field(default_factory=dict)
    beginning: dict[str, Any] = field(default_factory=dict)

    def record_beginning(self) -> None:
        """Write config.yaml and run.json, in the main process, after all checks have passed."""
        if not self.processes.is_main:
            return
        self.run.replace()
        update_record(self.run.path, **self.beginning)
        write_text(self.run.config, dump_config(self.cfg))
        self.beginning = {}


@contextmanager
def training_session(
    cfg: Config, run: RunFolder, processes: Processes = SINGLE, trackers: Trackers | None = None
) -> Iterator[Session]:
    """Yield the session of a training in an opened run folder; engine and seed are chosen, or taken from its record.

    Nothing is written before `record_beginning`; an earlier failure leaves the folder as it was. At the end the
    trackers are closed, and the status in run.json is set to finished, interrupted or failed (it stays "running" if the
    process is killed). The files of a new run that failed before its first iteration are removed.

    Args:
        trackers: None takes those of the configuration.

    Raises:
        RunError: the run was started by another engine, or cannot be written.
    """
    engine, recorded, beginning = processes.from_main(lambda: _begin(cfg, run, processes.count))
    session = Session(recorded, engine, run, processes, stop=StopRequest(patient=processes.count > 1))
    if not processes.is_main:
        yield session
        return
    session.beginning = beginning
    session.trackers = Trackers.from_config(recorded) if trackers is None else trackers
    try:
        yield session
        session.trackers.finish(session.summary, "finished")
    except BaseException as error:
        interrupted = isinstance(error, (TrainingInterrupted, KeyboardInterrupt))
        status = "interrupted" if interrupted else "failed"
        description = str(error) if isinstance(error, DetsegError) else f"{type(error).__name__}: {error}"
        with suppress(Exception):
            session.trackers.finish(session.summary, status)
        if not session.beginning:
            with suppress(RunError):  # a full disk must not hide the original error
                update_record(run.path, status=status, **({} if interrupted else {"error": description}))
        run.forget()
        raise
    update_record(run.path, status="finished")


def _begin(cfg: Config, run: RunFolder, processes: int) -> tuple[EngineChoice, Config, dict[str, Any]]:
    before = None if run.new else read_record(run.path)
    engine = choose_engine(cfg)
    if before is not None and before["engine"] != engine.name:
        raise RunError(
            f"{run.path} was started with the engine {before['engine']}, but MODEL.ENGINE is {engine.name} "
            f"({cfg.origin('MODEL.ENGINE')}); a run must continue with its own engine. Leave out MODEL.ENGINE, or "
            f"start another run from its weights: MODEL.WEIGHTS {run.last}"
        )
    if before is not None:
        engine = EngineChoice(engine.name, before["engine_reason"], is_usual=True)
    recorded = cfg.clone()
    recorded.set("MODEL.ENGINE", engine.name, origin=engine.reason)
    if before is not None:
        recorded.SEED = before["seed"]
    elif cfg.SEED < 0:
        recorded.SEED = secrets.randbelow(2**31)
    recorded.OUTPUT_DIR = str(run.path)
    recorded.freeze()
    now = {**this_process(engine.name), "processes": processes}
    entries: dict[str, Any] = {"status": "running", "config_hash": config_hash(recorded)}
    if before is None:
        entries |= now
        entries |= {
            "folder": os.getcwd(),
            "config": None if cfg.source is None else str(cfg.source),
            "seed": recorded.SEED,
            "engine": engine.name,
            "engine_reason": engine.reason,
            "resumed": [],
        }
    else:
        entries["resumed"] = [*before.get("resumed", []), now]
    logger.info("run folder %s, seed %d, %s", run.path, recorded.SEED, engine)
    if processes > 1:
        images = cfg.SOLVER.IMS_PER_BATCH
        logger.info("%d processes, %d of the %d images of a batch in each", processes, images // processes, images)
    return engine, recorded, entries
