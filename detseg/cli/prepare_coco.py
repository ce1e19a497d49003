"""`detseg prepare_coco`: split a COCO file, or leave out what is wrong in it."""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli.prepare_options import add_prepare_options, prepare_options

DESCRIPTION = (
    "Check a COCO file and its images, and write it split into train.json, val.json and test.json, or two a fold, or "
    "(--split 1) as all.json. Polygons become run-lengths, ids are written anew. Images stay where they are."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="COCO file, .json or .json.gz")
    parser.add_argument(
        "--image-root",
        type=Path,
        metavar="DIR",
        help="folder of its images, where it is another one than the file says",
    )
    add_prepare_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prepare the data set and print a table of its parts."""
    from detseg.curation.prepare import prepare
    from detseg.formats.coco_file import CocoFile

    print(prepare(CocoFile(arguments.annotations, image_root=arguments.image_root), prepare_options(arguments)))
