"""`detseg prepare_livecell`: LIVECell with its official split to COCO files."""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli.prepare_options import add_prepare_options, prepare_options

DESCRIPTION = (
    "Turn LIVECell (its COCO files, and its images in a folder or images.zip) into COCO files by the official split: "
    "train.json, val.json and test.json, with the cell type of every image as its group. Images of an archive are "
    "unpacked to OUTPUT/images."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--source", type=Path, required=True, metavar="DIR", help="folder with livecell_coco_train.json, ... below it"
    )
    parser.add_argument(
        "--images", type=Path, metavar="PATH", help="folder or zip archive of the images (default: DIR/images or .zip)"
    )
    experiment = parser.add_mutually_exclusive_group()
    experiment.add_argument(
        "--cell-type", metavar="TYPE", help="the official split of one cell type: A172, BT474, BV2, Huh7, MCF7, ..."
    )
    experiment.add_argument(
        "--percent", type=int, choices=(2, 4, 5, 25, 50), help="the official training file with so few of the images"
    )
    add_prepare_options(parser, stratify_default="cell_type", split_default="the official one")


def run(arguments: argparse.Namespace) -> None:
    """Prepare the data set and print a table of its parts."""
    from detseg.curation.prepare import prepare
    from detseg.formats.livecell import LiveCell

    source = LiveCell(
        arguments.source, images=arguments.images, cell_type=arguments.cell_type, percent=arguments.percent
    )
    print(prepare(source, prepare_options(arguments)))
