"""Out-of-fold predictions of a cross-validation, joined into one set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.coco.pairing import ImageIndex
from detseg.coco.predictions_file import read_predictions
from detseg.config import config_hash, load_config
from detseg.data.folds import FOLD, FoldedSets, fold_name
from detseg.engine.evaluation import group_field, write_set
from detseg.engine.pictures import evaluation_tables
from detseg.engine.plan import EvaluationOptions
from detseg.engines.validation import same_imports
from detseg.errors import RunError
from detseg.evaluation.ground_truth import GroundTruth
from detseg.files.atomic import read_json, write_json, writing
from detseg.files.run_files import (
    CONFIG_FILE,
    METRICS_FILE,
    OUT_OF_FOLD_FILE,
    OUT_OF_FOLD_TRUTH,
    POSTPROCESS_FILE,
    REPORT_FILE,
)
from detseg.files.table import write_csv
from detseg.fusion.postprocess import Postprocess
from detseg.runs.fold_runs import COLUMNS, FREE, FoldRuns, different_settings, table_of_scores
from detseg.runs.tracker import Table
from detseg.runs.wandb_tracker import track_folds
from detseg.structures.predictions import Predictions
from detseg.tuning.inputs import classes_to_tune
from detseg.tuning.space import State, make_coordinates
from detseg.tuning.thresholds import evaluate_tuned
from detseg.tuning.trials import Trials
from detseg.tuning.tuning import coordinate_search, tune

if TYPE_CHECKING:
    from detseg.config import Config
    from detseg.config.loading import Imports

SCORES_FILE = "fold_scores.csv"
CONTENTS = {
    OUT_OF_FOLD_FILE: "out-of-fold predictions of all images, before thresholds",
    OUT_OF_FOLD_TRUTH: "the same images with their ground truth",
    REPORT_FILE: "scores, curves and images in one file",
    SCORES_FILE: "the scores of every fold and of all",
    METRICS_FILE: "all scores",
    POSTPROCESS_FILE: "the score threshold chosen on all images",
}


def collect(cfg: Config, runs: FoldRuns, sets: FoldedSets) -> dict[str, Any]:
    """Join the predictions of all folds, score them and write everything to the folder of the folds.

    Args:
        runs: the folds, all finished.
        sets: the images of all folds, with their validation annotations.

    Returns:
        the content of final_metrics.json: the scores of all images together, with one score threshold; in `folds` those
        of each fold by name, each with its own threshold; in `cross_fitted` object AP with thresholds chosen on the
        other folds.

    Raises:
        RunError: predictions are missing or of other images, or folds were trained with different settings.
    """
    imports = same_imports(cfg)
    also_free = ["SEED"] if cfg.SEED < 0 else []
    refuse_other_settings([runs.folder(fold) for fold in range(runs.count)], also_free=also_free, imports=imports)
    dataset, folds = sets.validation, sets.folds
    predictions = join_predictions(runs, dataset, folds)
    info = {"config_hash": config_hash(cfg), "folds": runs.count, "out_of_fold": True}
    options = EvaluationOptions.from_config(cfg)
    write_set(runs.path / OUT_OF_FOLD_FILE, predictions, dataset, info)
    with writing(runs.path):
        dataset.save(
            runs.path / OUT_OF_FOLD_TRUTH,
            annotations=dataset.rle_annotations(),
            image_fields=[{FOLD: fold} for fold in folds.tolist()],
            info={"description": f"ground truth of {OUT_OF_FOLD_FILE}"},
            overwrite=True,
        )
    truth = GroundTruth.from_coco(dataset)
    metrics, postprocess = evaluate_tuned(
        truth,
        predictions,
        max_detections=options.max_detections,
        group_by=group_field(dataset, options),
    )
    if (crossed := cross_fitted_object_ap(dataset, predictions, folds)) is not None:
        metrics["cross_fitted"] = {"object_ap": crossed}
    own = {fold_name(fold): read_json(runs.folder(fold) / METRICS_FILE) for fold in range(runs.count)}
    metrics = {**metrics, "folds": own}
    write_json(runs.path / METRICS_FILE, metrics)
    with writing(runs.path):
        postprocess.save(runs.path / POSTPROCESS_FILE)
    columns = ["fold", *(key for key, _ in COLUMNS), "images", "score_threshold"]
    rows = [
        [name, *("" if scores.get(key) is None else scores[key] for key in columns[1:])]
        for name, scores in fold_rows(metrics)
    ]
    write_csv(runs.path / SCORES_FILE, [columns, *rows], "the scores")
    if "wandb" in cfg.TRACKING.BACKENDS:
        tables = evaluation_tables(dataset, truth, predictions, postprocess, metrics, "oof", options.overlays)
        track_folds(cfg, runs.path, metrics, {"tables/oof/folds": Table(columns, rows), **tables})
    return metrics


def cross_fitted_object_ap(dataset: CocoDataset, predictions: Sequence[Predictions], folds: np.ndarray) -> float | None:
    """Object AP with each fold's score and size thresholds chosen on the other folds.

    None if undefined: no masks, no objects, or a single fold.
    """
    truth = GroundTruth.from_coco(dataset)
    active, _ = classes_to_tune(truth, predictions)
    if not active or len(np.unique(folds)) < 2 or any(len(image) and image.rles is None for image in predictions):
        return None
    trials = Trials(truth, [predictions], "object_ap")
    start = State(dataclasses.replace(Postprocess(), classes=tuple(truth.class_names)))
    coordinates = make_coordinates(["score_threshold", "min_area"], truth, start, classes=active)
    search = partial(coordinate_search, trials, start, coordinates)
    crossed = tune(trials, lambda images: start, search, folds.tolist(), bootstrap=0).cross_fitted
    return None if crossed is None else crossed.after.value


def refuse_other_settings(
    runs: Sequence[Path], *, also_free: Sequence[str] = (), imports: Imports | None = None
) -> None:
    """Raise RunError if the runs of folds differ in settings, as after `--resume OUTPUT_DIR FOLDER/fold1 KEY VALUE`.
    also_free: keys that may differ in addition to `FREE`.
    """
    settings = [load_config(run / CONFIG_FILE, imports=imports).flatten() for run in runs]
    free = [key for key in FREE if key != "MODEL.ENGINE"] + [*also_free]
    for run, own in zip(runs[1:], settings[1:], strict=True):
        changed = different_settings(settings[0], own, free)
        if changed:
            raise RunError(
                f"{runs[0]} and {run} were trained with different settings, and are not joined: {'; '.join(changed)}. "
                "Train one of them again (--overwrite)"
            )


def of_fold(predictions: Predictions, fold: int) -> Predictions:
    """Return an image's predictions with the fold that made them, in the provenance and as a field of the image."""
    provenance, metadata = ({**known, FOLD: fold} for known in (predictions.provenance, predictions.metadata))
    return dataclasses.replace(predictions, provenance=provenance, metadata=metadata)


def join_predictions(runs: FoldRuns, dataset: CocoDataset, folds: np.ndarray) -> list[Predictions]:
    """Return the predictions of all images in the order of the data set; `provenance["fold"]` names the run.

    Raises RunError if those of an image are missing.
    """
    joined: dict[int | str, Predictions] = {}
    index = ImageIndex(dataset.images, dataset.name)
    for fold in range(runs.count):
        expected = {dataset.images[index].image_id for index in np.flatnonzero(folds == fold)}
        for prediction in read_predictions(runs.predictions(fold), dataset):
            image_id = index.find(prediction).image_id
            if image_id in expected:
                joined[image_id] = dataclasses.replace(of_fold(prediction, fold), image_id=image_id)
                expected.remove(image_id)
        if expected:
            raise RunError(
                f"{runs.predictions(fold)} lacks {len(expected)} images of fold {fold}: the folds were changed after "
                "it was trained; train it again (--overwrite)"
            )
    return [joined[record.image_id] for record in dataset.images]


def fold_rows(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the rows of scores: every fold, their mean and standard deviation, and all images together."""
    folds: Mapping[str, Mapping[str, Any]] = metrics["folds"]
    keys = [key for key, _ in COLUMNS if all(isinstance(own.get(key), float) for own in folds.values())]
    mean = {key: fmean(own[key] for own in folds.values()) for key in keys}
    deviation = {key: stdev(own[key] for own in folds.values()) for key in keys}
    return [*folds.items(), ("mean", mean), ("deviation", deviation), ("together", metrics)]


def fold_table(metrics: Mapping[str, Any]) -> str:
    """Return the scores of the folds and of all images as a text table."""
    return table_of_scores(fold_rows(metrics), (*COLUMNS, ("score_threshold", "threshold")))
