"""`detseg prepare_sartorius`: the Sartorius competition as it ships to COCO files."""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli.prepare_options import add_allow_empty, add_prepare_options, prepare_options

DESCRIPTION = (
    "Turn train.csv and train/*.png of the Sartorius competition, a folder or the zip archive itself, into COCO files "
    "of the classes shsy5y, astro and cort: train.json, val.json and test.json, or two a fold; and the images of "
    "train_semi_supervised, where they are there, into unlabelled.json. Images of a folder stay where they are; those "
    "of an archive are unpacked to OUTPUT/images."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--source", type=Path, required=True, metavar="PATH", help="folder or zip with train.csv and train/*.png"
    )
    add_allow_empty(parser, "images without a row in train.csv")
    add_prepare_options(parser, stratify_default="cell_type; every other column of train.csv without --table")


def run(arguments: argparse.Namespace) -> None:
    """Prepare the data set and print a table of its parts."""
    from detseg.curation.prepare import prepare
    from detseg.curation.repair.rules import RepairRules
    from detseg.formats.sartorius import Sartorius

    # Every image of the competition shows cells of one type.
    options = prepare_options(arguments, defaults=RepairRules(one_class_per_image=True))
    print(prepare(Sartorius(arguments.source, allow_empty=arguments.allow_empty), options))
