"""Scoring a model on data sets: quickly while it trains, and in full, with everything written, at the end."""

from __future__ import annotations

import functools
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import nn

from detseg.coco.predictions_file import write_predictions
from detseg.config import config_hash
from detseg.evaluation.ground_truth import GroundTruth
from detseg.evaluation.object_ap import count_objects, summarize_objects
from detseg.files.atomic import write_json, writing
from detseg.inference.predictor import Predictor
from detseg.inference.views import TestTimeAugmentation
from detseg.runs.distributed import ALONE, Processes
from detseg.runs.interrupt import StopRequest
from detseg.structures.predictions import Predictions
from detseg.tuning.thresholds import evaluate_tuned

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset
    from detseg.config import Config
    from detseg.fusion.postprocess import Postprocess

logger = logging.getLogger(__name__)

T = TypeVar("T")

METRICS_FILE = "final_metrics.json"
POSTPROCESS_FILE = "postprocess.yaml"
INTERRUPTED = "stopped during an evaluation; the training up to it is saved"


@dataclass(frozen=True)
class EvaluationSettings:
    """What an evaluation needs of the configuration.

    max_detections: of an image and class, for COCO AP. coco: whether COCO AP is computed. max_images: how many images
    are looked at, spread evenly; 0 for all. group_by: image-level field whose values are scored apart, "" for none.
    overlays: images drawn.
    """

    max_detections: int = 2000
    coco: bool = True
    max_images: int = 0
    group_by: str = ""
    overlays: int = 0

    @classmethod
    def during_training(cls, cfg: Config) -> EvaluationSettings:
        """A cheap one: COCO AP only where it chooses the best checkpoint."""
        return cls(
            max_detections=cfg.TEST.MAX_DETECTIONS_COCO,
            coco=cfg.TEST.BEST_METRIC.startswith("coco"),
            max_images=cfg.TEST.MAX_IMAGES_DURING_TRAINING,
        )

    @classmethod
    def final(cls, cfg: Config) -> EvaluationSettings:
        balanced = cfg.DATALOADER.BALANCE_BY
        return cls(
            max_detections=cfg.TEST.MAX_DETECTIONS_COCO,
            group_by="" if balanced == "category" else balanced,
            overlays=cfg.TEST.OVERLAYS,
        )


def build_quick_evaluation(
    cfg: Config, dataset: CocoDataset, classes: Sequence[str], processes: Processes = ALONE
) -> Callable[[nn.Module, StopRequest], dict[str, Any]]:
    """The evaluation during training: a function of model and stop request that returns the scores.

    Several processes predict their part of the images each; the main one scores. Images are not augmented (TEST.AUG):
    that is left to the last evaluation, which chooses the thresholds.
    """
    settings = EvaluationSettings.during_training(cfg)
    TestTimeAugmentation.from_config(cfg)  # what cannot be is refused now and not at the end of the training
    chosen = spread_evenly(len(dataset), settings.max_images)
    if len(chosen) < len(dataset):
        dataset = dataset.select(chosen)
    truth = GroundTruth.from_coco(dataset)

    def evaluate(model: nn.Module, stop: StopRequest) -> dict[str, Any]:
        predictor = Predictor.from_model(model, cfg, classes, augmented=False)
        predictions = predict_all(predictor, dataset, stop, processes)

        def score() -> dict[str, Any]:
            metrics, _ = evaluate_tuned(truth, predictions, max_detections=settings.max_detections, coco=settings.coco)
            return without_nones(metrics)

        return processes.from_main(score)

    return evaluate


def evaluate_in_full(
    cfg: Config,
    model: nn.Module,
    datasets: Mapping[str, CocoDataset],
    classes: Sequence[str],
    folder: Path,
    *,
    stop: StopRequest,
    provenance: Mapping[str, Any],
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Predict and score every test set, and write all that is known about it into `folder`.

    predictions/NAME.json.gz holds everything above MODEL.ROI_HEADS.SCORE_THRESH_TEST. The score threshold is chosen on
    the first set and used for all; postprocess.yaml has it. overlays/NAME shows truth and prediction side by side.

    Args:
        model: in evaluation mode.
        datasets: test sets by name; the first is the validation set.
        stop: looked at between images.
        provenance: what goes into the Predictions files.
        processes: those that predict together; the main one scores and writes.

    Returns:
        what final_metrics.json holds: the first set's scores with `score_threshold`, and where there are more sets
        `datasets`, the scores of each by name.
    """
    settings = EvaluationSettings.final(cfg)
    info = {"config_hash": config_hash(cfg), **provenance}
    if cfg.DATASETS.FOLD >= 0:
        info["fold"] = cfg.DATASETS.FOLD
    predictor = Predictor.from_model(model, cfg, classes, provenance=info)
    scores: dict[str, dict[str, Any]] = {}
    postprocess: Postprocess | None = None
    for name, dataset in datasets.items():
        predictions = predict_all(predictor, dataset, stop, processes, description=f"predicting {name}")
        score = functools.partial(score_set, name, dataset, predictions, folder, settings, info, postprocess)
        scores[name], chosen = processes.from_main(score)
        postprocess = postprocess or chosen
    return processes.from_main(lambda: keep_scores(folder, scores, postprocess))


def score_set(
    name: str,
    dataset: CocoDataset,
    predictions: Sequence[Predictions],
    folder: Path,
    settings: EvaluationSettings,
    info: dict[str, Any],
    postprocess: Postprocess | None,
) -> tuple[dict[str, Any], Postprocess]:
    """Score one test set and keep its predictions and overlays; `postprocess` None chooses the score threshold.

    Returns:
        the scores, and the postprocess that was applied.
    """
    truth = GroundTruth.from_coco(dataset)
    with writing(folder / "predictions"):
        keep_predictions(folder / "predictions" / f"{name}.json.gz", predictions, dataset, info)
    metrics, chosen = evaluate_tuned(
        truth,
        predictions,
        score_threshold=None if postprocess is None else postprocess.score_threshold,
        max_detections=settings.max_detections,
        group_by=group_field(dataset, settings.group_by),
    )
    with writing(folder / "overlays"):
        draw_overlays(dataset, truth, predictions, chosen, folder / "overlays" / name, settings.overlays)
    return metrics, chosen


def keep_scores(folder: Path, scores: dict[str, dict[str, Any]], postprocess: Postprocess) -> dict[str, Any]:
    """Write final_metrics.json, which is returned, and postprocess.yaml."""
    first = next(iter(scores.values()))
    final = dict(first) if len(scores) == 1 else {**first, "datasets": scores}
    with writing(folder / POSTPROCESS_FILE):
        postprocess.save(folder / POSTPROCESS_FILE)
    write_json(folder / METRICS_FILE, final)
    return final


def keep_predictions(
    path: Path, predictions: Sequence[Predictions], dataset: CocoDataset, info: dict[str, Any]
) -> None:
    """Write a Predictions file with the category ids of the data set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = [{"id": category.id, "name": category.name} for category in dataset.categories]
    write_predictions(path, predictions, categories, info)


def predict_all(
    predictor: Predictor,
    dataset: CocoDataset,
    stop: StopRequest,
    processes: Processes = ALONE,
    description: str = "evaluating",
) -> list[Predictions]:
    """Predict the images of a data set, with a progress bar where there is a terminal.

    Of several processes each predicts every `processes.count`-th image.

    Returns:
        the predictions of all images in order, once each; of several processes, in the main one.

    Raises:
        TrainingInterrupted: a signal came.
    """
    own = dataset.images[processes.rank :: processes.count]
    predictions: list[Predictions] = []
    with processes.together(), _bar(len(own), description, shown=processes.is_main) as bar:
        for prediction in predictor.predict_records(own):
            predictions.append(prediction)
            bar.update()
            stop.raise_if_requested(INTERRUPTED)
    parts = processes.gather(predictions)
    return interleave(parts, len(dataset)) if processes.is_main else []


def _bar(total: int, description: str, shown: bool) -> Any:
    from tqdm import tqdm

    hidden = not shown or sys.stderr is None or not sys.stderr.isatty()
    return tqdm(total=total, desc=description, unit="image", leave=False, disable=hidden)


def interleave(parts: Sequence[Sequence[T]], total: int) -> list[T]:
    """One list from its every n-th elements: [[a, c], [b]] is [a, b, c]."""
    whole: list[T | None] = [None] * total
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


def draw_overlays(
    dataset: CocoDataset,
    truth: GroundTruth,
    predictions: Sequence[Predictions],
    postprocess: Postprocess,
    folder: Path,
    wanted: int,
) -> None:
    """Draw truth and postprocessed prediction of `wanted` images, spread evenly over the set."""
    from detseg.report.overlays import draw_side_by_side

    for index in spread_evenly(len(dataset), wanted) if wanted > 0 else []:
        shown = postprocess.apply(predictions[index])
        note = ""
        if shown.rles is not None:  # object AP needs masks
            scores = summarize_objects([count_objects(truth.images[index], shown, len(truth.class_names))])
            note = f"object AP {scores['object_ap']:.3f}"
        draw_side_by_side(dataset, index, shown, folder, note=note)


def spread_evenly(count: int, wanted: int) -> list[int]:
    """`wanted` of the indices 0..count-1, spread evenly, first and last among them; all where wanted is 0 or more."""
    if wanted <= 0 or wanted >= count:
        return list(range(count))
    return np.linspace(0, count - 1, wanted).round().astype(int).tolist()


def group_field(dataset: CocoDataset, field: str) -> str | None:
    """The field, where images of this data set have it."""
    return field if field and any(field in record.metadata for record in dataset.images) else None


def set_names(paths: Sequence[str]) -> list[str]:
    """Short names, unique and fit for files, for data sets given by name or path: "data/a/val.json" is "val"."""
    names: list[str] = []
    for path in paths:
        stem = re.split(r"[/\\]", path)[-1].removesuffix(".gz").removesuffix(".json")
        name = re.sub(r"[^\w.-]+", "_", stem) or "data"
        number, unique = 1, name
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    return names


def without_nones(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what was not computed."""
    return {
        key: without_nones(value) if isinstance(value, Mapping) else value
        for key, value in metrics.items()
        if value is not None
    }
