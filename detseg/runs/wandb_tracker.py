"""The Weights & Biases tracker, for trainings with either engine.

docs/tracking.md lists what is logged, with names. A W&B step is an iteration.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.config import config_name
from detseg.data.folds import fold_name
from detseg.evaluation.evaluate import OBJECT_SCORES
from detseg.files.atomic import write_json
from detseg.files.run_files import FOLDS_RECORD, RECORD, read_metrics
from detseg.runs.artifacts import log_folds, log_training_inputs, log_training_outputs
from detseg.runs.run_folder import read_record, update_record
from detseg.runs.tracker import (
    EVALUATION,
    FINAL,
    TRAINING,
    Picture,
    Table,
    TrackedSession,
    Tracker,
    flatten,
)
from detseg.runs.wandb_file import read_history, run_files
from detseg.runs.wandb_media import picture_row, table_row
from detseg.runs.wandb_run import (
    DEFAULT_PROJECT,
    RECORD_ENTRY,
    Identity,
    WandbRun,
    chosen_mode,
    new_run_id,
)

if TYPE_CHECKING:
    from detseg.config import Config

# W&B's variables that apply to a single run.
_OF_ONE_RUN = ("WANDB_RUN_ID", "WANDB_NAME", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")
ITERATION = "iteration"
_TIME = "_timestamp"  # W&B's own name; set here, because the thread logs with a delay
# Prefixes of names of scores, whose best value is the highest.
_SCORES = (*OBJECT_SCORES, "foreground_iou", "iou_", "pixel_accuracy", "coco_bbox_", "coco_segm_")
# Exit codes that W&B shows for the ways in which a run ends.
_EXIT_CODES = {"finished": 0, "interrupted": 130, "failed": 1}


def identity_of(cfg: Config, folder: Path, record: str = RECORD) -> Identity:
    """Return the W&B identity of the run in a folder: from run.json, or for a new run from the configuration.

    W&B's environment variables override both. For a folder of folds, `record` is folds.json, and the identity is that
    of the summary run.
    """
    before = (read_record(folder, record) or {}).get(RECORD_ENTRY, {})
    tracking, fold = cfg.TRACKING, cfg.DATASETS.FOLD
    folds = folder.absolute() if record == FOLDS_RECORD else folder.absolute().parent if fold >= 0 else None
    stem = f"{folds.parent.name}-{folds.name}" if folds else f"{config_name(cfg.source)}-{folder.name}"
    ending = "" if folds is None else "-summary" if record == FOLDS_RECORD else f"-{fold_name(fold)}"
    return Identity(
        run_id=before.get("id") or new_run_id(),
        project=before.get("project") or tracking.PROJECT or DEFAULT_PROJECT,
        folder=folder,
        entity=before.get("entity") or tracking.ENTITY,
        group=before.get("group") or tracking.GROUP or stem,
        name=(tracking.NAME or stem) + ending,
        tags=tracking.TAGS,
    ).with_environment()


class WandbTracker(Tracker):
    """Logs numbers, pictures and tables of a training to a W&B run.

    mode: see TRACKING.MODE.
    """

    shows_pictures = True

    def __init__(self, mode: str = "auto") -> None:
        self._mode = mode
        self._run: WandbRun | None = None

    @classmethod
    def from_config(cls, cfg: Config) -> WandbTracker | None:
        mode = chosen_mode(cfg.TRACKING.MODE)
        return None if mode == "disabled" else cls(mode)

    def start(self, session: TrackedSession) -> None:
        identity = identity_of(session.cfg, session.run.path)
        self._cfg, self._folder = session.cfg, session.run.path
        resumed = session.iteration > 0
        update_record(self._folder, **{RECORD_ENTRY: identity.to_plain()})
        self._run = WandbRun(identity, mode=self._mode, config=run_config(session), resumed=resumed)
        # metrics.jsonl of a resumed training has all lines up to the checkpoint; W&B may lack the last ones.
        before = read_metrics(session.run.metrics) if resumed and session.run.metrics.is_file() else []
        self._rows = _Rows()
        self._run.do(partial(self._rows.begin, identity, before))

    def log(self, iteration: int, kind: str, values: Mapping[str, Any]) -> None:
        if self._run is not None:
            self._run.do(partial(self._rows.add, iteration, kind, {**flatten(values), _TIME: time.time()}))

    def images(self, iteration: int, pictures: Mapping[str, Picture]) -> None:
        if self._run is not None:
            self._run.do(partial(self._rows.show, iteration, pictures))

    def tables(self, iteration: int, tables: Mapping[str, Table]) -> None:
        if self._run is not None:
            self._run.do(partial(self._rows.tabulate, iteration, tables))

    def finish(self, summary: Mapping[str, Any], status: str) -> None:
        if self._run is None:
            return
        if status == "finished":  # an interrupted one can be continued
            self._run.do(partial(log_training_inputs, self._cfg))
            self._run.do(partial(log_training_outputs, self._cfg, self._folder, summary))
        self._run.do(partial(_end, flatten(summary), status))
        self._run.finish(_EXIT_CODES[status])
        record = self._run.identity.to_plain() | {"url": self._run.url, "to_sync": self._run.to_sync}
        if (self._folder / RECORD).is_file():
            update_record(self._folder, **{RECORD_ENTRY: record})


def track_folds(cfg: Config, folder: Path, metrics: Mapping[str, Any], tables: Mapping[str, Table]) -> None:
    """Log the summary of all folds as one W&B run in their group.

    folder: of the folds. metrics: the content of its final_metrics.json.
    """
    mode = chosen_mode(cfg.TRACKING.MODE)
    if mode == "disabled":
        return
    record = read_record(folder, FOLDS_RECORD) or {}
    identity = identity_of(cfg, folder, FOLDS_RECORD)
    config = {**cfg.to_dict(), **cfg.flatten()}
    run = WandbRun(identity, mode=mode, config=config, resumed=RECORD_ENTRY in record)
    run.do(partial(_Rows().tabulate, 0, tables))
    run.do(partial(log_folds, cfg, folder))
    run.do(partial(_end, flatten(metrics), "finished"))
    run.finish()
    own = identity.to_plain() | {"url": run.url, "to_sync": run.to_sync}
    write_json(folder / FOLDS_RECORD, {**record, RECORD_ENTRY: own})


@contextmanager
def folds_of_a_trial() -> Iterator[None]:
    """Hide a sweep agent's trial from W&B during the context.

    Each fold of `--fold all` is a run of its own; the summary run is the trial.
    """
    hidden = {name: os.environ.pop(name) for name in _OF_ONE_RUN if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def run_config(session: TrackedSession) -> dict[str, Any]:
    """Return what W&B shows as columns: the keys, nested and by dotted names, and run.json's entries on this start."""
    record = read_record(session.run.path) or {}
    start = (record.get("resumed") or [record])[-1]
    about = {name: start.get(name) for name in ("command", "environment", "git", "host", "processes")}
    about |= {"engine": session.engine.name, "engine_reason": session.engine.reason, "run": str(session.run.path)}
    about |= {name: record.get(name) for name in ("config_hash", "data")}
    return {**session.cfg.to_dict(), **session.cfg.flatten(), "detseg": about}


class _Rows:
    """The rows of W&B's history, one per iteration, because W&B accepts each step only once and in ascending order.

    A row stays open until the next one begins, so that an iteration's scores join its losses. Used only in the thread
    of `WandbRun`.
    """

    def __init__(self) -> None:
        self._logged: dict[str, int] = {}  # kind -> last iteration that a previous process logged
        self._first = 0  # the first free step
        self._defined: set[str] = set()

    def begin(self, identity: Identity, before: list[dict[str, Any]], run: Any) -> None:
        """Define the metrics, and log those of the lines `before` that W&B's own files lack."""
        run.define_metric(ITERATION, hidden=True)
        run.define_metric(f"{TRAINING}/*", step_metric=ITERATION)
        own = Path(run.dir).parent
        for path in run_files(identity.folder, identity.run_id):
            if path.parent != own:
                for row in read_history(path):
                    self._first = max(self._first, row["_step"] + 1)
                    for kind in (TRAINING, EVALUATION):
                        if any(name.startswith(f"{kind}/") for name in row):
                            self._logged[kind] = max(self._logged.get(kind, -1), row[ITERATION])
        self._first = max(self._first, run.step)  # an online run may have been continued on another machine
        for line in before:
            if line["kind"] != FINAL:
                values = {name: value for name, value in line.items() if name != ITERATION}
                self.add(line[ITERATION], line["kind"], flatten(values), run)

    def add(self, iteration: int, kind: str, numbers: Mapping[str, float], run: Any) -> None:
        """Log the numbers of an iteration."""
        if iteration <= self._logged.get(kind, -1):
            return
        row = {name if name == _TIME else f"{kind}/{name}": value for name, value in numbers.items()}
        if kind == EVALUATION:
            for name in sorted(row.keys() - self._defined - {_TIME}):
                best = name.rpartition("/")[2].startswith(_SCORES)
                run.define_metric(name, step_metric=ITERATION, **({"summary": "max"} if best else {}))
            self._defined |= row.keys()
        run.log({ITERATION: iteration, **row}, step=max(iteration, self._first))

    def show(self, iteration: int, pictures: Mapping[str, Picture], run: Any) -> None:
        """Log pictures, those with a common folder in their names together."""
        run.log({ITERATION: iteration, **picture_row(pictures)}, step=max(iteration, self._first))

    def tabulate(self, iteration: int, tables: Mapping[str, Table], run: Any) -> None:
        """Log tables and their plots."""
        run.log({ITERATION: iteration, **table_row(tables)}, step=max(iteration, self._first))


def _end(summary: Mapping[str, float], status: str, run: Any) -> None:
    run.summary.update({f"{FINAL}/{name}": value for name, value in summary.items()} | {"status": status})
    if status == "interrupted":
        run.mark_preempting()  # lets the sweep give its trial to another agent
