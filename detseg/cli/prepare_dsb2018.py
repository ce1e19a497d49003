"""`detseg prepare_dsb2018`: the Data Science Bowl 2018 as it ships to COCO files."""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli.prepare_options import add_allow_empty, add_prepare_options, prepare_options

DESCRIPTION = (
    "Turn stage1_train of the Data Science Bowl 2018, a folder or the zip archive itself, into COCO files: train.json, "
    "val.json and test.json, or two a fold. Images of a folder stay where they are; those of an archive are unpacked "
    "to OUTPUT/images."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--source", type=Path, required=True, metavar="PATH", help="folder or zip with ID/images/ID.png, ID/masks/*.png"
    )
    parser.add_argument(
        "--run-lengths",
        type=Path,
        metavar="CSV",
        help="masks from stage1_train_labels.csv or the stage-1 solution instead of masks/*.png; images may then also "
        "lie as ID.png in one folder",
    )
    parser.add_argument(
        "--classes", default="nucleus", metavar="NAME", help="name of the one class (default: %(default)s)"
    )
    add_allow_empty(parser, "images without masks, or without a row in the CSV,")
    add_prepare_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prepare the data set and print a table of its parts."""
    from detseg.curation.prepare import prepare
    from detseg.formats.dsb2018 import Dsb2018

    source = Dsb2018(
        arguments.source,
        run_lengths=arguments.run_lengths,
        class_name=arguments.classes,
        allow_empty=arguments.allow_empty,
    )
    print(prepare(source, prepare_options(arguments)))
