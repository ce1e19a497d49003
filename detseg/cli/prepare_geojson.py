"""`detseg prepare_geojson`: images with GeoJSON files of QuPath to COCO files."""

from __future__ import annotations

import argparse

from detseg.cli.annotated_options import add_annotated_options
from detseg.cli.prepare_options import add_prepare_options, prepare_options

DESCRIPTION = (
    "Turn images with GeoJSON files of QuPath (NAME.geojson) into COCO files: train.json, val.json and test.json, or "
    "two a fold. Classes are the classifications; regions of the class Ignore* are neither object nor background. A "
    "pixel belongs to an object in which its centre lies."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_annotated_options(parser, what="GeoJSON files")
    parser.add_argument(
        "--object-types",
        nargs="+",
        default=[],
        metavar="TYPE",
        choices=("annotation", "detection", "cell", "tile", "tma_core", "root"),
        help="take objects of these types alone (default: annotation, detection and cell)",
    )
    parser.add_argument("--nuclei", action="store_true", help="take the nuclei of cells instead of their outlines")
    add_prepare_options(parser, split_default="that of folders train, val and test, else 0.7 0.15 0.15")


def run(arguments: argparse.Namespace) -> None:
    """Prepare the data set and print a table of its parts."""
    from detseg.curation.prepare import prepare
    from detseg.formats.geojson import GeoJsonOptions, read_geojson

    options = GeoJsonOptions(arguments.classes, tuple(arguments.object_types), arguments.nuclei)
    source = read_geojson(arguments.source, arguments.annotations, options=options, allow_empty=arguments.allow_empty)
    print(prepare(source, prepare_options(arguments)))
