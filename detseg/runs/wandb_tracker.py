"""The tracker of Weights & Biases, for trainings with either engine.

What is logged, and under which names, is in docs/tracking.md. A step of W&B is an iteration.
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

# W&B's variables that are about one run only.
_OF_ONE_RUN = ("WANDB_RUN_ID", "WANDB_NAME", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")
ITERATION = "iteration"
_TIME = "_timestamp"  # W&B's own name; the thread logs later than it was
# Beginnings of the names of scores, of which the highest is the best.
_SCORES = (*OBJECT_SCORES, "foreground_iou", "iou_", "pixel_accuracy", "coco_bbox_", "coco_segm_")
# What W&B shows as the end of a run that a signal ended.
_EXIT_CODES = {"finished": 0, "interrupted": 130, "failed": 1}


def identity_of(cfg: Config, folder: Path, record: str = RECORD) -> Identity:
    """What the run in a run folder is called in W&B: as run.json has it, for a new one as the configuration asks.

    W&B's environment variables win over both. Of a folder of folds, whose `record` is folds.json: the run that sums
    them up.
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
    """Numbers, pictures and tables of a training as a run of W&B.

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
        # Of a resumed training metrics.jsonl has the lines up to the checkpoint, and W&B may lack the last of them.
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
        if status == "finished":  # an interrupted one goes on
            self._run.do(partial(log_training_inputs, self._cfg))
            self._run.do(partial(log_training_outputs, self._cfg, self._folder, summary))
        self._run.do(partial(_end, flatten(summary), status))
        self._run.finish(_EXIT_CODES[status])
        record = self._run.identity.to_plain() | {"url": self._run.url, "to_sync": self._run.to_sync}
        if (self._folder / RECORD).is_file():
            update_record(self._folder, **{RECORD_ENTRY: record})


def track_folds(cfg: Config, folder: Path, metrics: Mapping[str, Any], tables: Mapping[str, Table]) -> None:
    """Sum up all folds in one run of W&B, in their group.

    folder: of the folds. metrics: what its final_metrics.json holds.
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
    """Inside of the context the trial of a sweep's agent is not there for W&B.

    Each fold of `--fold all` is a run of its own; the one that sums them up is the trial.
    """
    hidden = {name: os.environ.pop(name) for name in _OF_ONE_RUN if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def run_config(session: TrackedSession) -> dict[str, Any]:
    """What W&B shows as columns: the keys, nested and by dotted names, and what run.json has of this start."""
    record = read_record(session.run.path) or {}
    start = (record.get("resumed") or [record])[-1]
    about = {name: start.get(name) for name in ("command", "environment", "git", "host", "processes")}
    about |= {"engine": session.engine.name, "engine_reason": session.engine.reason, "run": str(session.run.path)}
    about |= {name: record.get(name) for name in ("config_hash", "data")}
    return {**session.cfg.to_dict(), **session.cfg.flatten(), "detseg": about}


class _Rows:
    """The rows of W&B's history, one per iteration: it takes steps in ascending order only, and each of them once.

    A row is open until the next one, so that the scores of an iteration join its losses. Used in the thread of
    `WandbRun` only.
    """

    def __init__(self) -> None:
        self._logged: dict[str, int] = {}  # of each kind, the last iteration that a former process logged
        self._first = 0  # the first free step
        self._defined: set[str] = set()

    def begin(self, identity: Identity, before: list[dict[str, Any]], run: Any) -> None:
        """Say what the numbers are, and log what is in the lines `before` and not in W&B's own files."""
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
        self._first = max(self._first, run.step)  # an online run may go on from another machine's
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
        """Log pictures, those of one folder of names together."""
        run.log({ITERATION: iteration, **picture_row(pictures)}, step=max(iteration, self._first))

    def tabulate(self, iteration: int, tables: Mapping[str, Table], run: Any) -> None:
        """Log tables, and what is drawn of them."""
        run.log({ITERATION: iteration, **table_row(tables)}, step=max(iteration, self._first))


def _end(summary: Mapping[str, float], status: str, run: Any) -> None:
    run.summary.update({f"{FINAL}/{name}": value for name, value in summary.items()} | {"status": status})
    if status == "interrupted":
        run.mark_preempting()  # a sweep gives its trial to another agent
