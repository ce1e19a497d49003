"""`detseg evaluate`: score a Predictions file against ground truth."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.cli.next_step import beside, command_line, print_next
from detseg.cli.tracking import add_tracking, settings_of, tracked

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset
    from detseg.evaluation.ground_truth import GroundTruth
    from detseg.evaluation.object_ap import ObjectCounts
    from detseg.fusion.postprocess import Postprocess
    from detseg.runs.tracked_command import CommandRun
    from detseg.runs.tracker import Table
    from detseg.structures import Predictions

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Score a Predictions file, or COCO results, against a COCO file: object AP (the score of the Data "
    "Science Bowl 2018 and Sartorius), mean F1, foreground IoU, COCO box and mask AP. The file is scored as "
    "it is: object AP counts every prediction, so give --postprocess (a run's postprocess.yaml) for "
    "predictions that still contain low scores and overlaps."
)

TRACKED_PICTURES = 8  # of the worst images, if the evaluation is tracked

COLUMNS = {
    "object_ap": "object AP",
    "object_ap50": "AP50",
    "object_ap75": "AP75",
    "mean_f1": "mean F1",
    "foreground_iou": "foreground IoU",
    "count_error": "count error",
    "relative_count_error": "relative",
    "coco_bbox_ap": "COCO box",
    "coco_segm_ap": "COCO mask",
    "precision": "precision",
    "recall": "recall",
    "images": "images",
    "objects": "objects",
    "predictions": "predicted",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ground-truth", required=True, metavar="FILE", help="COCO JSON")
    parser.add_argument(
        "--predictions", required=True, metavar="FILE", help="Predictions file or COCO results, .json or .json.gz"
    )
    parser.add_argument("--postprocess", metavar="FILE", help="postprocess YAML to apply before scoring")
    parser.add_argument("--json", metavar="FILE", help="write all scores as JSON")
    parser.add_argument(
        "--csv", metavar="FILE", help="write a table with one row per image (default: beside --json, as .csv)"
    )
    parser.add_argument(
        "--max-detections",
        type=int,
        default=0,
        metavar="N",
        help="detections per image and class that COCO AP counts, best first (default: all; COCO itself: 100)",
    )
    parser.add_argument(
        "--group-by",
        metavar="FIELD",
        help="image-level field of the COCO file, or of the predictions: scores for each of its values",
    )
    parser.add_argument(
        "--intervals",
        action="store_true",
        help="also compute 95 %% bootstrap intervals of the object scores over images",
    )
    parser.add_argument(
        "--base",
        metavar="FILE",
        help="predictions of the same images to compare with: differences image by image, with their 95 %% intervals",
    )
    parser.add_argument("--base-postprocess", metavar="FILE", help="postprocess YAML to apply to --base")
    parser.add_argument("--overwrite", action="store_true", help="replace existing output files")
    add_tracking(parser)


@tracked("evaluate")
def run(arguments: argparse.Namespace, tracking: CommandRun) -> None:
    from detseg.coco.dataset import CocoDataset
    from detseg.coco.learnable import object_warnings
    from detseg.coco.predictions_file import read_predictions, with_classes_of
    from detseg.errors import ConfigError
    from detseg.evaluation.evaluate import align, count_all, image_table, metrics_of, write_image_table
    from detseg.evaluation.ground_truth import GroundTruth
    from detseg.files.atomic import write_output
    from detseg.fusion.postprocess import Postprocess
    from detseg.runs.tracker import EVALUATION

    if arguments.max_detections < 0:
        raise ConfigError(f"--max-detections is {arguments.max_detections}; expected 1 or more, or 0 for all")
    if arguments.base_postprocess and not arguments.base:
        raise ConfigError("--base-postprocess is for the predictions of --base FILE; give them too")
    outputs = _outputs(arguments)
    postprocess = Postprocess.load(arguments.postprocess) if arguments.postprocess else None
    dataset = with_classes_of(arguments.predictions, CocoDataset.load(arguments.ground_truth))
    truth = GroundTruth.from_coco(dataset)
    predictions = read_predictions(arguments.predictions, dataset)
    postprocess = postprocess and postprocess.for_classes(truth.class_names)
    _begin_tracking(tracking, arguments, predictions.info)
    aligned = align(truth, postprocess.apply_all(predictions) if postprocess else predictions)
    counts = count_all(truth, aligned)
    metrics = metrics_of(truth, aligned, counts, max_detections=arguments.max_detections, group_by=arguments.group_by)
    tracking.log(metrics, f"{EVALUATION}/")
    if arguments.intervals or arguments.base:
        metrics |= _with_intervals(arguments, dataset, truth, counts)
    tracking.tables(lambda: _tables(arguments, dataset, truth, list(predictions), postprocess, metrics))
    print(score_table(metrics))
    if "intervals" in metrics:
        print(f"\n{interval_table(metrics['intervals'])}")
    if "differences" in metrics:
        print(f"\nDifference to {metrics['base']}, on the same bootstrap samples:")
        print(interval_table(metrics["differences"], "+"))
    for text in object_warnings(dataset):
        print(f"\nWARNING: {text}")
    if postprocess is None and _keeps_everything(metrics, aligned):
        print(
            "\nThis file keeps low scores. Object AP counts every prediction in it: give --postprocess, for example "
            "the run's postprocess.yaml."
        )
    if "json" in outputs:
        text = json.dumps(metrics, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        write_output(outputs["json"], text, "the file of scores")
    if "csv" in outputs and counts is not None:
        write_image_table(outputs["csv"], image_table(truth, aligned, counts))
    if outputs:
        print("\nWritten: " + ", ".join(str(path) for path in outputs.values() if path.exists()))
    if not dataset.images[0].path.exists():  # scoring does not need the images
        return
    words = ["--ground-truth", arguments.ground_truth, "--predictions", arguments.predictions]
    words += ["--postprocess", arguments.postprocess] if arguments.postprocess else []
    print_next(command_line("visualize", *words, "--output", beside(arguments.predictions, "_pictures")))


def _begin_tracking(tracking: CommandRun, arguments: argparse.Namespace, info: Mapping[str, Any]) -> None:
    from detseg.runs.artifacts import DATASET, PREDICTIONS, THRESHOLDS

    predictions = Path(arguments.predictions)
    folder = Path(arguments.json or arguments.csv or predictions).parent
    tracking.begin({str(predictions): info}, folder=folder, name=predictions.name, settings=settings_of(arguments))
    tracking.reads(DATASET, arguments.ground_truth)
    tracking.reads(PREDICTIONS, predictions)
    tracking.reads(THRESHOLDS, arguments.postprocess)


def _with_intervals(
    arguments: argparse.Namespace, dataset: CocoDataset, truth: GroundTruth, counts: Sequence[ObjectCounts] | None
) -> dict[str, Any]:
    """Return the bootstrap intervals, and the differences to the base, for the JSON output."""
    from detseg.coco.predictions_file import read_predictions
    from detseg.errors import DataError
    from detseg.evaluation.evaluate import align, count_all
    from detseg.evaluation.intervals import differences_with_intervals, scores_with_intervals
    from detseg.fusion.postprocess import Postprocess

    if counts is None:
        raise DataError(f"{arguments.predictions}: its predictions have no masks, which intervals need")
    found: dict[str, Any] = {"intervals": scores_with_intervals(counts, truth.class_names)}
    if arguments.base:
        others = read_predictions(arguments.base, dataset)
        if arguments.base_postprocess:
            own = Postprocess.load(arguments.base_postprocess).for_classes(truth.class_names)
            others = own.apply_all(others)
        elif arguments.postprocess:
            logger.warning(
                "--postprocess applies to %s only; --base %s is scored as it is, unless --base-postprocess is given",
                arguments.predictions,
                arguments.base,
            )
        base = count_all(truth, align(truth, others))
        if base is None:
            raise DataError(f"--base {arguments.base}: its predictions have no masks, which intervals need")
        found["base"] = str(arguments.base)
        found["differences"] = differences_with_intervals(base, counts, truth.class_names)
    return found


def interval_table(named: Mapping[str, Mapping[str, Sequence[float | None]]], sign: str = "") -> str:
    """Return values with their intervals as a text table, one row for all objects and one for each class.

    sign: "+" for differences, to show the sign of positive ones.
    """
    from detseg.files.table import text_table

    names = list(named["all"])
    cells = [[name, *(with_interval(scores[key], sign) for key in names)] for name, scores in named.items()]
    return text_table([["95 % intervals", *(COLUMNS[key] for key in names)], *cells])


def with_interval(value: Sequence[float | None], sign: str = "") -> str:
    """Format a value with its interval; a dash if undefined."""
    middle, low, high = (_cell(one, sign) for one in value)
    return f"{middle} ({low} to {high})"


def _tables(
    arguments: argparse.Namespace,
    dataset: CocoDataset,
    truth: GroundTruth,
    predictions: Sequence[Predictions],
    postprocess: Postprocess | None,
    metrics: Mapping[str, Any],
) -> dict[str, Table]:
    """Return the tables of a final evaluation, with pictures of the worst images if the images exist."""
    from detseg.coco.catalog import set_names
    from detseg.engine.pictures import evaluation_tables
    from detseg.fusion.postprocess import Postprocess

    pictures = TRACKED_PICTURES if all(image.path.exists() for image in dataset.images) else 0
    name = set_names([arguments.ground_truth])[0]
    settings = postprocess or Postprocess(resolve_overlaps=False)
    return evaluation_tables(dataset, truth, predictions, settings, metrics, name, pictures)


def _outputs(arguments: argparse.Namespace) -> dict[str, Path]:
    """Return the output files by kind; raise if any exists, unless --overwrite."""
    from detseg.files.atomic import check_free

    outputs = {}
    if arguments.json:
        outputs["json"] = Path(arguments.json)
    if arguments.csv or arguments.json:
        outputs["csv"] = Path(arguments.csv) if arguments.csv else Path(arguments.json).with_suffix(".csv")
    check_free(*outputs.values(), overwrite=arguments.overwrite)
    return outputs


def _keeps_everything(metrics: Mapping[str, Any], aligned: list[Any]) -> bool:
    lowest = min((float(image.scores.min()) for image in aligned if len(image)), default=1.0)
    return lowest < 0.2 and metrics["predictions"] > 1.5 * metrics["objects"]


def score_table(metrics: Mapping[str, Any]) -> str:
    """Return the scores of all objects, of each class and of each group as a text table; "-" if undefined."""
    from detseg.files.table import text_table

    rows = [("all", metrics)]
    if len(metrics["per_class"]) > 1:
        rows += list(metrics["per_class"].items())
    for name, scores in metrics.get("per_group", {}).items():
        rows.append((f"[{name}]", scores))
    columns = {key: title for key, title in COLUMNS.items() if any(scores.get(key) is not None for _, scores in rows)}
    cells = [[name, *(_cell(scores.get(key)) for key in columns)] for name, scores in rows]
    return text_table([["", *columns.values()], *cells])


def _cell(value: Any, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.3f}" if isinstance(value, float) else f"{value:,}"
