"""`detseg repair`: repair the masks of a COCO file."""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli.next_step import beside, command_line, print_next

DESCRIPTION = (
    "Repair the masks of a COCO file: holes, spurs, specks and fragments, duplicates, nested and empty "
    "masks, wrong classes. Annotations that no rule touches are written unchanged, including additional "
    "fields; a CSV lists the changes. Repairing the result again changes nothing."
)

# `detseg prepare --repair` accepts the same rules.
RULES_HELP = """rules with their defaults: holes=free (fill holes without another object inside; all, off), spurs=8
(trim spurs up to this many pixels), fragments=keep (split, largest, off), except pieces further away than far=1.0
times the longer side of the largest piece, which are split off, and specks under speck_area=10 pixels or
speck_fraction=0.1 of the largest piece, which are removed, min_area=10, duplicates=0.8 (IoU), nested=0.95 (share of a
mask inside another one of its class), wrong_class=relabel (drop, off) in images whose kind is known by
kind_field=FIELD and kind_classes=VALUE:CLASS,VALUE:CLASS|CLASS or by one_class_per_image=yes. Every rule accepts off;
the word none switches off all rules that are not named after it. docs/data.md explains them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="IN.json", help="COCO file, .json or .json.gz")
    parser.add_argument("target", type=Path, metavar="OUT.json", help="the repaired file")
    parser.add_argument("--rules", nargs="+", default=[], metavar="RULE=VALUE", help=RULES_HELP)
    parser.add_argument(
        "--changes", type=Path, metavar="CSV", help="list of changes (default: beside OUT.json, OUT_repairs.csv)"
    )
    parser.add_argument(
        "--pictures", type=Path, metavar="PNG", help="draw the annotations that changed most, before and after"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out annotations that no rule can repair")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def run(arguments: argparse.Namespace) -> None:
    """Repair the file and print a table of the changes."""
    from detseg.curation.repair.coco_file import default_changes_csv, repair_coco
    from detseg.curation.repair.rules import RepairRules, changes_table
    from detseg.errors import count_problems, list_problems
    from detseg.files.atomic import check_free

    rules = RepairRules.parse(arguments.rules)
    if arguments.pictures:
        check_free(arguments.pictures, overwrite=arguments.overwrite)
    skipped: list[str] | None = [] if arguments.skip_bad else None
    csv = arguments.changes or default_changes_csv(arguments.target)
    changes = repair_coco(
        arguments.source, arguments.target, rules, changes_csv=csv, skipped=skipped, overwrite=arguments.overwrite
    )
    if skipped:
        print(f"{count_problems(skipped)}; left out:\n{list_problems(skipped)}")
    print(f"{changes_table(changes)}\n\nwritten: {arguments.target}, and {csv} with every change")
    if arguments.pictures and changes:
        from detseg.report.contact_sheets import draw_repairs

        drawn = draw_repairs(arguments.source, arguments.target, changes, arguments.pictures)
        print(f"{arguments.pictures} shows the {drawn} annotations that changed most")
    words = ["--data", arguments.target, "--output", beside(arguments.target, "_inspection")]
    print_next(command_line("inspect_data", *words))
