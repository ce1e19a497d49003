"""`detseg build_kernel`: make, check and upload a Kaggle notebook that submits the predictions of trained models."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path

from detseg.cli.next_step import command_line, print_next

logger = logging.getLogger(__name__)

DESCRIPTION = (
    "Make a Kaggle notebook that predicts with trained models, fuses and submits (--run), run such a "
    "notebook here as Kaggle would (--check), or upload it (--push). Exit status of a check: 0, or 1 if the "
    "notebook's result differs from that of the commands."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    make = parser.add_argument_group("make it")
    make.add_argument("--run", action="append", default=[], metavar="DIR", help="a trained model; several are fused")
    make.add_argument("--competition", metavar="NAME", help="sartorius, dsb2018, or a YAML file (docs/submission.md)")
    make.add_argument("--output", metavar="DIR", help="folder to write")
    make.add_argument("--owner", metavar="NAME", help="your name on Kaggle (default: $KAGGLE_USERNAME)")
    make.add_argument("--title", default="", help="title of the notebook, 5 to 50 letters")
    make.add_argument("--fusion", metavar="FILE", help="fusion YAML (default: that of `fuse` without options)")
    make.add_argument("--postprocess", metavar="FILE", help="postprocess YAML (default for a single run: its own)")
    make.add_argument(
        "--tta", nargs="+", metavar="VIEW", help="views for every model, as in predict (default: TEST.AUG)"
    )
    make.add_argument(
        "--model-weights",
        nargs="+",
        type=float,
        default=[],
        metavar="X",
        help="weights of the models in the fusion, one per run",
    )
    make.add_argument("--hours", type=float, metavar="N", help="time limit of the session (default: the competition's)")
    make.add_argument("--as-model", action="store_true", help="upload the weights as a Kaggle Model, not as a data set")
    make.add_argument(
        "--wheel", nargs="+", default=[], metavar="FILE", help="additional pure-Python wheels to install there"
    )
    make.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    check = parser.add_argument_group("try it")
    check.add_argument("--check", metavar="DIR", help="run the notebook of this folder here and compare its CSV")
    check.add_argument(
        "--images", metavar="DIR", help="images that take the place of the test images (default: synthetic ones)"
    )
    check.add_argument(
        "--layout", nargs="+", default=[], metavar="NAME", help="where Kaggle puts the inputs (default: try all places)"
    )
    check.add_argument("--python", default=sys.executable, metavar="FILE", help="a Python with Kaggle's packages")
    send = parser.add_argument_group("send it")
    send.add_argument("--push", metavar="DIR", help="print the `kaggle` commands that upload this folder")
    send.add_argument("--submit", metavar="VERSION", help="with --push: submit this version of the notebook instead")
    send.add_argument(
        "--message", metavar="TEXT", help="message for a new version of existing data, or for the submission"
    )
    send.add_argument("--yes", action="store_true", help="run the commands instead of only printing them")


def run(arguments: argparse.Namespace) -> int:
    from detseg.errors import ConfigError

    if sum(map(bool, (arguments.run, arguments.check, arguments.push))) != 1:
        raise ConfigError(
            "give one of --run DIR (to make a kernel), --check DIR (to check it), --push DIR (to upload it)"
        )
    if arguments.check:
        return _check(arguments)
    return _push(arguments) if arguments.push else _build(arguments)


def _build(arguments: argparse.Namespace) -> int:
    from detseg.errors import refuse
    from detseg.files.atomic import check_free
    from detseg.fusion.options import FusionOptions
    from detseg.fusion.postprocess import Postprocess
    from detseg.inference.views import parse_views
    from detseg.submission.kernel.bundle import DATA, KernelOptions, build_kernel
    from detseg.submission.kernel.facts import find_competition

    owner = arguments.owner or os.environ.get("KAGGLE_USERNAME", "")
    refuse(
        {
            "--competition: say which one: sartorius, dsb2018, or a YAML file": not arguments.competition,
            "--output DIR: where to write it": not arguments.output,
            "--owner NAME: your name on Kaggle": not owner,
            f"--hours {arguments.hours}: expected more than 0": arguments.hours is not None and not arguments.hours > 0,
        }
    )
    if arguments.tta and arguments.tta != ["off"]:
        parse_views(arguments.tta)
    output = Path(arguments.output)
    check_free(output, overwrite=arguments.overwrite)
    options = KernelOptions(
        runs=arguments.run,
        competition=find_competition(arguments.competition),
        owner=owner,
        fusion=FusionOptions.load(arguments.fusion) if arguments.fusion else FusionOptions(),
        postprocess=Postprocess.load(arguments.postprocess) if arguments.postprocess else None,
        views=arguments.tta,
        weights=arguments.model_weights,
        title=arguments.title,
        as_model=arguments.as_model,
        wheels=[Path(wheel) for wheel in arguments.wheel],
        hours=arguments.hours,
    )
    manifest = build_kernel(options, output)
    size = sum((output / DATA / name).stat().st_size for name in manifest["files"])
    print(f"models    {len(manifest['members'])}, classes {', '.join(manifest['classes'])}")
    print(f"data      {output / DATA}, {len(manifest['files']) + 1} files, {size / 1e6:.1f} MB")
    print(f"notebook  {next((output / 'notebook').glob('*.ipynb'))}")
    check, push = (command_line("build_kernel", option, output) for option in ("--check", "--push"))
    print_next(check, then=[push])
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from detseg.submission.kernel.check import check_kernel

    images = Path(arguments.images) if arguments.images else None
    found = check_kernel(Path(arguments.check), images, layouts=arguments.layout, python=arguments.python)
    for one in found:
        if one.problems:
            print(one.log.rstrip())
        same = f"the {one.rows} rows, with {one.objects} objects, are those of predict, fuse and make_submission"
        print(f"inputs as {one.layout}: {'; '.join(one.problems) or same}")
        if not one.objects:
            logger.warning("no object was found, so little was compared: give --images DIR with images of cells")
    return 1 if any(one.problems for one in found) else 0


def _push(arguments: argparse.Namespace) -> int:
    from detseg.submission.kernel.push import push_commands, run_commands, submit_command

    folder = Path(arguments.push)
    if arguments.submit:
        commands = [submit_command(folder, arguments.submit, arguments.message or "detseg")]
    else:
        commands = push_commands(folder, arguments.message)
    if arguments.yes:
        run_commands(commands)
    else:
        print("\n".join(shlex.join(words) for words in commands))
    if not arguments.submit:
        last = shlex.join(submit_command(folder))
        print(f"then, when the notebook has run (the push prints VERSION):\n{last}")
    return 0
