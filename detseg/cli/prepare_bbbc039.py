"""`detseg prepare_bbbc039`: nuclei of the Broad Institute, with the published lists, to COCO files."""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli.prepare_options import add_prepare_options, prepare_options

DESCRIPTION = (
    "Turn BBBC039 (images.zip, masks.zip and metadata.zip, unpacked or not) into COCO files by the published lists of "
    "100, 50 and 50 images: train.json, val.json and test.json. Says whether the test images have the published number "
    "of nuclei. Images of archives are unpacked to OUTPUT/images."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--source", type=Path, required=True, metavar="DIR", help="folder with images, masks and metadata (or .zip)"
    )
    parser.add_argument(
        "--classes", default="nucleus", metavar="NAME", help="name of the one class (default: %(default)s)"
    )
    add_prepare_options(parser, split_default="the published lists")


def run(arguments: argparse.Namespace) -> None:
    """Prepare the data set, and print a table of its parts and whether its nuclei are as many as published."""
    from detseg.curation.prepare import prepare
    from detseg.formats.bbbc039 import Bbbc039

    source = Bbbc039(arguments.source, class_name=arguments.classes)
    print(prepare(source, prepare_options(arguments)))
    print(source.check_count())
