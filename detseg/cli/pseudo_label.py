"""`detseg pseudo_label`: learning from images without labels."""

from __future__ import annotations

import argparse

from detseg.cli import pseudo_label_step

DESCRIPTION = "Labels of a model for images that have none. `label` makes a COCO file of predictions."
ACCEPTS_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True, title="steps")
    step = steps.add_parser("label", help="predictions to a COCO file", description=pseudo_label_step.DESCRIPTION)
    pseudo_label_step.add_arguments(step)
    # As every command has it: argparse reads it here where it is typed after STEP.
    step.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")


def run(arguments: argparse.Namespace) -> None:
    pseudo_label_step.run(arguments)
