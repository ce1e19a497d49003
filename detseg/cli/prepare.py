"""`detseg prepare FORMAT`: convert data of any supported format to COCO files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from detseg.cli.image_fields import add_image_fields
from detseg.cli.next_step import inspection, print_next
from detseg.cli.repair import RULES_HELP
from detseg.formats.table import FORMATS

if TYPE_CHECKING:
    from detseg.formats.reader import Reader

DESCRIPTION = (
    "Convert images with annotations in any of these formats to COCO files: train.json, val.json and "
    "test.json, or two files per fold. Everything is read and checked before anything is written."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each format with a reader."""
    commands = parser.add_subparsers(dest="format", metavar="FORMAT", required=True, title="formats")
    for name, row in FORMATS.items():
        if not row.reader:
            continue
        command = commands.add_parser(name, help=row.summary, description=row.description, allow_abbrev=False)
        for option in row.options:
            command.add_argument(option.flag, **option.settings)
        command.add_argument("--output", type=Path, required=True, help="folder for the COCO files")
        split = _add_split(command)
        add_table_options(split)
        add_data_options(command)
        command.add_argument("--overwrite", action="store_true", help="replace existing files")
        # Like every command; repeated here so that argparse accepts it after FORMAT.
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )


def _add_split(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    split = parser.add_argument_group("the split")
    parts = split.add_mutually_exclusive_group()
    parts.add_argument(
        "--split",
        dest="fractions",
        type=float,
        nargs="+",
        metavar="FRACTION",
        help="fractions of train, val and test (default: the split of the data, if they have one, else 0.7 0.15 0.15)",
    )
    parts.add_argument("--folds", type=int, metavar="K", help="number of folds: fold0_train.json, fold0_val.json, ...")
    parts.add_argument(
        "--split-lists",
        type=Path,
        metavar="PREFIX",
        help="existing lists: PREFIX_train.txt, PREFIX_val.txt, ... or a folder with train.txt, ...; one "
        "image name per line",
    )
    split.add_argument("--seed", type=int, default=0, help="seed of the split (default: %(default)s)")
    split.add_argument("--write-lists", action="store_true", help="also write the split as lists, train.txt, ...")
    return split


def add_table_options(split: argparse._ArgumentGroup) -> None:
    """Add the options for groups of images and tables about images."""
    split.add_argument(
        "--table",
        type=Path,
        metavar="CSV",
        help="table about the images, joined by name (see --key); its columns become fields of the images",
    )
    split.add_argument(
        "--key", help="column of the table with the image names, with or without ending (default: the first)"
    )
    split.add_argument(
        "--stratify-by",
        metavar="COLUMN",
        help="column whose values are all split in the same proportions; it is stored as `group`",
    )


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for images and objects of all formats."""
    parser.add_argument(
        "--classes-from",
        nargs="+",
        default=[],
        metavar="WHAT",
        help="classes of the objects: `folder` (the folder of the image), column:NAME (a field of the "
        "images), csv:FILE:COLUMN (a table of images, or, with a column `label`, of objects); "
        "`map:FILE` (YAML, JSON or CSV of name and class), alone or after one of them, renames, merges "
        "and drops classes",
    )
    parser.add_argument(
        "--repair",
        nargs="*",
        metavar="RULE=VALUE",
        help=f"repair the masks, and list the changes in repairs.csv; {RULES_HELP}",
    )
    parser.add_argument(
        "--fill-holes", action="store_true", help="fill all background that a mask encloses: --repair none holes=all"
    )
    add_image_fields(parser, pixel_size_help=", or csv:FILE:COLUMN (see --key)")
    model = parser.add_argument_group(
        "the model's input, recorded in the COCO files: training and prediction follow it"
    )
    model.add_argument(
        "--channels", nargs="+", metavar="CHANNEL", help="indices from 0 on, or channel names of an OME-TIFF"
    )
    model.add_argument(
        "--scaling", metavar="HOW", help="how intensities are scaled to 0..255: none, percentile or fixed"
    )
    model.add_argument("--scaling-percentiles", nargs=2, type=float, metavar=("LOW", "HIGH"), help="default: 0.5 99.5")
    model.add_argument(
        "--scaling-range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="intensities that become 0 and 255"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out bad images, masks and rows and list them in skipped.txt"
    )


def reader_of(arguments: argparse.Namespace) -> Reader:
    """Open the data; files are listed but not read."""
    row = FORMATS[arguments.format]
    return row.load_reader()(**{option.name: getattr(arguments, option.name) for option in row.options})


def run(arguments: argparse.Namespace) -> None:
    """Prepare the data set and print a table of its parts."""
    from detseg.coco.learnable import NOTHING
    from detseg.curation.prepare import PrepareOptions, prepare
    from detseg.curation.repair.rules import RepairRules
    from detseg.formats.image_fields import input_keys
    from detseg.images.planes import PlaneChoice

    reader = reader_of(arguments)
    holes = ["holes=all"] if arguments.fill_holes else []
    repair = RepairRules.parse(["none", *holes]) if holes else None
    if arguments.repair is not None:
        rules = RepairRules(one_class_per_image=reader.one_class_per_image)
        repair = RepairRules.parse([*holes, *arguments.repair], rules)
    as_typed = ("output", "fractions", "folds", "split_lists", "table", "key", "stratify_by", "classes_from")
    as_typed += ("seed", "write_lists", "skip_bad", "overwrite")
    options = PrepareOptions(
        **{name: getattr(arguments, name) for name in as_typed},
        plane=PlaneChoice.from_texts(arguments.z, arguments.t, arguments.axes, arguments.scene),
        pixel_size=arguments.pixel_size or "",
        input_keys=input_keys(
            arguments.channels, arguments.scaling, arguments.scaling_percentiles, arguments.scaling_range
        ),
        repair=repair,
    )
    said = prepare(reader, options)
    print(said)
    for first in ("train", "fold0_train", "all"):
        parts = [arguments.output / f"{part}.json" for part in (first, first.replace("train", "val"))]
        if parts[0].is_file():
            look, train = inspection(arguments.output, *dict.fromkeys(part for part in parts if part.is_file()))
            print_next(look, then=[] if NOTHING in said else [train])
            return
