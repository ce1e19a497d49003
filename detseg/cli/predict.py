"""`detseg predict`: run a trained model on images; write a Predictions file and label images."""

from __future__ import annotations

import argparse
import functools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.cli.image_fields import add_image_fields
from detseg.cli.next_step import beside, command_line, print_next
from detseg.cli.predict_folds import arguments_of_folds, open_folds, predict_folds
from detseg.cli.predict_job import find_job_images, load_job
from detseg.cli.predict_options import add_model_arguments, add_tile_arguments, has_model, problems_of
from detseg.cli.predict_refined import add_refine_arguments, load_refiner, problems_of_refining, refined, refined_file
from detseg.cli.predict_shared import Result, all_predictions, make_shards, processes_of_torchrun, state_folder
from detseg.cli.tracking import add_tracking, settings_of, tracked
from detseg.runs.threads import choose_threads

if TYPE_CHECKING:
    from detseg.coco.dataset import ImageRecord
    from detseg.engine.trained_folds import TrainedFolds
    from detseg.formats.measurements import ImageNumbers
    from detseg.formats.summary import Summary
    from detseg.inference.image_list import ImageList, SkippedImage
    from detseg.runs.tracked_command import CommandRun
    from detseg.structures.predictions import Predictions

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Run a trained model over images and write a Predictions file (a superset of COCO results). Exit "
    "status: 0, or 1 if some images could not be predicted (these are listed, all others are in the file); "
    "2 if none could, and nothing is written."
)
ACCEPTS_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="PATH",
        help="a folder, a glob, image files, a list of them (.txt), or one COCO JSON file",
    )
    parser.add_argument(
        "--image-root", metavar="DIR", help="folder of the COCO file's images, if it is not the file's own"
    )
    add_image_fields(parser)
    parser.add_argument(
        "--boxes",
        metavar="PATH",
        help="predict masks for the boxes of another detector: a folder of YOLO text files, COCO results, predictions",
    )
    add_refine_arguments(parser)
    parser.add_argument("--output", metavar="FILE", help="Predictions file to write, .json or .json.gz")
    parser.add_argument("--label-images", metavar="DIR", help="also write one label image (16-bit TIFF) per image")
    parser.add_argument(
        "--no-summary",
        dest="summary",
        action="store_false",
        help="do not write the table of counts, densities, areas and intensities (FILE_summary.csv), for "
        "which images are read again (--raw never writes it)",
    )
    result = parser.add_argument_group("the result")
    result.add_argument("--raw", action="store_true", help="keep all detections: no thresholds, overlaps kept")
    result.add_argument("--postprocess", metavar="FILE", help="a postprocess YAML instead of the run's own")
    result.add_argument(
        "--triage",
        metavar="FILE",
        help="choose model and threshold by the kind of each image, with a file of fit_triage "
        "(docs/systems.md); if it chooses between several models, give all of them in the order of "
        "their files there",
    )
    result.add_argument(
        "--score-threshold", type=float, metavar="X", help="keep only detections with at least this score"
    )
    result.add_argument(
        "--rescore",
        nargs="?",
        type=float,
        const=1.0,
        default=0.0,
        metavar="POWER",
        help="multiply scores by the mean mask probability (to a power); thresholds must then be chosen anew",
    )
    result.add_argument("--soft-masks", action="store_true", help="store mask probabilities too (large)")
    add_tile_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace existing output files")
    add_tracking(parser)


@tracked("predict")
def run(arguments: argparse.Namespace, tracking: CommandRun) -> int:
    from detseg.errors import refuse
    from detseg.files.atomic import check_free
    from detseg.formats.export import image_targets
    from detseg.formats.summary import summary_name
    from detseg.inference.image_list import ImageList
    from detseg.inference.loading import find_run_folder

    choose_threads(arguments.num_threads)
    refuse({**problems_of(arguments), **_output_problems(arguments), **problems_of_refining(arguments)})
    arguments.run = [str(find_run_folder(Path(run))) for run in arguments.run]
    if arguments.folds and not arguments.postprocess:
        arguments.raw = True  # out-of-fold predictions serve to choose thresholds
    arguments.summary = arguments.summary and not arguments.raw  # counts without thresholds are meaningless
    if arguments.triage:
        arguments.raw = True  # Job.predict applies the settings of each image's kind
    folds = open_folds(arguments) if arguments.folds else None
    commands = [arguments] if folds is None else arguments_of_folds(arguments, folds)
    if processes_of_torchrun() > 1 and not _shared_under_torchrun(arguments, commands):
        return 0
    images = find_job_images(arguments) if folds is None else ImageList.of_dataset(folds.sets.validation)
    targets = {}
    if arguments.label_images:
        names = [record.file_name for record in images.records]
        targets = image_targets(Path(arguments.label_images), names, ".tif")
    summary = [summary_name(Path(arguments.output or arguments.label_images))] if arguments.summary else []
    outputs = [*([arguments.output] if arguments.output else []), *summary, *targets.values()]
    check_free(*outputs, overwrite=arguments.overwrite)
    started = time.perf_counter()
    refiner = load_refiner(arguments) if arguments.refine_with else None
    if folds is not None:
        _begin_tracking(tracking, arguments, images, folds)
        result = predict_folds(commands, folds, images)
    elif has_model(arguments):
        job = load_job(arguments, images)
        _begin_tracking(tracking, arguments, images, None)
        predictions = functools.partial(all_predictions, arguments, job)
        result = Result(images, job.predictor.classes, job.info(), predictions)
    else:
        result = refined_file(arguments, refiner, images)
        _begin_tracking(tracking, arguments, images, None)
    if refiner is not None and (folds is not None or has_model(arguments)):
        result = refined(result, refiner)
    try:
        return _write(arguments, result, targets, started, tracking)
    except KeyboardInterrupt:
        if state_folder(arguments).is_dir():
            logger.warning(
                "finished predictions are kept in %s: run the same command again to continue", state_folder(arguments)
            )
        raise


def _begin_tracking(
    tracking: CommandRun, arguments: argparse.Namespace, images: ImageList, folds: TrainedFolds | None
) -> None:
    from detseg.coco.catalog import resolve_dataset
    from detseg.config import load_config
    from detseg.files.run_files import CONFIG_FILE, POSTPROCESS_FILE
    from detseg.inference.loading import find_checkpoint
    from detseg.runs.artifacts import DATASET, MODEL, THRESHOLDS

    runs = [Path(run) for run in arguments.run] if folds is None else folds.runs
    output = Path(arguments.output or arguments.label_images)
    sources = {str(path): {} for path in [*runs, *arguments.weights]}
    tracking.begin(sources, folder=output.parent, name=output.name, settings=settings_of(arguments))
    if not tracking.active:
        return
    tracking.reads(MODEL, *(find_checkpoint(run, arguments.checkpoint) for run in runs), *arguments.weights)
    tables = [path for path in arguments.images if path.endswith((".json", ".json.gz"))]
    if folds is not None:
        tables = [resolve_dataset(name).json for name in load_config(runs[0] / CONFIG_FILE).DATASETS.TRAIN]
    tracking.reads(DATASET, *tables)
    if not tables:
        tracking.reads_images(images.records, arguments.images[0])
    chosen = [arguments.postprocess] if arguments.postprocess else [run / POSTPROCESS_FILE for run in runs]
    tracking.reads(THRESHOLDS, *(path for path in chosen if not arguments.raw and Path(path).is_file()))


def _output_problems(arguments: argparse.Namespace) -> dict[str, bool]:
    """Return message -> whether it applies, for contradictory options."""
    threshold, others = arguments.score_threshold, arguments.boxes or arguments.folds
    return {
        "--raw means no postprocess; give one of --raw and --postprocess": bool(
            arguments.raw and arguments.postprocess
        ),
        "--triage has its own settings, for --run or --weights; leave out --raw, --postprocess, --score-threshold, "
        "--rescore, --boxes and --folds": bool(
            arguments.triage
            and (arguments.raw or arguments.postprocess or threshold is not None or arguments.rescore or others)
        ),
        "nothing would be written: give --output FILE, --label-images DIR or both": not (
            arguments.output or arguments.label_images
        ),
        "--ray starts processes itself; leave torchrun out": bool(arguments.ray and processes_of_torchrun() > 1),
        f"--rescore {arguments.rescore}: expected a power of 0 or more": not 0 <= arguments.rescore < float("inf"),
        f"--score-threshold is {threshold}; expected 0 to 1": threshold is not None and not 0 <= threshold <= 1,
        f"--output {arguments.output}: expected a name that ends in .json or .json.gz": bool(arguments.output)
        and not arguments.output.endswith((".json", ".json.gz")),
        f"unrecognized arguments: {' '.join(arguments.overrides)}; KEY VALUE changes the configuration of --config, or "
        "what --refine-with sam does": bool(
            arguments.overrides and not (arguments.config or arguments.refine_with == "sam")
        ),
    }


def _shared_under_torchrun(arguments: argparse.Namespace, commands: Sequence[argparse.Namespace]) -> bool:
    """Predict the share of this process; return whether it is the one that continues when all are done.

    commands: `arguments`, or one for each fold.
    """
    from detseg.files.atomic import check_free
    from detseg.runs.distributed import join_processes

    with join_processes() as processes:
        for one in (arguments, *commands):
            one.device = str(processes.device(one.device))
        with processes.together():
            if arguments.output:
                check_free(arguments.output, overwrite=arguments.overwrite)
            for one in commands:
                make_shards(one, processes.rank, processes.count)
        return processes.is_main


def _write(
    arguments: argparse.Namespace, result: Result, targets: dict[str, Path], started: float, tracking: CommandRun
) -> int:
    """Predict all images, write the requested outputs, print the summary; return the exit status."""
    from contextlib import nullcontext
    from shutil import rmtree

    from detseg.coco.predictions_file import PredictionsWriter
    from detseg.errors import DataError, list_problems
    from detseg.formats.label_images import write_labels
    from detseg.formats.objects import ImageObjects
    from detseg.formats.summary import Summary, summary_name
    from detseg.progress import ProgressBar

    images, classes, skipped = result.images, result.classes, result.skipped
    summary, records = Summary(classes), {record.image_id: record for record in images.records}
    number = 0
    writer: Any = nullcontext()
    if arguments.output:
        writer = PredictionsWriter(arguments.output, images.match(classes), {**result.info, **tracking.provenance})
    total = len(images.records)
    with writer, ProgressBar(total=total, desc="predicting", unit="image") as bar:
        for predictions in result.predictions(skipped, bar):
            if arguments.output:
                writer.write(predictions)
            if targets:
                path = targets[predictions.file_name]
                path.parent.mkdir(parents=True, exist_ok=True)
                write_labels(path, ImageObjects.from_predictions(predictions))
            numbers = _numbers(predictions, records[predictions.image_id]) if arguments.summary else None
            size = (predictions.height, predictions.width)
            summary.add(predictions.file_name, *size, numbers, predictions.classes)
            number += 1
            bar.update(max(number + len(skipped) - bar.n, 0))
        bar.update(total - bar.n)
        if skipped and not number:
            bar.close()
            rmtree(state_folder(arguments), ignore_errors=True)
            raise DataError(
                f"none of the {len(skipped)} images could be predicted, and nothing is written:\n"
                f"{list_problems([image.reason for image in skipped])}"
            )
    rmtree(state_folder(arguments), ignore_errors=True)
    written = {"written": arguments.output, "labels": arguments.label_images}
    if arguments.summary:
        written["summary"] = summary_name(Path(arguments.output or arguments.label_images))
        summary.write(written["summary"])
        print(f"{summary.text()}\n")
    counts = dict(zip(classes, summary.by_class, strict=True))
    seconds = (time.perf_counter() - started) / max(number, 1)
    rows = [("images", number), *counts.items(), ("objects in all", summary.objects)]
    rows.append(("seconds per image", f"{seconds:.3f}"))
    numbers = {"images": number, "objects": summary.objects, "objects_per_class": counts, "seconds_per_image": seconds}
    tracking.log(numbers)
    rows += [(name, path) for name, path in written.items() if path]
    _print_summary(rows, skipped)
    _track_result(tracking, arguments, summary)
    if arguments.output:
        _print_next(arguments, images.num_objects)
    return 1 if skipped else 0


def _track_result(tracking: CommandRun, arguments: argparse.Namespace, summary: Summary) -> None:
    """Log the table of images, if any, and the Predictions file, or else the folder of label images."""
    from detseg.formats.summary import summary_name
    from detseg.runs.artifacts import PREDICTIONS
    from detseg.runs.tracker import Table

    if arguments.summary:
        texts = ("kind", "name", "images")
        rows = [
            {"name": row["name"]} | {key: float(text) for key, text in row.items() if key not in texts and text != ""}
            for row in summary.rows()
            if row["kind"] == "image"
        ]
        tracking.tables(lambda: {"tables/images": Table.of(rows)})
    output = Path(arguments.output or arguments.label_images)
    beside = [summary_name(output)] if arguments.output and arguments.summary else []
    tracking.writes(PREDICTIONS, output, *beside)


def _numbers(predictions: Predictions, record: ImageRecord) -> ImageNumbers | None:
    """Return an image's entry of the summary, with measured intensities; None for boxes without masks."""
    import dataclasses

    from detseg.errors import DataError
    from detseg.formats.measurements import measure_numbers
    from detseg.formats.objects import ImageObjects

    if predictions.rles is None:
        return None
    objects = ImageObjects.from_predictions(predictions)
    try:
        return measure_numbers(dataclasses.replace(objects, picture=record.path, fields=record.metadata))
    except DataError as error:  # the file was changed or removed after the prediction
        logger.warning("the summary has no intensities of this image: %s", error)
        return measure_numbers(objects)


def _print_next(arguments: argparse.Namespace, num_objects: int) -> None:
    """num_objects: in the COCO file with the images; if there are any, predictions can be scored."""
    output = arguments.output
    if arguments.folds:
        truth = Path(arguments.folds[0]) / "oof_ground_truth.json"
        words = ["--predictions", output, "--ground-truth", truth, "--output", beside(output, "_tuned.yaml")]
        print_next(*([command_line("tune_thresholds", *words)] if truth.is_file() else []))
        return
    truth = ["--ground-truth", arguments.images[0]]
    root = ["--image-root", arguments.image_root] if arguments.image_root else []
    if arguments.z or arguments.t or arguments.axes:  # visualize does not draw stacks
        commands = [command_line("export", "--input", output, "--format", "csv", "--output", beside(output, "_tables"))]
    else:
        words = ["--images", *arguments.images, *root, "--predictions", output]
        commands = [command_line("visualize", *words, "--output", beside(output, "_pictures"))]
    if num_objects and arguments.raw:
        words = ["--predictions", output, *truth, "--output", beside(output, "_tuned.yaml")]
        commands.append(command_line("tune_thresholds", *words))
    elif num_objects:
        commands.append(command_line("evaluate", *truth, "--predictions", output))
    print_next(*commands)


def _print_summary(rows: Sequence[tuple[str, Any]], skipped: Sequence[SkippedImage]) -> None:
    from detseg.errors import list_problems

    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")
    if skipped:
        print(f"{len(skipped)} image{'s' if len(skipped) > 1 else ''} could not be predicted:")
        print(list_problems([image.reason for image in skipped]))
