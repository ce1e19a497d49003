"""`detseg predict`: a trained model over images, into a Predictions file and label images."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.cli.image_fields import add_image_fields
from detseg.cli.next_step import beside, command_line, print_next
from detseg.cli.predict_job import Job, add_model_arguments, add_tile_arguments, find_job_images, load_job, problems_of

if TYPE_CHECKING:
    from detseg.inference.predictor import SkippedImage
    from detseg.structures.predictions import Predictions

DESCRIPTION = (
    "Run a trained model over images and write a Predictions file (a superset of COCO results). Exit status: 0, or 1 "
    "when some images could not be read: those are listed, all others are in the file. Where none could, nothing is "
    "written, and it is 2."
)
ACCEPTS_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--images",
        required=True,
        nargs="+",
        metavar="PATH",
        help="a folder, a glob, image files, a list of them (.txt), or one COCO JSON file",
    )
    parser.add_argument("--image-root", metavar="DIR", help="folder of the COCO file's images, where it is another one")
    add_image_fields(parser)
    parser.add_argument(
        "--boxes",
        metavar="PATH",
        help="give masks to the boxes of another detector: a folder of YOLO text files, COCO results, predictions",
    )
    parser.add_argument("--output", metavar="FILE", help="Predictions file to write, .json or .json.gz")
    parser.add_argument("--label-images", metavar="DIR", help="also write one label image (16-bit TIFF) an image")
    result = parser.add_argument_group("the result")
    result.add_argument("--raw", action="store_true", help="all that the model finds: no thresholds, overlaps kept")
    result.add_argument("--postprocess", metavar="FILE", help="a postprocess YAML instead of the run's own")
    result.add_argument("--score-threshold", type=float, metavar="X", help="keep detections of this score or more")
    result.add_argument(
        "--rescore",
        nargs="?",
        type=float,
        const=1.0,
        default=0.0,
        metavar="POWER",
        help="multiply scores by the mean mask probability (to a power); thresholds are then others too",
    )
    result.add_argument("--soft-masks", action="store_true", help="store mask probabilities too (large)")
    add_tile_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace output files that exist")


def run(arguments: argparse.Namespace) -> int:
    from detseg.cli.predict_shared import processes_of_torchrun
    from detseg.errors import ConfigError
    from detseg.files.atomic import check_free
    from detseg.formats.export import image_targets

    for message, is_wrong in {**problems_of(arguments), **_output_problems(arguments)}.items():
        if is_wrong:
            raise ConfigError(message)
    if processes_of_torchrun() > 1 and not _shared_under_torchrun(arguments):
        return 0
    images = find_job_images(arguments)
    targets = {}
    if arguments.label_images:
        names = [record.file_name for record in images.records]
        targets = image_targets(Path(arguments.label_images), names, ".tif")
    for path in [*([arguments.output] if arguments.output else []), *targets.values()]:
        check_free(Path(path), arguments.overwrite)
    return _predict(arguments, load_job(arguments, images), targets)


def _output_problems(arguments: argparse.Namespace) -> dict[str, bool]:
    """Message -> whether it holds, of options that contradict each other."""
    threshold = arguments.score_threshold
    return {
        "--raw means no postprocess; give one of --raw and --postprocess": bool(
            arguments.raw and arguments.postprocess
        ),
        "nothing would be written: give --output FILE, --label-images DIR or both": not (
            arguments.output or arguments.label_images
        ),
        f"--rescore {arguments.rescore}: expected a power of 0 or more": not 0 <= arguments.rescore < float("inf"),
        f"--score-threshold is {threshold}; expected 0 to 1": threshold is not None and not 0 <= threshold <= 1,
        f"--output {arguments.output}: expected a name that ends in .json or .json.gz": bool(arguments.output)
        and not arguments.output.endswith((".json", ".json.gz")),
        f"unknown words: {' '.join(arguments.overrides)}; KEY VALUE changes the configuration of --config only": bool(
            arguments.overrides and not arguments.config
        ),
    }


def _shared_under_torchrun(arguments: argparse.Namespace) -> bool:
    """Predict the share of this process; return whether it is the one that goes on, when all have done theirs."""
    from detseg.cli.predict_shared import predict_share
    from detseg.files.atomic import check_free
    from detseg.runs.distributed import join_processes

    with join_processes() as processes:
        arguments.device = str(processes.device(arguments.device))
        with processes.together():
            if arguments.output:
                check_free(Path(arguments.output), arguments.overwrite)
            predict_share(arguments, processes.rank, processes.count, _state_folder(arguments))
        return processes.is_main


def _state_folder(arguments: argparse.Namespace) -> Path:
    """Where the predictions of tiles and of other processes stay until the end: beside the output."""
    target = Path(arguments.output or arguments.label_images)
    return target.with_name(f"{target.name}.tiles")


def _predict(arguments: argparse.Namespace, job: Job, targets: dict[str, Path]) -> int:
    """Predict all images, write what was asked for, print the summary; return the exit status."""
    from contextlib import nullcontext
    from shutil import rmtree

    from detseg.coco.predictions_file import PredictionsWriter
    from detseg.errors import DataError, list_problems
    from detseg.files.atomic import remove_temporaries
    from detseg.formats.label_images import write_labels
    from detseg.formats.objects import ImageObjects
    from detseg.progress import ProgressBar

    skipped: list[SkippedImage] = []
    counts = [0] * len(job.predictor.classes)
    number = 0
    writer: Any = nullcontext()
    if arguments.output:
        writer = PredictionsWriter(arguments.output, job.images.match(job.predictor.classes), job.info())
    for folder in {path.parent for path in targets.values()}:
        remove_temporaries(folder)
    total = len(job.images.records)
    started = time.perf_counter()
    with writer, ProgressBar(total=total, desc="predicting", unit="image") as bar:
        for predictions in _all_predictions(arguments, job, skipped, bar):
            if arguments.output:
                writer.write(predictions)
            if targets:
                path = targets[predictions.file_name]
                path.parent.mkdir(parents=True, exist_ok=True)
                write_labels(path, ImageObjects.from_predictions(predictions))
            for class_index in predictions.classes.tolist():
                counts[class_index] += 1
            number += 1
            bar.update(max(number + len(skipped) - bar.n, 0))
        bar.update(total - bar.n)
        if skipped and not number:
            bar.close()
            rmtree(_state_folder(arguments), ignore_errors=True)
            raise DataError(
                f"none of the {len(skipped)} images could be predicted, and nothing is written:\n"
                f"{list_problems([image.reason for image in skipped])}"
            )
    rmtree(_state_folder(arguments), ignore_errors=True)
    rows = [("images", number), *zip(job.predictor.classes, counts, strict=True), ("objects in all", sum(counts))]
    rows.append(("seconds per image", f"{(time.perf_counter() - started) / max(number, 1):.3f}"))
    rows += [(name, path) for name, path in (("written", arguments.output), ("labels", arguments.label_images)) if path]
    _print_summary(rows, skipped)
    if arguments.output:
        _print_next(arguments, job.images.num_objects)
    return 1 if skipped else 0


def _print_next(arguments: argparse.Namespace, num_objects: int) -> None:
    """num_objects: of the COCO file that the images are from; with any, they can be scored."""
    output, truth = arguments.output, ["--ground-truth", arguments.images[0]]
    root = ["--image-root", arguments.image_root] if arguments.image_root else []
    if arguments.z or arguments.t or arguments.axes:  # pictures of stacks are not drawn
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


def _all_predictions(
    arguments: argparse.Namespace, job: Job, skipped: list[SkippedImage], bar: Any
) -> Iterator[Predictions]:
    """The predictions of all images, by this process or gathered from several."""
    from detseg.cli.predict_shared import gather_shares, processes_of_torchrun, run_children

    folder = _state_folder(arguments)
    count = max(arguments.processes, processes_of_torchrun())
    if count == 1:

        def progress(name: str, done: int, total: int) -> None:
            bar.set_postfix_str(f"{name}: tile {done} of {total}" if done < total else "")

        yield from job.predict(job.images.records, skipped, state=folder, progress=progress)
        return
    if arguments.processes > 1:
        run_children(arguments, count, folder, bar.update)
    yield from gather_shares(job, count, folder, skipped)


def _print_summary(rows: Sequence[tuple[str, Any]], skipped: Sequence[SkippedImage]) -> None:
    from detseg.errors import list_problems

    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")
    if skipped:
        print(f"{len(skipped)} images could not be predicted:")
        print(list_problems([image.reason for image in skipped]))
