"""`detseg report`: describe a training, or compare several, in one HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = (
    "Write a single HTML file about a training, which opens from disk or from an e-mail: scores with "
    "intervals, curves, counts, sizes, confusion of classes, the worst and best images, losses, settings "
    "and how to repeat it. For several runs also their differences, with intervals. It also works while a "
    "training is running, and after it was killed."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run",
        type=Path,
        action="append",
        nargs="+",
        required=True,
        metavar="DIR",
        help="folder of a training (runs/NAME/001; for runs/NAME the newest), or of one with --fold all; "
        "several, also by repeating --run: the others are compared with the first",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.html",
        help="default: report.html in the folder of the run, replaced; for several runs ./report.html",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run(arguments: argparse.Namespace) -> None:
    from detseg.errors import ConfigError
    from detseg.report.run.page import write_report

    runs = [path for paths in arguments.run for path in paths]
    doubled = {path for path in runs if runs.count(path) > 1}
    if doubled:
        raise ConfigError(f"--run {sorted(doubled)[0]} is given twice; name each run once")
    page = write_report(runs, arguments.output, overwrite=arguments.overwrite)
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, opens in any browser")
