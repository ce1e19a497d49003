"""`detseg visualize`: draw predictions and ground truth over the images."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from detseg.cli.next_step import beside, command_line, print_next

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset
    from detseg.report.overlays import Overlay

DESCRIPTION = (
    "Draw predictions, ground truth or both over the images: one PNG per image, side by side, with contours "
    "and counts. With --embedding: the pixel embeddings of a PixelEmbedding model, as colours. With "
    "--augmented: contact sheets of samples as a training sees them; KEY VALUE changes configuration keys."
)
ACCEPTS_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        help="a folder, a glob, image files, or one COCO JSON file (default: the images of --ground-truth)",
    )
    parser.add_argument(
        "--image-root", metavar="DIR", help="folder of the COCO file's images, if it is not the file's own"
    )
    parser.add_argument("--predictions", metavar="FILE", help="Predictions file or COCO results, .json or .json.gz")
    parser.add_argument("--ground-truth", metavar="FILE", help="COCO JSON")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the pictures; created if missing")
    parser.add_argument("--postprocess", metavar="FILE", help="postprocess YAML to apply to the predictions first")
    parser.add_argument(
        "--score-threshold", type=float, metavar="X", help="draw only predictions with at least this score"
    )
    parser.add_argument(
        "--numbers",
        choices=("auto", "all", "none"),
        help="draw the objects' numbers in the tables and label images of export: auto (those that fit into "
        "their objects), all, none; default: auto, but none with --postprocess, after which the objects "
        "differ from those of the file",
    )
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="draw N images, spread evenly (default: all)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing pictures")
    parser.add_argument(
        "--embedding",
        metavar="RUN",
        help="draw the embeddings of a PixelEmbedding model instead: run folder or checkpoint; their first "
        "three principal components are red, green and blue",
    )
    training = parser.add_argument_group("what a training sees")
    training.add_argument(
        "--augmented", type=int, metavar="N", help="draw N samples as the network sees them, with masks"
    )
    training.add_argument("--config", "--config-file", metavar="FILE", help="YAML configuration of the training")
    training.add_argument(
        "--seed", type=int, metavar="S", help="seed of the random changes (default: the configuration's)"
    )


def run(arguments: argparse.Namespace) -> None:
    if arguments.augmented is not None:
        from detseg.cli.augmented import draw_augmented

        draw_augmented(arguments)
    elif arguments.embedding is not None:
        from detseg.cli.embedding import draw_embeddings

        draw_embeddings(arguments)
    else:
        _draw_overlays(arguments)


def _draw_overlays(arguments: argparse.Namespace) -> None:
    import dataclasses
    from pathlib import Path

    from detseg.coco.dataset import CocoDataset
    from detseg.coco.predictions_file import read_predictions, with_classes_of
    from detseg.files.atomic import check_free
    from detseg.fusion.postprocess import Postprocess
    from detseg.inference.image_list import find_images
    from detseg.progress import ProgressBar
    from detseg.report.overlays import draw_overlay, match_images, overlay_names

    _check(arguments)
    postprocess = Postprocess.load(arguments.postprocess) if arguments.postprocess else None
    if arguments.score_threshold is not None:
        postprocess = postprocess or Postprocess(resolve_overlaps=False)
        postprocess = dataclasses.replace(postprocess, score_threshold=arguments.score_threshold)
    truth = None
    if arguments.ground_truth:
        truth = CocoDataset.load(arguments.ground_truth, image_root=arguments.image_root)
    records = truth.images if truth is not None else []
    if arguments.images:
        records = find_images(arguments.images, image_root=arguments.image_root).records
    if truth is not None and arguments.predictions:
        truth = with_classes_of(arguments.predictions, truth)
    predictions = read_predictions(arguments.predictions, truth) if arguments.predictions else None
    if postprocess is not None and predictions is not None:
        postprocess = postprocess.for_classes(predictions.class_names)
    overlays = list(match_images(records, truth, predictions))
    left_out = 0 if predictions is None else len(predictions) - len(overlays)
    pictures = [Path(arguments.output, name) for name in overlay_names(overlay.record for overlay in overlays)]
    drawn = list(zip(overlays, pictures, strict=True))
    if 0 < arguments.limit < len(drawn):
        drawn = [drawn[number * len(drawn) // arguments.limit] for number in range(arguments.limit)]
    check_free(*(path for _, path in drawn), overwrite=arguments.overwrite)
    numbers = arguments.numbers or ("none" if arguments.postprocess else "auto")
    class_names = truth.class_names if truth is not None else predictions.class_names
    for overlay, path in ProgressBar(drawn, desc="drawing", unit="image"):
        if postprocess is not None and overlay.predictions is not None:
            overlay = dataclasses.replace(overlay, predictions=postprocess.apply(overlay.predictions))
        note = _object_ap(overlay, truth)
        draw_overlay(overlay, path, class_names, truth=truth, note=note, numbers=numbers)
    print(f"{len(drawn)} pictures in {arguments.output}, for example {path.name}")
    if left_out:
        print(f"left out: {left_out} images of {arguments.predictions} that are not among --images")
    elif arguments.predictions and not arguments.postprocess:
        _print_next(arguments)


def _print_next(arguments: argparse.Namespace) -> None:
    """Suggest a table of the objects, whose numbers are those in the pictures."""
    words = [
        "--input",
        arguments.predictions,
        "--format",
        "csv",
        "--images",
        *(arguments.images or [arguments.ground_truth]),
    ]
    words += ["--image-root", arguments.image_root] if arguments.image_root else []
    words += ["--score-threshold", f"{arguments.score_threshold}"] if arguments.score_threshold else []
    print_next(command_line("export", *words, "--output", beside(arguments.predictions, "_tables")))


def _check(arguments: argparse.Namespace) -> None:
    """Refuse contradictory or insufficient options."""
    from detseg.errors import refuse

    threshold = arguments.score_threshold
    refuse(
        {
            f"unrecognized arguments: {' '.join(arguments.overrides)}": bool(arguments.overrides),
            "--config and --seed belong to --augmented N": not (arguments.config is None and arguments.seed is None),
            "give --predictions FILE, --ground-truth FILE or both": not (
                arguments.predictions or arguments.ground_truth
            ),
            "give the images: --images DIR, GLOB or COCO.json": not (arguments.images or arguments.ground_truth),
            f"--score-threshold is {threshold}; expected 0 to 1": threshold is not None and not 0 <= threshold <= 1,
            f"--limit is {arguments.limit}; expected 1 or more, or 0 for all": arguments.limit < 0,
        }
    )


def _object_ap(overlay: Overlay, truth: CocoDataset | None) -> str:
    """Return the image's own score for the line below the picture; "" if there is none."""
    from detseg.evaluation.ground_truth import ImageTruth
    from detseg.evaluation.object_ap import count_objects, summarize_objects

    found = overlay.predictions
    if truth is None or overlay.truth is None or found is None or found.rles is None:
        return ""
    record = truth.images[overlay.truth]
    if (record.height, record.width) != (found.height, found.width):
        return ""  # drawing will report the error
    image = ImageTruth(found.image_id, found.file_name, found.height, found.width, *truth.annotations(overlay.truth))
    scores = summarize_objects([count_objects(image, found, 0)])
    return f"object AP {scores['object_ap']:.2f}, AP50 {scores['object_ap50']:.2f}"
