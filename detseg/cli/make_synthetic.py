"""`detseg make_synthetic`: data sets of synthetic cells of any size and density, with exact masks."""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli.next_step import inspection, print_next

DESCRIPTION = (
    "Draw images of synthetic cells (three kinds, phase contrast) with exact masks, as PNG files and COCO "
    "JSON. The same options give the same images."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    parser.add_argument(
        "--train", type=int, default=80, metavar="N", help="number of training images (default %(default)s)"
    )
    parser.add_argument(
        "--val", type=int, default=20, metavar="N", help="number of validation images (default %(default)s)"
    )
    parser.add_argument("--test", type=int, default=0, metavar="N", help="number of test images (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default %(default)s)")
    for option, default, text in (
        ("--height", [256, 320], "pixels"),
        ("--width", [256, 320], "pixels"),
        ("--cells", [30, 100], "cells per image"),
    ):
        parser.add_argument(
            option,
            type=int,
            nargs="+",
            default=default,
            metavar="N",
            help=f"{text}: one number, or smallest and largest (default {default[0]} {default[1]})",
        )
    parser.add_argument(
        "--kinds", nargs="+", metavar="KIND", help="which of elongated, irregular, round to draw (default all)"
    )
    parser.add_argument(
        "--one-kind-per-image", action="store_true", help="one kind per image, in turn (default: mixed)"
    )
    parser.add_argument(
        "--touching", type=float, default=1 / 3, help="share of cells that touch another one (default 0.33)"
    )
    parser.add_argument(
        "--overlapping", type=float, default=0.04, help="share of cells that share pixels (default %(default)s)"
    )
    for option, text in (
        ("--size", "the cells' size"),
        ("--contrast", "the cells' contrast"),
        ("--noise", "the sensor's noise"),
        ("--debris", "the number of specks"),
    ):
        parser.add_argument(option, type=float, default=1.0, help=f"factor on {text} (default %(default)s)")
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3), help="gray (1), or three equal channels (3)")
    parser.add_argument("--overwrite", action="store_true", help="replace a synthetic data set in the output folder")


def run(arguments: argparse.Namespace) -> int:
    from detseg.curation.synthetic import KINDS, generate_dataset

    counts = {name: getattr(arguments, name) for name in ("train", "val", "test") if getattr(arguments, name)}
    as_typed = ("seed", "one_kind_per_image", "overwrite", "touching", "overlapping", "size", "contrast", "noise")
    options = {name: getattr(arguments, name) for name in (*as_typed, "debris", "channels")}
    for name in ("height", "width", "cells"):
        values = getattr(arguments, name)
        options[name] = values[0] if len(values) == 1 else values
    paths = generate_dataset(arguments.output, counts=counts, kinds=arguments.kinds or KINDS, **options)
    for name, path in paths.items():
        print(f"{name:6} {counts[name]:6d} pictures  {path}")
    look, train = inspection(Path(arguments.output), *(path for name, path in paths.items() if name != "test"))
    print_next(look, then=[train])
    return 0
