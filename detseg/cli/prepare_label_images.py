"""`detseg prepare_label_images`: folders of images and label images to COCO files."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = (
    "Turn a folder of images and a folder of label images (0 background, every other number an object) into COCO "
    "files: train.json, val.json and test.json, or two a fold. Images stay where they are."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--images", type=Path, required=True, help="folder of PNG, JPEG, TIFF, BMP or NPY; with subfolders"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        required=True,
        help="folder of label images (PNG, TIFF or NPY; 8, 16 or 32 bit), named as the images; with subfolders",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the COCO files")
    parser.add_argument(
        "--label-suffix",
        help="what follows the image's name in the label's, as _cells in 7_cells.png; default: nothing, or one of "
        "_mask, _masks, _label, _labels",
    )
    parser.add_argument(
        "--classes", default="cell", metavar="NAME", help="name of the one class (default: %(default)s)"
    )
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        "--split", type=float, nargs="+", metavar="FRACTION", help="train, val and test (default: 0.7 0.15 0.15)"
    )
    parts.add_argument("--folds", type=int, metavar="K", help="K folds: fold0_train.json, fold0_val.json, ...")
    parts.add_argument(
        "--split-lists",
        type=Path,
        metavar="PREFIX",
        help="given lists: PREFIX_train.txt, PREFIX_val.txt, ... or a folder of train.txt, ...; one image name a line",
    )
    parser.add_argument("--table", type=Path, metavar="CSV", help="table of the images, joined by name (see --key)")
    parser.add_argument("--key", help="its column of image names, with or without suffix (default: the first)")
    parser.add_argument(
        "--stratify-by", metavar="COLUMN", help="split every value of this column alike; it is stored as `group`"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split (default: %(default)s)")
    parser.add_argument("--write-lists", action="store_true", help="also write the split as lists, train.txt, ...")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad images out and list them in skipped.txt")
    parser.add_argument("--overwrite", action="store_true", help="replace COCO files that are there")


def run(arguments: argparse.Namespace) -> None:
    """Prepare the data set and print a table of its parts."""
    from detseg.data.readers.prepare import PrepareOptions, prepare_label_images

    fractions = tuple(arguments.split or (0.7, 0.15, 0.15))
    options = PrepareOptions(
        images=arguments.images,
        labels=arguments.labels,
        output=arguments.output,
        label_suffix=arguments.label_suffix,
        class_name=arguments.classes,
        fractions=fractions,
        folds=arguments.folds,
        split_lists=arguments.split_lists,
        table=arguments.table,
        key=arguments.key,
        stratify_by=arguments.stratify_by,
        seed=arguments.seed,
        write_lists=arguments.write_lists,
        skip_bad=arguments.skip_bad,
        overwrite=arguments.overwrite,
    )
    print(prepare_label_images(options))
