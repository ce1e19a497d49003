"""`detseg prepare_rois`: images with regions of ImageJ (zip archives or single .roi) to COCO files."""

from __future__ import annotations

import argparse

from detseg.cli.annotated_options import add_annotated_options
from detseg.cli.prepare_options import add_prepare_options, prepare_options

DESCRIPTION = (
    "Turn images with regions of ImageJ (NAME.zip, NAME_rois.zip or NAME.roi, as its ROI manager saves them) into COCO "
    "files: train.json, val.json and test.json, or two a fold. A pixel belongs to a region in which its centre lies. "
    "With --classes-from map:FILE the groups of the regions (or their names, where they have no group) are the classes."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_annotated_options(parser, what="regions")
    add_prepare_options(parser, split_default="that of folders train, val and test, else 0.7 0.15 0.15")


def run(arguments: argparse.Namespace) -> None:
    """Prepare the data set and print a table of its parts."""
    from detseg.curation.prepare import prepare
    from detseg.formats.imagej import read_rois

    source = read_rois(
        arguments.source, arguments.annotations, class_name=arguments.classes, allow_empty=arguments.allow_empty
    )
    print(prepare(source, prepare_options(arguments)))
