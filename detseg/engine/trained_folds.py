"""The runs of a finished cross-validation, for predicting every image with the model not trained with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detseg.config import load_config
from detseg.data.folds import FoldedSets, fold_name
from detseg.data.trained_images import TrainedImages, was_in_training
from detseg.engine.data_sets import load_folds
from detseg.engine.out_of_fold import refuse_other_settings
from detseg.errors import RunError, list_problems
from detseg.files.run_files import CONFIG_FILE, FOLDS_RECORD
from detseg.inference.loading import find_checkpoint
from detseg.runs.run_folder import numbered, read_record

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset


@dataclass(frozen=True)
class TrainedFolds:
    """runs: the run folder of every fold, in order. sets: their training and validation data."""

    runs: list[Path]
    sets: FoldedSets

    def check_unseen(self, fold: int, models: Sequence[TrainedImages | None]) -> None:
        """Raise RunError if a model of a fold was trained with images that now belong to the fold."""
        records = self.sets.validation_part(fold).images
        seen = [record.file_name for record in records if was_in_training(record, models)]
        if seen:
            raise RunError(
                f"{self.runs[fold]} was trained with {len(seen)} of the {len(records)} images of fold {fold}: the data "
                "set or its folds were changed since; predict with those that it was trained with:\n"
                f"{list_problems(seen)}"
            )


def open_trained_folds(paths: Sequence[Path], checkpoint: str = "best") -> TrainedFolds:
    """Find the runs of all folds, and the validation images of each.

    Args:
        paths: the folder of a training with `--fold all` (or a folder of such folders: the newest), or the runs of all
            its folds, in any order.
        checkpoint: must exist in every run, see `find_checkpoint`.

    Raises:
        RunError: folds are missing or occur twice, a run was not trained with folds or lacks the checkpoint, or runs
            differ in settings, data sets or splits. DataError: the data set has changed.
    """
    found = _folds_in(paths[0]) if len(paths) == 1 else _folds_of_runs(paths)
    first = load_config(found[min(found)] / CONFIG_FILE)
    sets = load_folds(first)
    names = ", ".join(first.DATASETS.TRAIN)
    missing = sorted(set(range(sets.count)) - found.keys())
    if missing or len(found) > sets.count:
        there = ", ".join(f"{fold} ({run})" for fold, run in sorted(found.items()))
        raise RunError(
            f"{names} has the folds 0 to {sets.count - 1}; there are runs of the folds {there}. "
            "Name the runs of all folds, or train those that are missing (train_net --fold)"
        )
    runs = [found[fold] for fold in range(sets.count)]
    refuse_other_settings(runs, also_free=["SEED"])
    for run in runs:
        record = read_record(run.parent, FOLDS_RECORD) or {}
        if record.get("images_hash", sets.images_hash()) != sets.images_hash():
            raise RunError(
                f"{run} was trained with other images or folds than {names} has now: {record.get('folds')} folds of "
                f"{record.get('images')} images, now {sets.count} of {len(sets.validation)}. Name "
                "runs of one split, and leave its data as they were"
            )
    files = [find_checkpoint(run, checkpoint) for run in runs]
    if len(set(files)) < len(files):
        raise RunError(
            f"{files[0]} is one model for all folds; name a checkpoint that every run has: best, last or a file in it"
        )
    return TrainedFolds(runs, sets)


def validation_part_of(run: Path) -> CocoDataset:
    """Return the validation images of a fold's run."""
    cfg = load_config(run / CONFIG_FILE)
    return load_folds(cfg).validation_part(cfg.DATASETS.FOLD)


def _folds_in(path: Path) -> dict[int, Path]:
    """Return the runs by fold in the folder of a `--fold all` training, or in the newest of such folders in it."""
    folders = [path, *reversed(numbered(path))]
    folder = next((one for one in folders if (one / FOLDS_RECORD).is_file()), None)
    if folder is None and (path / CONFIG_FILE).is_file():
        return _folds_of_runs([path])
    if folder is None:
        reason = "holds no folds" if path.exists() else "does not exist"
        raise RunError(
            f"{path} {reason}; name the folder that train_net --fold all printed at its end, or the runs in it"
        )
    count = (read_record(folder, FOLDS_RECORD) or {})["folds"]
    runs = {fold: folder / fold_name(fold) for fold in range(count)}
    missing = [str(fold) for fold, run in runs.items() if not (run / CONFIG_FILE).is_file()]
    if missing:
        raise RunError(
            f"{folder} has {count} folds, and fold {', '.join(missing)} is not trained: train_net --fold all --resume "
            f"OUTPUT_DIR {folder}"
        )
    return runs


def _folds_of_runs(paths: Sequence[Path]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for run in paths:
        if not (run / CONFIG_FILE).is_file():
            kind = "holds folds; name it alone, or the runs in it" if (run / FOLDS_RECORD).is_file() else "is no run"
            raise RunError(f"{run} {kind}")
        fold = load_config(run / CONFIG_FILE).DATASETS.FOLD
        if fold < 0:
            raise RunError(f"{run} was not trained with folds (train_net --fold): its model has seen all its images")
        if fold in found:
            raise RunError(f"{found[fold]} and {run} are both runs of fold {fold}; name one for each fold")
        found[fold] = run
    return found
