"""`detseg pseudo_label`: learn from images without labels."""

from __future__ import annotations

import argparse

from detseg.cli import pseudo_label_rounds, pseudo_label_step

DESCRIPTION = (
    "Learn from images without labels. With --config in rounds: a teacher labels them, students are trained "
    "with these labels in addition, and are kept only if they are better on labelled images that they have "
    "not seen. The step `label` alone makes a COCO file from predictions."
)
ACCEPTS_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pseudo_label_rounds.add_arguments(parser)
    steps = parser.add_subparsers(dest="step", metavar="STEP", title="steps")
    step = steps.add_parser("label", help="predictions to a COCO file", description=pseudo_label_step.DESCRIPTION)
    pseudo_label_step.add_arguments(step)
    # Like every command; repeated here so that argparse accepts it after STEP.
    step.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")


def run(arguments: argparse.Namespace) -> int:
    if arguments.step is None:
        return pseudo_label_rounds.run(arguments)
    pseudo_label_step.run(arguments)
    return 0
