"""`detseg prepare_label_images`: folders of images and label images to COCO files."""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli.prepare_options import add_prepare_options, prepare_options

DESCRIPTION = (
    "Turn a folder of images and a folder of label images (0 background, every other number an object) into COCO "
    "files: train.json, val.json and test.json, or two a fold. Images stay where they are."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--images", type=Path, required=True, help="folder of PNG, JPEG, TIFF, BMP or NPY; with subfolders"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        required=True,
        help="folder of label images (PNG, TIFF or NPY; 8, 16 or 32 bit), named as the images; with subfolders",
    )
    parser.add_argument(
        "--label-suffix",
        help="what follows the image's name in the label's, as _cells in 7_cells.png; default: nothing, or one of "
        "_mask, _masks, _label, _labels",
    )
    parser.add_argument(
        "--classes", default="cell", metavar="NAME", help="name of the one class (default: %(default)s)"
    )
    add_prepare_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prepare the data set and print a table of its parts."""
    from detseg.curation.prepare import prepare
    from detseg.formats.label_images import LabelImages

    source = LabelImages(
        arguments.images, arguments.labels, label_suffix=arguments.label_suffix, class_name=arguments.classes
    )
    print(prepare(source, prepare_options(arguments)))
