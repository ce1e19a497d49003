"""The options that the `detseg prepare_...` commands of images with one annotation file each share."""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli.prepare_options import add_allow_empty


def add_annotated_options(parser: argparse.ArgumentParser, *, what: str, class_name: str | None = "cell") -> None:
    """Add --source, --annotations and, where there is a default for it, --classes. what: the annotation of an image."""
    parser.add_argument(
        "--source", type=Path, required=True, metavar="PATH", help=f"folder or zip archive of images and {what}"
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="PATH", help="folder or zip archive of the latter, where it is another one"
    )
    if class_name is not None:
        parser.add_argument(
            "--classes", default=class_name, metavar="NAME", help="name of the one class (default: %(default)s)"
        )
        add_allow_empty(parser, "images without annotation file")
