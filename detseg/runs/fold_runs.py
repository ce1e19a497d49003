"""The folder of a cross-validation: one run a fold in it, and what all folds together say."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.config import DEFAULT_OUTPUT_DIR, config_hash
from detseg.data.folds import fold_name
from detseg.errors import ConfigError, RunError
from detseg.files.atomic import write_json, writing
from detseg.files.lock import wait_for_lock
from detseg.runs.record import read_record
from detseg.runs.run_folder import folder_of_runs, holds_run, next_number, numbered

if TYPE_CHECKING:
    from detseg.config import Config

logger = logging.getLogger(__name__)

RECORD = "folds.json"
ALL = "all"


@dataclass(frozen=True)
class FoldRuns:
    """The runs of the folds 0 .. count - 1 in the folder `path`; `wanted` are those that this command trains."""

    path: Path
    count: int
    wanted: tuple[int, ...]

    def folder(self, fold: int) -> Path:
        """Return the run folder of a fold."""
        return self.path / fold_name(fold)

    def is_finished(self, fold: int) -> bool:
        """Whether a fold is trained and its predictions are there."""
        record = read_record(self.folder(fold)) if self.folder(fold).is_dir() else None
        return record is not None and record.get("status") == "finished" and self.predictions(fold).is_file()

    def predictions(self, fold: int) -> Path:
        """Return the Predictions file of a fold's validation images."""
        return self.folder(fold) / "predictions" / f"{fold_name(fold)}.json.gz"

    def unfinished(self) -> list[int]:
        """Return the folds that are not trained yet."""
        return [fold for fold in range(self.count) if not self.is_finished(fold)]

    def forget_unused(self) -> None:
        """Remove the folders of folds in which nothing began, and where none has begun this folder too."""
        for fold in range(self.count):
            with suppress(OSError):
                self.folder(fold).rmdir()  # only where it is empty
        if {path.name for path in self.path.iterdir()} == {RECORD}:
            (self.path / RECORD).unlink()
            with suppress(OSError):
                self.path.rmdir()

    def config(self, cfg: Config, fold: int) -> Config:
        """Return the configuration of the run of a fold."""
        own = cfg.clone()
        own.set("DATASETS.FOLD", fold, origin=f"--fold {fold}")
        own.set("OUTPUT_DIR", str(self.folder(fold)), origin="the folder of the folds")
        own.freeze()
        return own


def open_fold_runs(
    cfg: Config, asked: str, dataset: CocoDataset, folds: np.ndarray, *, resume: bool = False
) -> FoldRuns:
    """Find or make the folder of a cross-validation.

    The default OUTPUT_DIR takes the next free number under runs/<config>; with `resume` the last one that holds folds.
    A single fold goes to the last one that was made with the same settings and lacks this fold, so that folds can be
    trained one by one, also at the same time.

    Args:
        cfg: the configuration.
        asked: `all`, or the number of a fold.
        dataset, folds: the images that are in a fold, and their folds (N,).
        resume: continue what lies there.

    Raises:
        ConfigError: there is no such fold. RunError: the folder holds a run of its own, or folds of other images.
    """
    count = int(folds.max()) + 1
    wanted = wanted_folds(asked, count)
    record = {
        "folds": count,
        "images": len(dataset),
        "images_hash": _hash_of(dataset, folds),
        "config_hash": config_hash(_without_fold(cfg)),
    }
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
        path = _present(parent, record, wanted, resume=resume) or next_number(parent)
        _begin(path, record)
        runs = FoldRuns(path, count, wanted)
        if len(wanted) == 1:  # taken: another process that looks now goes on to another folder
            runs.folder(wanted[0]).mkdir(exist_ok=True)
    return runs


def wanted_folds(asked: str, count: int) -> tuple[int, ...]:
    """Return the folds that `all` or a number means. Raises ConfigError for what is none of `count` folds."""
    if asked == ALL:
        return tuple(range(count))
    if not asked.isdecimal() or int(asked) >= count:
        raise ConfigError(f"--fold is {asked!r}; expected all, or one of 0 to {count - 1}")
    return (int(asked),)


def _present(parent: Path, record: dict[str, Any], wanted: Sequence[int], *, resume: bool) -> Path | None:
    """Return the folder of folds to go on with, or None for a new one."""
    for path in reversed(numbered(parent)):
        there = _read_record(path)
        if there is None:
            continue
        if resume:
            return path
        alike = all(there.get(key) == record[key] for key in ("images_hash", "config_hash"))
        if len(wanted) == 1 and alike and not (path / fold_name(wanted[0])).exists():
            return path
        return None
    if resume:
        logger.warning("there are no folds in %s to resume: they start from the beginning", parent)
    return None


def _begin(path: Path, record: dict[str, Any]) -> None:
    """Write what the folds of this folder are, or check that they are the same."""
    there = _read_record(path)
    if there is None:
        write_json(path / RECORD, record)
    elif there.get("images_hash") != record["images_hash"]:
        raise RunError(
            f"{path} holds {there.get('folds')} folds of {there.get('images')} images, which are others than those of "
            f"DATASETS.TRAIN now ({record['folds']} folds, {record['images']} images): use the same folds, or another "
            "OUTPUT_DIR"
        )
    elif there.get("config_hash") != record["config_hash"]:
        logger.warning("the folds in %s were begun with other settings; each goes on with its own", path)


def _read_record(path: Path) -> dict[str, Any] | None:
    file = path / RECORD
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{file} is damaged ({error}); remove it, and the folds are read anew") from error


def _hash_of(dataset: CocoDataset, folds: np.ndarray) -> str:
    lines = sorted(f"{record.file_name}\t{fold}" for record, fold in zip(dataset.images, folds.tolist(), strict=True))
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _without_fold(cfg: Config) -> Config:
    own = cfg.clone()
    own.set("DATASETS.FOLD", -1)
    return own
