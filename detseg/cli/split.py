"""`detseg split`: split a COCO file into folds or parts without leakage."""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli.next_step import inspection, print_next

DESCRIPTION = (
    "Split a COCO file into folds that are similar in images, objects, classes and kinds, with groups "
    "(plate, well, source) and near-duplicate images in one fold: folds.json with a field `fold` for every "
    "image, which train_net --fold takes, and an index. Or, with --fractions, into train.json, val.json and "
    "test.json. --tile cuts the images into tiles. --check searches an existing split for leakage."
)
EXIT_LEAKS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, nargs="+", metavar="FILE.json", help="COCO file; with --check several")
    parser.add_argument("--output", type=Path, help="output folder")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--folds", type=int, default=5, metavar="K", help="number of folds (default: %(default)s)")
    parts.add_argument(
        "--fractions", type=float, nargs="+", metavar="SHARE", help="fractions of train and val (and test)"
    )
    parts.add_argument("--check", action="store_true", help="search for leakage; the exit status is 1 if there is any")
    parser.add_argument(
        "--holdout",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="fraction of the images that is first put into test.json",
    )
    columns = parser.add_argument_group("what is alike and what stays together")
    columns.add_argument(
        "--stratify-by",
        nargs="+",
        default=[],
        metavar="FIELD",
        help="fields of the images whose values are spread evenly",
    )
    columns.add_argument(
        "--group-by",
        nargs="+",
        default=[],
        metavar="FIELD",
        help="fields of the images; images with equal values stay together",
    )
    columns.add_argument(
        "--group-pattern",
        metavar="REGEX",
        help="regular expression: the group is what it matches in these values, or in the file name if there "
        "are none: '^(.*)_t[0-9]+'",
    )
    columns.add_argument(
        "--table", type=Path, metavar="CSV", help="take the fields from the columns of this table about the images"
    )
    columns.add_argument("--key", help="column of the table with the image names (default: the first)")
    columns.add_argument(
        "--similar",
        type=float,
        default=0.9,
        metavar="R",
        help="images with at least this correlation are near-duplicates; 0: do not search (default: %(default)s)",
    )
    columns.add_argument(
        "--ignore-similar", action="store_true", help="list near-duplicates, but do not keep them together"
    )
    tiles = parser.add_argument_group("large images")
    tiles.add_argument(
        "--tile",
        type=int,
        default=0,
        metavar="N",
        help="cut images into tiles of N x N pixels, each an image with the visible parts of its objects; "
        "tiles of one image stay in one part",
    )
    tiles.add_argument(
        "--overlap",
        type=int,
        default=0,
        metavar="N",
        help="pixels by which neighbouring tiles overlap (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--coco-files", action="store_true", help="also write fold0_train.json, fold0_val.json, ...")
    parser.add_argument(
        "--index", choices=("csv", "yaml"), default="csv", help="format of the index (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def run(arguments: argparse.Namespace) -> int:
    """Split or check, and print a report."""
    from detseg.curation.leaks import check_split
    from detseg.curation.split_coco import SplitOptions, split_coco
    from detseg.errors import DataError

    if arguments.check:
        report, found = check_split(arguments.source, arguments.group_by, arguments.similar)
        print(report)
        return EXIT_LEAKS if found else 0
    if len(arguments.source) > 1:
        raise DataError("only one COCO file can be split at a time; several are for --check")
    if arguments.output is None:
        raise DataError("--output FOLDER is missing: the folder for the parts")
    as_typed = ("output", "folds", "fractions", "holdout", "stratify_by", "group_by", "group_pattern", "table", "key")
    as_typed += ("seed", "similar", "coco_files", "index", "tile", "overlap", "overwrite")
    values = {name: getattr(arguments, name) for name in as_typed}
    options = SplitOptions(**values, group_similar=not arguments.ignore_similar)
    print(split_coco(arguments.source[0], options))
    parts = ["train.json", "val.json"] if arguments.fractions else ["folds.json"]
    data = [arguments.output / name for name in parts]
    look, train = inspection(arguments.output, *data, fold=not arguments.fractions)
    print_next(look, then=[train])
    return 0
