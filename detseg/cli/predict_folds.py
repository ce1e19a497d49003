"""`predict --folds`: out-of-fold predictions of all images of a cross-validation, in one file.

The folds are predicted one after the other; finished parts are kept beside the output, so that an interrupted command
continues with the next fold (and tile). At the end they are joined in the order of the data set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detseg.cli.predict_job import Job, load_job
from detseg.cli.predict_shared import Result, all_predictions, state_folder

if TYPE_CHECKING:
    from detseg.engine.trained_folds import TrainedFolds
    from detseg.inference.image_list import ImageList, SkippedImage
    from detseg.structures.predictions import Predictions


def open_folds(arguments: argparse.Namespace) -> TrainedFolds:
    """Return the runs of --folds."""
    from detseg.engine.trained_folds import open_trained_folds

    return open_trained_folds([Path(path) for path in arguments.folds], arguments.checkpoint)


def arguments_of_folds(arguments: argparse.Namespace, folds: TrainedFolds) -> list[argparse.Namespace]:
    """Return the arguments of the same command for the run of each fold."""
    return [
        argparse.Namespace(**{**vars(arguments), "run": [str(run)], "fold": fold})
        for fold, run in enumerate(folds.runs)
    ]


def predict_folds(commands: Sequence[argparse.Namespace], folds: TrainedFolds, images: ImageList) -> Result:
    """Predict every fold that is not done yet with its own command; return the joined result.

    images: of all folds.
    """
    from detseg.inference.image_list import ImageList

    infos, files, skipped = [], [], []
    for arguments in commands:
        job = load_job(arguments, ImageList.of_dataset(folds.sets.validation_part(arguments.fold)))
        folds.check_unseen(arguments.fold, job.predictor.trained_images)
        file = state_folder(arguments) / "predictions.json"
        _predict_fold(arguments, job, file, skipped)
        infos.append(job.info())
        files.append(file)
    # Properties shared by all models describe the whole file; the images have their folds.
    info = {name: value for name, value in infos[0].items() if all(one.get(name) == value for one in infos)}
    info |= {"folds": len(files), "out_of_fold": True, "given": {"folds": commands[0].folds}}
    return Result(images, job.predictor.classes, info, lambda *_: _joined(folds, files), skipped)


def _predict_fold(arguments: argparse.Namespace, job: Job, file: Path, skipped: list[SkippedImage]) -> None:
    """Write the predictions of one fold, unless they exist."""
    import dataclasses

    from detseg.coco.predictions_file import PredictionsWriter, read_predictions
    from detseg.errors import DataError
    from detseg.progress import ProgressBar

    names = [record.file_name for record in job.images.records]
    settings = {"tiling": dataclasses.asdict(job.predictor.tiling), "soft_masks": arguments.soft_masks, "images": names}
    info = json.loads(json.dumps({**job.info(), **settings}, default=str))
    if file.is_file():
        try:
            there = read_predictions(file)
            if len(there) == len(names) and all(there.info.get(name) == value for name, value in info.items()):
                return
        except DataError:  # of another command or truncated: written again
            pass
    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        PredictionsWriter(file, [*job.predictor.classes], info) as writer,
        ProgressBar(total=len(names), desc=f"predicting fold {arguments.fold}", unit="image") as bar,
    ):
        for number, predictions in enumerate(all_predictions(arguments, job, skipped, bar), start=1):
            writer.write(predictions)
            bar.update(max(number - bar.n, 0))
        bar.update(len(names) - bar.n)


def _joined(folds: TrainedFolds, files: list[Path]) -> Iterator[Predictions]:
    """Yield the predictions of all folds in the order of the data set, without skipped images."""
    from detseg.coco.predictions_file import read_predictions
    from detseg.engine.out_of_fold import of_fold

    readers = [iter(read_predictions(file)) for file in files]
    waiting = [next(reader, None) for reader in readers]
    for record, fold in zip(folds.sets.validation.images, folds.sets.folds.tolist(), strict=True):
        predictions = waiting[fold]
        if predictions is not None and predictions.image_id == record.image_id:
            yield of_fold(predictions, fold)
            waiting[fold] = next(readers[fold], None)
