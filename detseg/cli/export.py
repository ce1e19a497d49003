"""`detseg export`: write annotations or predictions in formats of other programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from detseg.cli.image_fields import add_image_fields, plane_fields
from detseg.cli.next_step import beside, command_line, print_next
from detseg.formats.table import WRITERS

if TYPE_CHECKING:
    from detseg.coco.dataset import ImageRecord
    from detseg.formats.objects import ObjectsFile

DESCRIPTION = (
    "Write the objects of a COCO or Predictions file as label images, for Cellpose, ImageJ or QuPath, as a table of "
    "measurements, or as the training table of a competition."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", required=True, metavar="FILE", help="COCO or Predictions file, .json or .json.gz")
    parser.add_argument(
        "--format",
        required=True,
        metavar="NAME",
        help="; ".join(f"{name}: {writer.description}" for name, writer in WRITERS.items()),
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the files")
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        help="csv: measure intensities in these images (a folder, a glob, files, or a COCO file) and read "
        "their pixel size",
    )
    parser.add_argument(
        "--image-root", metavar="DIR", help="folder of the COCO file's images, if it is not the file's own"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.0,
        metavar="X",
        help="export only predictions with at least this score",
    )
    parser.add_argument(
        "--overlaps",
        default="refuse",
        metavar="WHAT",
        help="how label images show objects that share pixels: refuse them (default), top (the highest "
        "score, else the smallest, is visible) or layers (several label images in one file)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    add_image_fields(parser)


def run(arguments: argparse.Namespace) -> None:
    """Export, and print the output files."""
    from detseg.formats.export import ExportOptions, export
    from detseg.formats.objects import open_objects
    from detseg.progress import ProgressBar
    from detseg.structures.sample import parse_pixel_size_text

    _check(arguments)
    source = open_objects(arguments.input)
    options = ExportOptions(
        overlaps=arguments.overlaps,
        score_threshold=arguments.score_threshold,
        pixel_size=parse_pixel_size_text(arguments.pixel_size, "--pixel-size") if arguments.pixel_size else None,
        pictures=_pictures(arguments, source),
        overwrite=arguments.overwrite,
    )
    count = export(
        source,
        arguments.format,
        arguments.output,
        options,
        progress=lambda images: ProgressBar(images, desc="exporting", unit="image", total=len(source)),
    )
    where = count.files[0] if len(count.files) == 1 else f"{len(count.files)} files in {arguments.output}"
    print(f"{count.objects} objects of {count.images} images: {where}")
    if count.ignored:
        print(f"{count.ignored} ignored regions are left out")
    if count.empty:
        print(f"{count.empty} masks without a pixel are left out")
    if arguments.images and source.holds_predictions and not plane_fields(arguments):
        words = ["--images", *arguments.images, "--predictions", arguments.input]
        words += ["--image-root", arguments.image_root] if arguments.image_root else []
        words += ["--score-threshold", f"{arguments.score_threshold}"] if arguments.score_threshold else []
        print_next(command_line("visualize", *words, "--output", beside(arguments.input, "_pictures")))


def _check(arguments: argparse.Namespace) -> None:
    from detseg.errors import ConfigError

    if not 0 <= arguments.score_threshold <= 1:
        raise ConfigError(f"--score-threshold is {arguments.score_threshold}; expected 0 to 1")
    if arguments.images and arguments.format != "csv":
        raise ConfigError(f"--images: only --format csv measures intensities in images, {arguments.format} does not")
    if arguments.image_root and not arguments.images:
        raise ConfigError("--image-root DIR needs --images COCO.json")
    if plane_fields(arguments) and not arguments.images:
        raise ConfigError("--z, --t and --axes choose a plane of the images that are measured: give --images PATH too")


def _pictures(arguments: argparse.Namespace, source: ObjectsFile) -> dict[int | str, ImageRecord]:
    """Return the images of the exported file by image id."""
    from detseg.coco.pairing import ImageIndex
    from detseg.inference.image_list import find_images

    if not arguments.images:
        return {}
    found = find_images(arguments.images, image_root=arguments.image_root, fields=plane_fields(arguments))
    records = ImageIndex(found.records, "--images").pair(source.images, arguments.input)
    return {image.image_id: record for image, record in zip(source.images, records, strict=True)}
