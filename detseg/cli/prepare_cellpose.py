"""`detseg prepare_cellpose`: images with NAME_masks.png or NAME_seg.npy to COCO files."""

from __future__ import annotations

import argparse

from detseg.cli.annotated_options import add_annotated_options
from detseg.cli.prepare_options import add_prepare_options, prepare_options

DESCRIPTION = (
    "Turn images with masks of Cellpose (NAME_seg.npy, or NAME_masks.png or .tif) into COCO files: train.json, "
    "val.json and test.json, or two a fold. Nothing that a _seg.npy holds is run. Images in folders train and test, as "
    "in Cellpose's own data set, keep that split."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_annotated_options(parser, what="masks")
    add_prepare_options(parser, split_default="that of folders train, val and test, else 0.7 0.15 0.15")


def run(arguments: argparse.Namespace) -> None:
    """Prepare the data set and print a table of its parts."""
    from detseg.curation.prepare import prepare
    from detseg.formats.cellpose import read_cellpose

    source = read_cellpose(
        arguments.source, arguments.annotations, class_name=arguments.classes, allow_empty=arguments.allow_empty
    )
    print(prepare(source, prepare_options(arguments)))
