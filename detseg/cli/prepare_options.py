"""The options that all `detseg prepare_...` commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from detseg.cli.image_fields import add_image_fields, plane_fields
from detseg.cli.repair_options import RULES_HELP

if TYPE_CHECKING:
    from detseg.curation.prepare import PrepareOptions
    from detseg.curation.repair.rules import RepairRules
    from detseg.formats.source import PictureOptions


def add_prepare_options(
    parser: argparse.ArgumentParser, *, stratify_default: str | None = None, split_default: str = "0.7 0.15 0.15"
) -> None:
    """Add --output and everything about classes, splits and bad input. ..._default: what --help says of them."""
    parser.add_argument("--output", type=Path, required=True, help="folder for the COCO files")
    _add_split_options(parser, stratify_default, split_default)
    parser.add_argument(
        "--classes-from",
        nargs="+",
        default=[],
        metavar="WHAT",
        help="classes of the objects: `folder` (the one that the image lies in), column:NAME (a field of the images), "
        "csv:FILE:COLUMN (a table of images, or, with a column `label`, of objects); `map:FILE` (YAML, JSON or CSV of "
        "name and class) alone or behind one of them renames, joins and leaves out",
    )
    parser.add_argument(
        "--repair",
        nargs="*",
        metavar="RULE=VALUE",
        help=f"mend the masks, and list what was changed in repairs.csv; {RULES_HELP}",
    )
    parser.add_argument(
        "--fill-holes", action="store_true", help="fill all background that a mask encloses: --repair none holes=all"
    )
    _add_picture_options(parser)
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave bad images, masks and rows out and list them in skipped.txt"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def _add_split_options(parser: argparse.ArgumentParser, stratify_default: str | None, split_default: str) -> None:
    split = parser.add_argument_group("the split")
    parts = split.add_mutually_exclusive_group()
    parts.add_argument(
        "--split", type=float, nargs="+", metavar="FRACTION", help=f"train, val and test (default: {split_default})"
    )
    parts.add_argument("--folds", type=int, metavar="K", help="K folds: fold0_train.json, fold0_val.json, ...")
    parts.add_argument(
        "--split-lists",
        type=Path,
        metavar="PREFIX",
        help="given lists: PREFIX_train.txt, PREFIX_val.txt, ... or a folder of train.txt, ...; one image name a line",
    )
    split.add_argument("--table", type=Path, metavar="CSV", help="table of the images, joined by name (see --key)")
    split.add_argument("--key", help="its column of image names, with or without suffix (default: the first)")
    default = f" (default: {stratify_default})" if stratify_default else ""
    split.add_argument(
        "--stratify-by",
        metavar="COLUMN",
        help=f"split every value of this column alike; it is stored as `group`{default}",
    )
    split.add_argument("--seed", type=int, default=0, help="of the split (default: %(default)s)")
    split.add_argument("--write-lists", action="store_true", help="also write the split as lists, train.txt, ...")


def add_allow_empty(parser: argparse.ArgumentParser, which: str) -> None:
    """Add --allow-empty; which: the images that it speaks of."""
    parser.add_argument("--allow-empty", action="store_true", help=f"{which} have no objects")


def _add_picture_options(parser: argparse.ArgumentParser) -> None:
    add_image_fields(parser, pixel_size_help=", or csv:FILE:COLUMN (see --key)")
    group = parser.add_argument_group(
        "the model's input, recorded in the COCO files: training and prediction follow it"
    )
    group.add_argument("--channels", nargs="+", metavar="CHANNEL", help="indices from 0 on, or names of an OME-TIFF's")
    group.add_argument("--scaling", metavar="HOW", help="of intensities to 0..255: none, percentile or fixed")
    group.add_argument("--scaling-percentiles", nargs=2, type=float, metavar=("LOW", "HIGH"), help="default: 0.5 99.5")
    group.add_argument("--scaling-range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="what becomes 0 and 255")


def _picture_options(arguments: argparse.Namespace) -> PictureOptions:
    from detseg.formats.source import PictureOptions, input_keys
    from detseg.images.planes import PlaneChoice

    keys = input_keys(arguments.channels, arguments.scaling, arguments.scaling_percentiles, arguments.scaling_range)
    plane = PlaneChoice.from_fields(plane_fields(arguments))
    return PictureOptions(plane=plane, pixel_size=arguments.pixel_size or "", input_keys=keys)


def prepare_options(arguments: argparse.Namespace, *, defaults: RepairRules | None = None) -> PrepareOptions:
    """Return what these options say. defaults: of the rules of repair, where a source knows better."""
    from detseg.curation.prepare import PrepareOptions

    return PrepareOptions(
        output=arguments.output,
        fractions=tuple(arguments.split) if arguments.split else None,
        folds=arguments.folds,
        split_lists=arguments.split_lists,
        table=arguments.table,
        key=arguments.key,
        stratify_by=arguments.stratify_by,
        classes_from=tuple(arguments.classes_from),
        seed=arguments.seed,
        write_lists=arguments.write_lists,
        pictures=_picture_options(arguments),
        repair=_repair_rules(arguments, defaults),
        skip_bad=arguments.skip_bad,
        overwrite=arguments.overwrite,
    )


def _repair_rules(arguments: argparse.Namespace, defaults: RepairRules | None) -> RepairRules | None:
    from detseg.curation.repair.rules import RepairRules

    holes = ["holes=all"] if arguments.fill_holes else []
    if arguments.repair is not None:
        return RepairRules.parse([*holes, *arguments.repair], defaults)
    return RepairRules.parse(["none", *holes]) if holes else None
