"""`detseg fuse`: fuse Predictions files of several models, flips or programs into one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from detseg.cli.next_step import beside, command_line, print_next
from detseg.cli.tracking import add_tracking, settings_of, tracked

if TYPE_CHECKING:
    from detseg.runs.tracked_command import CommandRun

DESCRIPTION = (
    "Fuse predictions of the same images into one Predictions file: non-maximum suppression, soft-NMS or "
    "weighted boxes fusion, with masks. An input is a Predictions file, a file of COCO results, or a folder "
    "of label images (Cellpose, StarDist, SAM, manual). No model is needed."
)
ACCEPTS_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--inputs", nargs="+", required=True, metavar="PATH", help="Predictions files, COCO results, label folders"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="Predictions file, .json or .json.gz")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="fusion YAML (configs/fusion/*.yaml); single settings can follow as KEY=VALUE, such as threshold=0.6",
    )
    parser.add_argument("--weights", nargs="+", type=float, metavar="W", help="weights of the inputs, in their order")
    parser.add_argument("--postprocess", metavar="FILE", help="postprocess YAML to apply to the fused predictions")
    parser.add_argument(
        "--ground-truth",
        metavar="FILE",
        help="COCO JSON (no annotations needed) with the images and classes; required if no input has them: "
        "lists of results, or only label folders",
    )
    parser.add_argument("--label-class", metavar="NAME", help="class of the objects in label folders")
    parser.add_argument(
        "--label-score", type=float, default=1.0, metavar="S", help="score of these objects (default %(default)s)"
    )
    parser.add_argument(
        "--rename", nargs="+", default=[], metavar="OLD=NEW", help="classes that other inputs name differently"
    )
    parser.add_argument(
        "--missing",
        choices=("refuse", "empty", "leave-out"),
        default="refuse",
        help="what to do if an input lacks an image: refuse (default); empty: it found nothing there; "
        "leave-out: fuse the others",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")
    add_tracking(parser)


@tracked("fuse")
def run(arguments: argparse.Namespace, tracking: CommandRun) -> None:
    from detseg.coco.dataset import CocoDataset
    from detseg.coco.predictions_file import PredictionsWriter
    from detseg.errors import ConfigError
    from detseg.files.atomic import check_free
    from detseg.fusion.members import fuse_members, open_members, refuse_missing
    from detseg.fusion.options import FusionOptions, check_weights, parse_words
    from detseg.fusion.postprocess import Postprocess
    from detseg.progress import ProgressBar
    from detseg.runs.artifacts import DATASET, PREDICTIONS, THRESHOLDS

    output = Path(arguments.output)
    if not output.name.endswith((".json", ".json.gz")):
        raise ConfigError(f"--output {output}: expected a name that ends in .json or .json.gz")
    check_free(output, overwrite=arguments.overwrite)
    options = FusionOptions.load(arguments.config) if arguments.config else FusionOptions()
    if changed := parse_words(arguments.overrides):
        source = f"{options.source} and command line"
        options = FusionOptions.from_dict({**options.to_dict(), **changed}, source=source)
    weights = check_weights(arguments.weights or options.weights, "--weights") or (1.0,) * len(arguments.inputs)
    if len(weights) != len(arguments.inputs):
        raise ConfigError(f"{len(weights)} weights for {len(arguments.inputs)} inputs; give one per input")
    pairs = [(word, *word.partition("=")[::2]) for word in arguments.rename]
    for word, old, new in pairs:
        if not old or not new:
            raise ConfigError(f"--rename {word}: expected OLD=NEW, two class names")
    postprocess = Postprocess.load(arguments.postprocess) if arguments.postprocess else None
    opened = open_members(
        arguments.inputs,
        arguments.ground_truth,
        rename={old: new for _, old, new in pairs},
        label_class=arguments.label_class,
        label_score=arguments.label_score,
    )
    names = [str(category["name"]) for category in opened.categories]
    options = options.for_classes(names)
    postprocess = postprocess and postprocess.for_classes(names)
    members = dict(zip(arguments.inputs, opened.members, strict=True))
    refuse_missing(members, opened.images, some=arguments.missing != "refuse")
    info = {
        "description": "predictions fused by detseg",
        "fused": {"options": options.to_dict(), "weights": list(weights), "inputs": opened.infos},
        "postprocess": None if postprocess is None else postprocess.to_dict(),
    }
    infos = [member.get("info", {}) for member in opened.infos]
    sources = dict(zip(arguments.inputs, infos, strict=True))
    settings = {**settings_of(arguments), "options": options.to_dict(), "postprocess_settings": info["postprocess"]}
    tracking.begin(sources, folder=output.parent, name=output.name, settings=settings)
    tracking.reads(PREDICTIONS, *arguments.inputs)
    tracking.reads(DATASET, arguments.ground_truth)
    tracking.reads(THRESHOLDS, arguments.postprocess)
    info |= tracking.provenance
    number = 0
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        PredictionsWriter(output, opened.categories, info) as writer,
        ProgressBar(total=len(opened.images), desc="fusing", unit="image") as bar,
    ):
        for fused in fuse_members(opened.members, opened.images, options, weights, arguments.missing):
            result = fused if postprocess is None else postprocess.apply(fused)
            writer.write(result)
            number += len(result)
            bar.update()
    tracking.log({"images": len(opened.images), "objects": number})
    tracking.writes(PREDICTIONS, output)
    print(f"images   {len(opened.images)}\nobjects  {number}\nwritten  {output}")
    if arguments.ground_truth and CocoDataset.load(arguments.ground_truth).num_objects:
        words = ["--ground-truth", arguments.ground_truth, "--predictions", output]
        print_next(command_line("evaluate", *words))
    elif all(image.file_name for image in opened.images):
        words = ["--input", output, "--format", "csv", "--output", beside(output, "_tables")]
        print_next(command_line("export", *words))
