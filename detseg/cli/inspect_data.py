"""`detseg inspect_data`: what is in a data set, what is wrong with it, and which settings suit it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DESCRIPTION = (
    "Look at a data set: numbers and figures of images, objects, sizes, contacts, intensities and focus, problems with "
    "pictures of the worst, and settings that suit, each with its reason. Writes index.html, one file for any browser, "
    "and report.json with all numbers. Nothing of the data is changed."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="FILE",
        help="COCO file or name of the catalog; several are looked at together, and for images in more than one",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder for index.html and report.json"
    )
    parser.add_argument(
        "--suggest",
        type=Path,
        metavar="FILE.yaml",
        help="write the suggestions as a configuration to build on (_BASE_)",
    )
    parser.add_argument("--image-root", default="", metavar="DIR", help="folder that file names are relative to")
    parser.add_argument(
        "--group-by", default="", metavar="FIELD", help="field of the images that says their kind (default: group)"
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=1000,
        metavar="N",
        help="pictures that are read for intensities, focus and look-alikes, 0 for all (default: %(default)s)",
    )
    parser.add_argument(
        "--similar",
        type=float,
        default=0.9,
        metavar="R",
        help="images of this correlation or more are nearly the same; 0: do not look (default: %(default)s)",
    )
    parser.add_argument(
        "--rules", nargs="+", default=[], metavar="RULE=VALUE", help="rules of repair to look with (see detseg repair)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def run(arguments: argparse.Namespace) -> None:
    """Measure, write the report, and print what matters most."""
    from detseg.curation.inspection.gather import InspectionOptions
    from detseg.curation.inspection.inspect_data import inspect_data, suggested_yaml
    from detseg.curation.repair.rules import RepairRules
    from detseg.errors import DataError
    from detseg.files.atomic import check_free, make_folder, written_whole
    from detseg.report.inspection.page import NUMBERS, check_folder, write_report

    if arguments.pictures < 0 or not 0 <= arguments.similar <= 1:
        raise DataError("--pictures is a number of images, 0 or more, and --similar a correlation from 0 to 1")
    check_folder(arguments.output, overwrite=arguments.overwrite)
    if arguments.suggest:
        check_free(arguments.suggest, arguments.overwrite)
    options = InspectionOptions(
        group_by=arguments.group_by,
        pictures=arguments.pictures,
        similar=arguments.similar,
        rules=RepairRules.parse(arguments.rules),
    )
    found = inspect_data(arguments.data, options, arguments.image_root)
    name = arguments.suggest.name if arguments.suggest else "suggested.yaml"
    config = suggested_yaml(found.suggestions, arguments.data, len(found.report["classes"]), name)
    page = write_report(arguments.output, found.report, found.dataset, config, overwrite=arguments.overwrite)
    print(_summary(found.report))
    print(f"\n{page} shows it; {page.with_name(NUMBERS)} has all numbers")
    if arguments.suggest:
        make_folder(arguments.suggest.parent)
        with written_whole(arguments.suggest, "the suggested configuration") as temporary:
            temporary.write_text(config, encoding="utf-8")
        print(f"{arguments.suggest} is a configuration to build on")


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
    lines += [f"{one['topic']}: {one['advice']}" for one in report["suggestions"]]
    # Last, where they are seen.
    return "\n".join([*lines, *(f"WARNING: {text}" for text in wrong["labels"])])
