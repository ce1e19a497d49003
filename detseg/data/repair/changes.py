"""What repair changed: one record an annotation and rule, as a CSV and as a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from detseg.data.coco_writer import make_folder
from detseg.errors import DataError
from detseg.structures.atomic_write import written_whole

# Rule -> what it found, in the order of the table.
RULES = {
    "empty": "masks without a pixel",
    "wrong_class": "masks of the wrong class for the image's kind",
    "holes": "masks with holes",
    "crumbs": "masks with crumbs",
    "specks": "masks with specks beside them",
    "fragments": "masks of several pieces",
    "min_area": "objects that are too small",
    "duplicates": "masks that were there twice",
    "nested": "masks in or around another one",
}
COLUMNS = (
    "image",
    "annotation",
    "rule",
    "action",
    "pixels_added",
    "pixels_removed",
    "area_before",
    "area_after",
    "other",
)


@dataclass(frozen=True)
class Change:
    """What one rule did to one annotation.

    image: file name. annotation: its id in the file that was repaired, or its number in the source (from 1 on). action:
    filled, trimmed, split, dropped, merged or relabelled. Areas and pixels are counts; after a split the mask is its
    largest piece. other: the annotation that a dropped one duplicated or lay in, how many pieces a mask was split into,
    or the classes before and after.
    """

    image: str
    annotation: int | str
    rule: str
    action: str
    pixels_added: int
    pixels_removed: int
    area_before: int
    area_after: int
    other: str = ""

    @property
    def pixels(self) -> int:
        """How many pixels changed their owner."""
        return self.pixels_added + self.pixels_removed


def write_changes(path: Path, changes: Iterable[Change], *, overwrite: bool) -> None:
    """Write the CSV. Raises DataError where it exists, unless `overwrite`, and where it cannot be written."""
    check_free(path, overwrite)
    make_folder(path.parent)
    with (
        written_whole(path, "the list of changes") as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        rows.writerows([getattr(change, column) for column in COLUMNS] for change in changes)


def check_free(path: Path, overwrite: bool) -> None:
    """Raise DataError where a file exists, unless `overwrite`."""
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists already; pass --overwrite to replace it, or name another output")


def changes_table(changes: Sequence[Change]) -> str:
    """Return a table of the rules: annotations and images that each changed, and pixels."""
    rows = [("rule", "annotations", "images", "pixels added", "removed", "what was found")]
    for rule, found in RULES.items():
        own = [change for change in changes if change.rule == rule]
        if own:
            added, removed = sum(c.pixels_added for c in own), sum(c.pixels_removed for c in own)
            numbers = (len(own), len({change.image for change in own}), added, removed)
            rows.append((rule, *map(str, numbers), found))
    if len(rows) == 1:
        return "nothing to repair was found"
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 1 <= column <= 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
