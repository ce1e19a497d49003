"""Score a model on data sets: quickly during training, and completely at its end, with all results written."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from detseg.coco.predictions_file import write_predictions
from detseg.config import config_hash
from detseg.data.trained_images import TrainedImages
from detseg.engine.pictures import draw_pictures, evaluation_tables
from detseg.engine.pixel_scores import PixelScores
from detseg.engine.plan import EvaluationOptions
from detseg.evaluation.ground_truth import GroundTruth
from detseg.evaluation.object_ap import count_objects, summarize_objects
from detseg.files.atomic import write_json, writing
from detseg.files.hashing import hash_file
from detseg.files.run_files import METRICS_FILE, POSTPROCESS_FILE, PREDICTIONS_FOLDER
from detseg.inference.precision import AUTO, FULL, MEASURED, choose_precision, is_equal, precisions_of
from detseg.inference.predictor import Predictor
from detseg.inference.validation import InferenceOptions
from detseg.models.weights import load_weights
from detseg.runs.session import Session
from detseg.structures.predictions import Predictions
from detseg.tuning.thresholds import evaluate_tuned

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset
    from detseg.engine.training import Evaluate
    from detseg.fusion.postprocess import Postprocess
    from detseg.models.base import Segmenter


logger = logging.getLogger(__name__)

# Images, evenly spaced, on which precisions are compared with float32, which takes two or three passes.
MEASURED_IMAGES = 64


def build_quick_evaluation(
    session: Session,
    dataset: CocoDataset,
    classes: Sequence[str],
    best_metric: str,
    name: str = "validation",
    *,
    typical_diameter: float | None = None,
) -> Evaluate:
    """Return the evaluation during training: a function of the model that returns scores; cheaper than the final one.

    With INPUT.OBJECT_SIZE, object sizes are estimated as in prediction, not taken from the labels. typical_diameter:
    see ImageModel.

    The trackers get pictures of TRACKING.PICTURES images, the same ones every time, under the `name` of the set.

    COCO AP is computed only if it is the `best_metric`. If several processes train, each predicts a part of the images
    and the main process scores. Test-time augmentation (TEST.AUG) is left to the final evaluation, which chooses the
    thresholds.
    """
    options, inference = EvaluationOptions.from_config(session.cfg), InferenceOptions.from_config(session.cfg)
    chosen = spread_evenly(len(dataset), options.max_images)
    if len(chosen) < len(dataset):
        dataset = dataset.select(chosen)
    truth = GroundTruth.from_coco(dataset)
    coco = best_metric.startswith("coco")

    pictures = spread_evenly(len(dataset), options.pictures) if options.pictures else []

    def evaluate(model: nn.Module, iteration: int) -> dict[str, Any]:
        predictor = Predictor.from_model(
            model, inference, classes, augmented=False, precision=options.precision, typical_diameter=typical_diameter
        )
        pixels = PixelScores(predictor, dataset)
        predictions = predict_all(session, predictor, dataset, pixels=pixels)
        ious = pixels.gathered(session.processes)

        def score() -> dict[str, Any]:
            group_by = group_field(dataset, options)
            limit = options.max_detections
            metrics, applied = evaluate_tuned(truth, predictions, max_detections=limit, group_by=group_by, coco=coco)
            arguments = dataset, truth, predictions, applied, pictures, name
            session.trackers.draw("images", iteration, functools.partial(draw_pictures, *arguments))
            return without_nones(metrics | ious)

        return session.processes.from_main(score)

    return evaluate


def evaluate_weights(
    session: Session,
    model: Segmenter,
    weights: Path,
    datasets: Mapping[str, CocoDataset],
    classes: Sequence[str],
    *,
    iteration: int = 0,
) -> dict[str, Any]:
    """Load weights into `model`, predict and score every data set, and write all results to the run's folder.

    predictions/NAME.json.gz holds all detections above MODEL.ROI_HEADS.SCORE_THRESH_TEST. The score threshold is chosen
    on the first set, used for all, and stored in postprocess.yaml. overlays/NAME shows ground truth and prediction side
    by side; the trackers get these pictures too.

    Args:
        model: on its device; left in evaluation mode.
        datasets: by name; the first is the validation set.
        iteration: under which the trackers log the overlays.

    Returns:
        the content of final_metrics.json: the first set's scores with `score_threshold`; with several sets also
        `datasets`, the scores of each by name; the `number_format` used for all; and the model's number of
        `parameters`.

    Raises:
        TrainingInterrupted: a signal was received.
    """
    cfg, processes, folder = session.cfg, session.processes, session.run.path
    loaded = processes.from_main(lambda: load_weights(model, weights))
    processes.share_state(model)
    info = {
        "config_hash": config_hash(cfg),
        "engine": session.engine.name,
        "engine_reason": session.engine.reason,
        "weights": str(weights),
        "checkpoint_hash": processes.from_main(lambda: hash_file(weights)),
    }
    if cfg.DATASETS.FOLD >= 0:
        info["fold"] = cfg.DATASETS.FOLD
    inference, precision, measured = InferenceOptions.from_config(cfg), cfg.TEST.PRECISION, {}
    if precision == AUTO:
        first = next(iter(datasets.values()))
        measured = measure_precisions(session, model.eval(), inference, first, classes, loaded.object_diameter)
        precision = session.processes.from_main(lambda: choose_precision(model, measured))
    info["precision"] = precision
    predictor = Predictor.from_model(
        model.eval(),
        inference,
        classes,
        precision=precision,
        provenance=info,
        trained_images=TrainedImages.from_stored(loaded.trained_images),
        typical_diameter=loaded.object_diameter,
    )
    scores: dict[str, dict[str, Any]] = {}
    postprocess: Postprocess | None = None
    for name, dataset in datasets.items():
        pixels = PixelScores(predictor, dataset)
        predictions = predict_all(session, predictor, dataset, f"predicting {name}", pixels)
        threshold = None if postprocess is None else postprocess.score_threshold
        score = functools.partial(_score_set, session, name, dataset, predictions, threshold, info, iteration)
        scores[name], applied = processes.from_main(score)
        scores[name] |= pixels.gathered(processes)
        postprocess = postprocess or applied
    first = next(iter(scores.values()))
    final = dict(first) if len(scores) == 1 else {**first, "datasets": scores}
    final |= {"number_format": precision, "parameters": sum(values.numel() for values in model.parameters())}
    final |= {MEASURED: measured} if measured else {}

    def write() -> dict[str, Any]:
        with writing(folder / POSTPROCESS_FILE):
            postprocess.save(folder / POSTPROCESS_FILE)
        write_json(folder / METRICS_FILE, final)
        return final

    return processes.from_main(write)


def _score_set(
    session: Session,
    name: str,
    dataset: CocoDataset,
    predictions: Sequence[Predictions],
    score_threshold: float | None,
    info: dict[str, Any],
    iteration: int,
) -> tuple[dict[str, Any], Postprocess]:
    """Write and draw the predictions for a data set; return its scores and the postprocess applied before scoring."""
    options, folder = EvaluationOptions.from_config(session.cfg), session.run.path
    write_set(folder / PREDICTIONS_FOLDER / f"{name}.json.gz", predictions, dataset, info)
    truth = GroundTruth.from_coco(dataset)
    metrics, applied = evaluate_tuned(
        truth,
        predictions,
        score_threshold=score_threshold,
        max_detections=options.max_detections,
        group_by=group_field(dataset, options),
    )
    with writing(folder / "overlays"):
        drawn = draw_overlays(dataset, truth, predictions, applied, folder / "overlays" / name, options.overlays)
    session.trackers.images(iteration, {f"overlays/{name}/{path.stem}": path for path in drawn})
    arguments = dataset, truth, predictions, applied, metrics, name, options.overlays
    session.trackers.draw("tables", iteration, functools.partial(evaluation_tables, *arguments))
    return metrics, applied


def measure_precisions(
    session: Session,
    model: Segmenter,
    inference: InferenceOptions,
    dataset: CocoDataset,
    classes: Sequence[str],
    typical_diameter: float | None = None,
) -> dict[str, float]:
    """Measure object AP by precision: float32, then the fastest first until one is as good; {} if there is no choice.

    Without test-time augmentation, which changes the detections more than the precision does.
    """
    fast = session.processes.from_main(lambda: precisions_of(model)[:-1])
    dataset = dataset.select(spread_evenly(len(dataset), MEASURED_IMAGES))
    truth = GroundTruth.from_coco(dataset)
    measured: dict[str, float] = {}
    for precision in [FULL, *fast] if fast and len(dataset) else []:
        predictor = Predictor.from_model(
            model, inference, classes, precision=precision, augmented=False, typical_diameter=typical_diameter
        )
        predictions = predict_all(session, predictor, dataset, f"evaluating in {precision}")
        tuned = functools.partial(evaluate_tuned, truth, predictions, coco=False)
        measured[precision] = session.processes.from_main(lambda tuned=tuned: tuned()[0]["object_ap"])
        if precision != FULL and is_equal(measured[precision], measured[FULL]):
            break
    return measured


def write_set(path: Path, predictions: Sequence[Predictions], dataset: CocoDataset, info: dict[str, Any]) -> None:
    """Write a Predictions file with the category ids of the data set."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        categories = [{"id": category.id, "name": category.name} for category in dataset.categories]
        write_predictions(path, predictions, categories, info)


def predict_all(
    session: Session,
    predictor: Predictor,
    dataset: CocoDataset,
    description: str = "evaluating",
    pixels: PixelScores | None = None,
) -> list[Predictions]:
    """Predict the images of a data set, with a progress bar, or one line a minute without a terminal.

    With several processes, each predicts every `processes.count`-th image. pixels: accumulates pixel scores.

    Returns:
        the predictions of all images in order; with several processes, only in the main one.

    Raises:
        TrainingInterrupted: a signal was received.
    """
    from detseg.progress import ProgressBar

    processes = session.processes
    own = dataset.images[processes.rank :: processes.count]
    predictions: list[Predictions] = []
    bar = ProgressBar(total=len(own), desc=description, unit="image", leave=False, disable=not processes.is_main)
    with processes.together(), bar:
        for prediction in predictor.predict_records(own):
            if pixels is not None:
                pixels.add(processes.rank + len(predictions) * processes.count)
            predictions.append(prediction)
            bar.update()
            session.stop.raise_if_requested("stopped during an evaluation; the training up to it is saved")
    whole: list[Any] = [None] * len(dataset)
    for rank, part in enumerate(processes.gather(predictions)):  # empty in processes other than the main one
        whole[rank :: processes.count] = part
    return whole


def draw_overlays(
    dataset: CocoDataset,
    truth: GroundTruth,
    predictions: Sequence[Predictions],
    postprocess: Postprocess,
    folder: Path,
    wanted: int,
) -> list[Path]:
    """Draw truth and postprocessed predictions of `wanted` images, evenly spaced in the set; return the PNG paths."""
    from detseg.report.overlays import Overlay, draw_overlay, overlay_names

    names, drawn = overlay_names(dataset.images), []
    for index in spread_evenly(len(dataset), wanted) if wanted > 0 else []:
        shown = postprocess.apply(predictions[index])
        note = ""
        if shown.rles is not None:  # object AP requires masks
            scores = summarize_objects([count_objects(truth.images[index], shown, len(truth.class_names))])
            note = f"object AP {scores['object_ap']:.3f}"
        overlay = Overlay(dataset.images[index], index, shown)
        drawn.append(folder / names[index])
        draw_overlay(overlay, drawn[-1], dataset.class_names, truth=dataset, note=note)
    return drawn


def spread_evenly(count: int, wanted: int) -> list[int]:
    """Return `wanted` evenly spaced indices of 0..count - 1, including both ends; all if `wanted` is 0 or too large."""
    if wanted <= 0 or wanted >= count:
        return list(range(count))
    return np.linspace(0, count - 1, wanted).round().astype(int).tolist()


def group_field(dataset: CocoDataset, options: EvaluationOptions) -> str | None:
    """Return the image-level field that the loader balances, if images of this data set have it."""
    field = options.balanced_by
    is_there = field not in ("", "category") and any(field in record.metadata for record in dataset.images)
    return field if is_there else None


def without_nones(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics without those that are None, in nested mappings too."""
    return {
        key: without_nones(value) if isinstance(value, Mapping) else value
        for key, value in metrics.items()
        if value is not None
    }
