"""`detseg prepare_stranger_sections`: images with a mask of classes each to COCO files."""

from __future__ import annotations

import argparse

from detseg.cli.annotated_options import add_annotated_options
from detseg.cli.prepare_options import add_prepare_options, prepare_options

DESCRIPTION = (
    "Turn Stranger Sections 2 (NAME.JPG with NAME_gt.npy), or other images with a mask of classes each (.npy, .png or "
    ".tif), into COCO files: every connected region of a class is one object. Images in folders without any mask go "
    "into unlabelled.json."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_annotated_options(parser, what="masks", class_name=None)
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="classes of the numbers 1, 2, ... (default: inertinite vitrinite liptinite)",
    )
    parser.add_argument(
        "--label-suffix", default="_gt", help="what follows the image's name in the mask's (default: %(default)s)"
    )
    parser.add_argument(
        "--ignore-value", type=int, metavar="N", help="number of pixels that are neither object nor background"
    )
    add_prepare_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prepare the data set and print a table of its parts."""
    from detseg.curation.prepare import prepare
    from detseg.formats.class_masks import MACERALS, read_class_masks

    source = read_class_masks(
        arguments.source,
        arguments.annotations,
        class_names=arguments.classes or MACERALS,
        label_suffix=arguments.label_suffix,
        ignore=arguments.ignore_value,
    )
    print(prepare(source, prepare_options(arguments)))
