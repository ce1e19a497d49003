"""`predict --refine-with`: redraw the detections of a model, or the objects of a Predictions file, with SAM."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from detseg.cli.predict_options import has_model
from detseg.cli.predict_shared import Result, processes_of_torchrun

if TYPE_CHECKING:
    from detseg.inference.image_list import ImageList, SkippedImage
    from detseg.inference.refiner import Refiner
    from detseg.structures.predictions import Predictions


def add_refine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--refine-with",
        metavar="sam|RUN",
        help="redraw the detected objects with Segment Anything, either a published model (sam) or a run of "
        "PromptedSAM with a fine-tuned decoder; without a model to predict, the objects of the "
        "Predictions file --boxes (docs/prompted.md)",
    )
    parser.add_argument(
        "--sam",
        metavar="NAME",
        help="weights of Segment Anything: a folder, a .safetensors file or a name (MODEL.SAM.NAME)",
    )


def problems_of_refining(arguments: argparse.Namespace) -> dict[str, bool]:
    """Return message -> whether it applies, for contradictory options."""
    of_file = bool(arguments.refine_with) and not (has_model(arguments) or arguments.folds)
    choosing = arguments.score_threshold is not None or arguments.postprocess or arguments.rescore
    return {
        "--sam belongs to --refine-with sam": bool(arguments.sam and arguments.refine_with != "sam"),
        "--refine-with without a model takes the file as it is, in one process: leave out --score-threshold, "
        "--postprocess, --rescore and torchrun": of_file and bool(choosing or processes_of_torchrun() > 1),
    }


def load_refiner(arguments: argparse.Namespace) -> Refiner:
    """Load the SAM of --refine-with; KEY VALUE changes its settings, unless they belong to --config."""
    from detseg.inference.refiner import Refiner

    if arguments.refine_with != "sam":
        return Refiner.of_run(arguments.refine_with, device=arguments.device)
    words = [] if arguments.config else arguments.overrides
    words = [*words, *(["MODEL.SAM.NAME", arguments.sam] if arguments.sam else [])]
    return Refiner.published(words, device=arguments.device)


def refined(result: Result, refiner: Refiner) -> Result:
    """Redraw the detections of a model."""
    from detseg.errors import DataError
    from detseg.inference.image_list import SkippedImage

    records = {record.image_id: record for record in result.images.records}

    def predictions(skipped: list[SkippedImage], bar: Any) -> Iterator[Predictions]:
        for one in result.predictions(skipped, bar):
            try:
                yield refiner(records[one.image_id], one)
            except DataError as error:  # the file was changed or removed after the prediction
                skipped.append(SkippedImage(one.file_name, str(error)))

    info = {**result.info, "refined_with": refiner.describe()}
    return dataclasses.replace(result, predictions=predictions, info=info)


def refined_file(arguments: argparse.Namespace, refiner: Refiner, images: ImageList) -> Result:
    """Redraw the objects of a Predictions file."""
    from detseg.coco.predictions_file import read_predictions

    file = read_predictions(arguments.boxes)
    info = {**file.info, "boxes": arguments.boxes, "refined_with": refiner.describe()}
    return Result(
        images, file.class_names, info, lambda skipped, bar: refiner.refine_file(file, images.records, skipped)
    )
