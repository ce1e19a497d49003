"""`detseg predict`: a trained model over images, into a Predictions file and label images."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.cli.image_fields import add_image_fields
from detseg.cli.predict_model import add_model_arguments, info_of, load_predictor, model_problems
from detseg.cli.predict_tiles import (
    add_tile_arguments,
    find_sources,
    set_tiling,
    state_folder,
    tile_problems,
    tile_progress,
)

if TYPE_CHECKING:
    from detseg.inference.predictor import BoxSource, Predictor, SkippedImage
    from detseg.inference.sources import ImageSource
    from detseg.structures.predictions import Predictions

DESCRIPTION = (
    "Run a trained model over images and write a Predictions file (a superset of COCO results). Exit status: 0, or 1 "
    "when some images could not be read: those are listed, all others are in the file."
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
    answer = parser.add_argument_group("the answer")
    answer.add_argument("--raw", action="store_true", help="all that the model finds: no thresholds, overlaps kept")
    answer.add_argument("--postprocess", metavar="FILE", help="a postprocess YAML instead of the run's own")
    answer.add_argument("--score-threshold", type=float, metavar="X", help="keep detections of this score or more")
    answer.add_argument(
        "--rescore",
        nargs="?",
        type=float,
        const=1.0,
        default=0.0,
        metavar="POWER",
        help="multiply scores by the mean mask probability (to a power); thresholds are then others too",
    )
    answer.add_argument("--soft-masks", action="store_true", help="store mask probabilities too (large)")
    add_tile_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace output files that exist")


def run(arguments: argparse.Namespace) -> int:
    from detseg.cli.predict_shared import processes_of_torchrun
    from detseg.formats.export import image_targets
    from detseg.inference.given_boxes import read_boxes

    _check(arguments)
    count = max(arguments.processes, processes_of_torchrun())
    if processes_of_torchrun() > 1 and not _shared_under_torchrun(arguments):
        return 0
    source = find_sources(arguments)
    targets = {}
    if arguments.label_images:
        names = [record.file_name for record in source.records]
        targets = image_targets(Path(arguments.label_images), names, ".tif")
    _refuse_existing([*([arguments.output] if arguments.output else []), *targets.values()], arguments.overwrite)
    predictor = load_predictor(arguments)
    set_tiling(predictor, arguments)
    boxes = read_boxes(arguments.boxes, source, predictor.classes) if arguments.boxes else None
    return _predict(arguments, predictor, source, targets, boxes, count)


def _shared_under_torchrun(arguments: argparse.Namespace) -> bool:
    """Predict the share of this process; return whether it is the one that goes on, when all have done theirs."""
    from detseg.cli.predict_shared import predict_share
    from detseg.runs.distributed import join_processes

    with join_processes() as processes:
        arguments.device = str(processes.device(arguments.device))
        with processes.together():
            if arguments.output:
                _refuse_existing([arguments.output], arguments.overwrite)
            predict_share(arguments, processes.rank, processes.count, state_folder(arguments))
        return processes.is_main


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    from detseg.errors import ConfigError

    threshold = arguments.score_threshold
    problems = {
        **model_problems(arguments),
        **tile_problems(arguments),
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
    for message, is_wrong in problems.items():
        if is_wrong:
            raise ConfigError(message)


def _refuse_existing(paths: Sequence[Path | str], overwrite: bool) -> None:
    from detseg.errors import DataError

    existing = [str(path) for path in paths if Path(path).exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise DataError(f"{existing[0]}{more} exists already; pass --overwrite to replace, or choose another name")


def _predict(
    arguments: argparse.Namespace,
    predictor: Predictor,
    source: ImageSource,
    targets: dict[str, Path],
    boxes: BoxSource | None,
    count: int,
) -> int:
    """Predict all images, write what was asked for, print the summary; return the exit status."""
    from contextlib import nullcontext
    from shutil import rmtree

    from tqdm import tqdm

    from detseg.coco.predictions_file import PredictionsWriter
    from detseg.formats.label_images import write_labels
    from detseg.formats.objects import ImageObjects

    skipped: list[SkippedImage] = []
    counts = [0] * len(predictor.classes)
    number = 0
    writer: Any = nullcontext()
    if arguments.output:
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        writer = PredictionsWriter(
            arguments.output, source.match(predictor.classes), info_of(predictor, arguments.boxes)
        )
    started = time.perf_counter()
    with writer, tqdm(total=len(source.records), desc="predicting", unit="image") as bar:
        for predictions in _answers(arguments, predictor, source, boxes, skipped, count, bar):
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
        bar.update(len(source.records) - bar.n)
    rmtree(state_folder(arguments), ignore_errors=True)
    seconds = time.perf_counter() - started
    _print_summary(arguments, predictor, number, counts, seconds, skipped)
    return 1 if skipped else 0


def _answers(
    arguments: argparse.Namespace,
    predictor: Predictor,
    source: ImageSource,
    boxes: BoxSource | None,
    skipped: list[SkippedImage],
    count: int,
    bar: Any,
) -> Iterator[Predictions]:
    """The predictions of all images, by this process or put together from those of several."""
    from detseg.cli.predict_shared import put_together, run_children

    folder = state_folder(arguments)
    if count > 1:
        if arguments.processes > 1:
            run_children(arguments, count, folder, bar.update)
        yield from put_together(arguments, predictor, source, count, folder, skipped, boxes)
        return
    large = predictor.large_images(
        batch_size=arguments.batch_size, workers=arguments.workers, state=folder, progress=tile_progress(bar)
    )
    yield from predictor.predict_records(
        source.records,
        batch_size=arguments.batch_size,
        soft_masks=arguments.soft_masks,
        skipped=skipped,
        boxes=boxes,
        workers=arguments.workers,
        large=large,
    )


def _print_summary(
    arguments: argparse.Namespace,
    predictor: Predictor,
    number: int,
    counts: Sequence[int],
    seconds: float,
    skipped: Sequence[SkippedImage],
) -> None:
    from detseg.errors import list_problems

    width = max(len(name) for name in (*predictor.classes, "seconds per image"))
    rows = [
        ("images", f"{number}"),
        *((name, f"{count}") for name, count in zip(predictor.classes, counts, strict=True)),
    ]
    rows += [("objects in all", f"{sum(counts)}"), ("seconds per image", f"{seconds / max(number, 1):.3f}")]
    rows += [
        (label, path) for label, path in (("written", arguments.output), ("labels", arguments.label_images)) if path
    ]
    for name, value in rows:
        print(f"{name:{width}}  {value}")
    if skipped:
        print(f"{len(skipped)} images could not be predicted:")
        print(list_problems([image.reason for image in skipped]))
