"""The folder of a cross-validation: one run per fold, and the joint results of all folds."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.config import DEFAULT_OUTPUT_DIR, config_hash, get_default_config
from detseg.config.keys import OWN_KEYS
from detseg.data.folds import FoldedSets, fold_name
from detseg.errors import ConfigError, RunError
from detseg.files.atomic import write_json, writing
from detseg.files.lock import wait_for_lock
from detseg.files.run_files import FOLDS_RECORD, PREDICTIONS_FOLDER
from detseg.files.table import text_table
from detseg.runs.run_folder import folder_of_runs, holds_run, next_number, numbered, read_record

if TYPE_CHECKING:
    from detseg.config import Config


# Columns of the table of scores, and descriptions of the files in a run folder.

COLUMNS = (
    ("object_ap", "object AP"),
    ("object_ap50", "AP50"),
    ("object_ap75", "AP75"),
    ("mean_f1", "mean F1"),
    ("foreground_iou", "foreground IoU"),
    ("count_error", "count error"),
    ("coco_segm_ap", "COCO mask AP"),
    ("coco_bbox_ap", "COCO box AP"),
    ("objects", "objects"),
    ("predictions", "predictions"),
)

CONTENTS = {
    "final_metrics.json": "all scores",
    "checkpoints/best.pth": "the weights of the best evaluation",
    "checkpoints/last.pth": "the state at the end, to resume from",
    "report.html": "scores, curves, images and settings in one file",
    "overlays": "ground truth and prediction side by side",
    "predictions": "all detections, before thresholds",
    "postprocess.yaml": "the chosen score threshold, used by predict",
    "metrics.jsonl": "losses and evaluations by iteration",
    "tensorboard": "the same for TensorBoard",
    "wandb": "the same for W&B",
    "config.yaml": "every setting",
    "run.json": "command, versions, seed",
    "log.txt": "the log",
}


def results_table(metrics: Mapping[str, Any]) -> str:
    """Return final_metrics.json as a text table: rows for all objects and each class, group and further data set."""
    rows = [("all", metrics)]
    if len(metrics.get("per_class", {})) > 1:
        rows += [(f"class {name}", values) for name, values in metrics["per_class"].items()]
    rows += [(f"group {name}", values) for name, values in metrics.get("per_group", {}).items()]
    rows += [(f"set {name}", values) for name, values in metrics.get("datasets", {}).items()]
    return table_of_scores(rows)


def table_of_scores(rows: Sequence[tuple[str, Mapping[str, Any]]], columns: Sequence[tuple[str, str]] = COLUMNS) -> str:
    """Return named scores as a text table: counts unchanged, scores with four digits, a dash if undefined."""
    cells = [["", *(title for _, title in columns)]]
    for name, scores in rows:
        values = [scores.get(key) for key, _ in columns]
        texts = ["-" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}" for value in values]
        cells.append([name, *texts])
    heading, *lines = text_table(cells).splitlines()
    return "\n".join([heading, "-" * len(heading), *lines])


def contents(folder: Path, known: Mapping[str, str] = CONTENTS) -> str:
    """Describe those files of a run folder that are in `known` (name -> description), one line each."""
    return "\n".join(f"  {name:22}{text}" for name, text in known.items() if (folder / name).exists())


logger = logging.getLogger(__name__)

ALL = "all"
# Settings that may differ between the folds of a cross-validation: those of each fold, and those without effect on
# training.
FREE = (
    *("OUTPUT_DIR", "DATASETS.FOLD", "DATASETS.TEST", "MODEL.ENGINE", "MODEL.DEVICE", "TEST.OVERLAYS", "TEST.REPORT"),
    *("DATALOADER.NUM_WORKERS", "DATALOADER.CACHE", "DATALOADER.CACHE_SIZE", "DATALOADER.CACHE_FOLDER"),
    *("SOLVER.CHECKPOINT_PERIOD", "SOLVER.CHECKPOINT_KEEP", "SOLVER.LOG_PERIOD"),
    *(name for name in OWN_KEYS if name.startswith("TRACKING.")),
)


@dataclass(frozen=True)
class FoldRuns:
    """The runs of the folds 0 .. count - 1 in the folder `path`; `wanted`: those that this command trains."""

    path: Path
    count: int
    wanted: tuple[int, ...]

    def folder(self, fold: int) -> Path:
        """The run folder of a fold."""
        return self.path / fold_name(fold)

    def predictions(self, fold: int) -> Path:
        """The Predictions file of a fold's validation images."""
        return self.folder(fold) / PREDICTIONS_FOLDER / f"{fold_name(fold)}.json.gz"

    def is_finished(self, fold: int) -> bool:
        """Whether a fold is trained and has its predictions."""
        record = read_record(self.folder(fold)) or {}
        return record.get("status") == "finished" and self.predictions(fold).is_file()

    def unfinished(self) -> list[int]:
        """The folds that are not trained yet."""
        return [fold for fold in range(self.count) if not self.is_finished(fold)]

    def forget_unused(self) -> None:
        """Remove the folders of folds that did not start, and this folder too if none did."""
        for fold in range(self.count):
            with suppress(OSError):
                self.folder(fold).rmdir()  # fails if not empty
        if {path.name for path in self.path.iterdir()} == {FOLDS_RECORD}:
            (self.path / FOLDS_RECORD).unlink()
            with suppress(OSError):
                self.path.rmdir()

    def config(self, cfg: Config, fold: int) -> Config:
        """Return the configuration of a fold's run."""
        own = cfg.clone()
        own.set("DATASETS.FOLD", fold, origin=f"--fold {fold}")
        own.set("OUTPUT_DIR", str(self.folder(fold)), origin="the folder of the folds")
        return own.freeze()


def open_fold_runs(cfg: Config, asked: str, sets: FoldedSets, *, resume: bool = False) -> FoldRuns:
    """Find or create the folder of a cross-validation.

    The default OUTPUT_DIR takes the next free number under runs/<config>; with `resume`, the last one that holds folds.
    A single fold goes to the last folder with the same settings that lacks this fold, so that folds can be trained one
    by one, also at the same time.
    trained one by one, also at the same time.

    Args:
        asked: `all`, or the number of a fold.
        sets: the images and their folds.
        resume: continue existing folds.

    Raises:
        ConfigError: there is no such fold. RunError: the folder holds a run, or folds of other images, annotations or
            settings.
    """
    count = sets.count
    if asked != ALL and (not asked.isdecimal() or int(asked) >= count):
        raise ConfigError(f"--fold is {asked!r}; expected all, or one of 0 to {count - 1}")
    wanted = tuple(range(count)) if asked == ALL else (int(asked),)
    record = _record(cfg, sets)
    if cfg.OUTPUT_DIR != DEFAULT_OUTPUT_DIR:
        path = Path(cfg.OUTPUT_DIR)
        if holds_run(path):
            raise RunError(f"OUTPUT_DIR {path} holds a run and not folds: name another folder for the folds")
        _begin(path, record)
        return FoldRuns(path, count, wanted)
    parent = folder_of_runs(cfg)
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(parent / ".folds.lock"):
        last = next((path for path in reversed(numbered(parent)) if (path / FOLDS_RECORD).is_file()), None)
        if last is None and resume:
            logger.warning("there are no folds in %s to resume: they start from the beginning", parent)
        if last is not None and not resume:
            there = read_record(last, FOLDS_RECORD)
            if len(wanted) > 1 or _difference(there, record) or (last / fold_name(wanted[0])).exists():
                last = None
        path = last or next_number(parent)
        _begin(path, record)
        runs = FoldRuns(path, count, wanted)
        if len(wanted) == 1:  # reserve it: another process then chooses another folder
            runs.folder(wanted[0]).mkdir(exist_ok=True)
    return runs


def _record(cfg: Config, sets: FoldedSets) -> dict[str, Any]:
    """Return what the folds of one folder share: images, annotations and settings."""
    unfolded = cfg.clone()
    for key, value in get_default_config().flatten().items():
        if key in FREE:
            unfolded.set(key, value)
    return {
        "folds": sets.count,
        "images": len(sets.validation),
        "images_hash": sets.images_hash(),
        "annotations_hash": sets.annotations_hash(),
        "config_hash": config_hash(unfolded),
        "settings": cfg.flatten(),
    }


def _begin(path: Path, record: dict[str, Any]) -> None:
    """Write the record of the folds in this folder, or check that an existing one is the same."""
    there = read_record(path, FOLDS_RECORD)
    if there is None:
        write_json(path / FOLDS_RECORD, record)
    elif difference := _difference(there, record):
        raise RunError(
            f"{path} holds {there.get('folds')} folds of {there.get('images')} images, {difference}. Folds to be "
            "joined must have these in common: use the same, or another OUTPUT_DIR"
        )


def _difference(there: dict[str, Any], record: dict[str, Any]) -> str | None:
    """Describe how the folds of a folder differ from those requested; None if they do not."""
    if there.get("images_hash") != record["images_hash"]:
        now = f"{record['folds']} folds, {record['images']} images"
        return f"which differ from those of DATASETS.TRAIN now ({now})"
    if there.get("annotations_hash", record["annotations_hash"]) != record["annotations_hash"]:
        return "whose annotations differ from those of DATASETS.TRAIN (with TEST and EXTRA_TRAIN) now"
    before = there.get("settings", {})
    changed = different_settings(before, record["settings"]) if before else []
    if changed or (not before and there.get("config_hash") != record["config_hash"]):
        return f"which were started with other settings: {'; '.join(changed) or 'see their config.yaml'}"
    return None


def different_settings(before: Mapping[str, Any], now: Mapping[str, Any], free: Sequence[str] = FREE) -> list[str]:
    """List the settings that differ, by dotted key, except those in `free`.

    Keys that an older version did not have count as their defaults.
    """
    defaults = get_default_config().flatten()
    before, now = {**defaults, **before}, {**defaults, **now}
    keys = [key for key in dict.fromkeys([*before, *now]) if key not in free]
    return [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in keys
        if json.dumps(before.get(key)) != json.dumps(now.get(key))  # tuples and lists are equal in JSON
    ]
