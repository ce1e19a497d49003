"""`detseg fit`: from images and labels to a trained and scored model, by running other commands in sequence."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.cli.next_step import command_line
from detseg.cli.prepare import add_data_options, add_table_options
from detseg.formats.table import FORMATS, TOLD

if TYPE_CHECKING:
    from detseg.cli.fit_steps import Step

DESCRIPTION = """From images and labels to a trained model, its scores and pictures: prepare, inspect_data --suggest
(which also splits), train_net and visualize. Each command is printed before it runs, and at the end the command that
predicts other images. To continue after an interruption, run the same command again. KEY VALUE changes configuration
keys of the training."""
ACCEPTS_OVERRIDES = True

# Options of the readers that --images and --labels replace.
_GIVEN = ("--images", "--labels", "--source", "--annotations", "--image-root")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command, and those of `prepare` that say how labels are read."""
    from detseg.cli.fit_steps import DEFAULT_VALIDATION

    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder or zip archive of images")
    parser.add_argument(
        "--labels",
        type=Path,
        required=True,
        metavar="PATH",
        help="their labels, a folder, zip archive or COCO file; may be the folder of the images",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for all results")
    parser.add_argument(
        "--format", choices=TOLD, help="format of the labels, if it cannot be detected: " + "; ".join(TOLD.values())
    )
    held_out = "a share of the images, or a folder, a quoted pattern or a .txt list; these images are not trained on"
    parser.add_argument(
        "--validation",
        metavar="WHAT",
        help=f"{held_out}, to choose the best weights and the score threshold (default: images in folders train and "
        f"val stay there, else {DEFAULT_VALIDATION})",
    )
    parser.add_argument("--test", metavar="WHAT", help=f"{held_out}, and not used for any choice (default: none)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=60.0,
        metavar="M",
        help="minutes to plan for the training (default: %(default)g)",
    )
    parser.add_argument(
        "--weights",
        default="",
        metavar="FILE",
        help="pretrained weights, see inspect_data: package://efficientnet_lite0",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and do nothing")
    parser.add_argument(
        "--ignore-warnings", action="store_true", help="train although the labels do not look like single objects"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="if images, labels or options have changed since the training: repeat what depends on them",
    )
    before = len(parser._actions)
    labels = parser.add_argument_group("the labels", "as `detseg prepare FORMAT` has them")
    for name in TOLD:
        for option in FORMATS[name].options:
            if option.flag not in (*_GIVEN, *parser._option_string_actions):
                labels.add_argument(option.flag, **option.settings)
    add_table_options(labels)
    add_data_options(parser)
    parser.set_defaults(label_actions=parser._actions[before:])


def run(arguments: argparse.Namespace) -> int:
    """Run the remaining steps; print scores, pictures and the command that predicts."""
    from detseg.cli.fit_steps import Work, check_before, plan_steps
    from detseg.errors import DetsegError

    check_before(arguments)
    steps = plan_steps(arguments, label_words(arguments))
    if arguments.dry_run:
        print("\n".join(f"$ {step.line}" for step in steps))
        print("nothing was done (--dry-run); the commands of a training depend on the file that inspect_data suggests")
        return 0
    with Work.opened(arguments) as work:
        for number, step in enumerate(steps, start=1):
            print(f"\n[{number} of {len(steps)}] {step.what}", flush=True)
            try:
                status = work.do(step)
                if step.name == "inspect" and not arguments.ignore_warnings:
                    work.check_labels()
            except DetsegError:
                print(
                    f"stopped in step {number} of {len(steps)}; finished steps are kept: correct the problem and "
                    "run the command again to continue"
                )
                raise
            if status:
                words = sys.argv[1 if sys.argv[0].endswith("fit.py") else 2 :]
                print(f"to continue, run the same command:\n  {command_line('fit', *words)}")
                return status
        _print_end(arguments, steps)
    return 0


def label_words(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Return the options of `prepare` that were given: flag -> its arguments."""
    words: dict[str, list[str]] = {}
    for action in arguments.label_actions:
        value: Any = getattr(arguments, action.dest)
        if value == action.default:
            continue
        flag = action.option_strings[0]
        values = [] if value is True else value if isinstance(value, list) else [value]
        words[flag] = [flag, *map(str, values)]
    return words


def _print_end(arguments: argparse.Namespace, steps: list[Step]) -> None:
    from detseg.files.atomic import read_json
    from detseg.runs.fold_runs import results_table

    output = arguments.output
    metrics = read_json(output / "run" / "final_metrics.json")
    images = ["z", "t", "axes", "scene", "pixel_size"]
    fields = [word for name in images if (value := getattr(arguments, name)) for word in (f"--{name}", value)]
    fields = [word.replace("_", "-") if word.startswith("--") else word for word in fields]
    predict = ["--run", str(output / "run"), "--images", "NEW_IMAGES", *fields]
    predict += ["--output", "predictions.json.gz", "--label-images", "NEW_LABELS"]
    print(
        f"\n{results_table(metrics)}\n\nOn images that were not trained on; the score threshold "
        f"{metrics['score_threshold']:.3f} was chosen on those for validation.\n\n"
        f"pictures  {output / 'pictures'}: truth and prediction side by side\n"
        f"data      {output / 'inspection' / 'index.html'}\n"
        f"settings  {output / 'suggested.yaml'}, with the reason of each\n"
        f"model     {output / 'run'}\n\n"
        f"To predict other images:\n  {command_line('predict', *predict)}"
    )
