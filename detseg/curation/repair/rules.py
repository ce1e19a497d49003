"""The rules of repair: their switches and defaults."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detseg.errors import DataError
from detseg.files.atomic import check_free, make_folder, written_whole

_WORDS = {
    "holes": ("free", "all", "off"),
    "fragments": ("split", "keep", "largest", "off"),
    "wrong_class": ("relabel", "drop", "off"),
}


@dataclass(frozen=True)
class RepairRules:
    """What is repaired; the defaults are meant for microscopy (docs/data.md says why).

    holes: `free` fills the holes in which no other object lies, `all` fills all, `off` none.
    crumbs: pixels of the largest crumb that is smoothed away; 0: none is. See `crumbs.crumbs_of`.
    fragments: further pieces of a mask, but for specks, stay (`keep`: a cell that another one crosses), become objects
        of their own (`split`) or go (`largest`); `off` leaves specks, too.
    far: a piece further away than this many times the longer side of the largest piece's box becomes an object of its
        own, whatever `fragments` says, but `off`: two objects have the same number. 0: off.
    speck_area, speck_fraction: a near piece of fewer pixels, or of a smaller part of the largest piece, is a speck and
        goes.
    min_area: objects of fewer pixels go.
    duplicates: IoU from which on two masks are one object; the larger stays. 0: off.
    nested: part of a mask that lies in a larger one of its class from which on it goes; where several cover half of the
        larger one or more, that goes instead. 0: off.
    kind_field: image-level field of the kind. Where its value is a class, or `kind_classes` names the classes of it,
        objects of other classes are wrong. Empty: images have no kind.
    kind_classes: `VALUE:CLASS|CLASS,VALUE:CLASS`, the classes of the values of `kind_field`.
    one_class_per_image: objects of another class than 80 % or more of the image's are wrong.
    wrong_class: what becomes of them: the one class of the kind (`relabel`; where it has several they go), or they go
        (`drop`).
    """

    holes: str = "free"
    crumbs: int = 8
    fragments: str = "keep"
    far: float = 1.0
    speck_area: int = 10
    speck_fraction: float = 0.1
    min_area: int = 10
    duplicates: float = 0.8
    nested: float = 0.95
    kind_field: str = ""
    kind_classes: str = ""
    one_class_per_image: bool = False
    wrong_class: str = "relabel"
    classes_of_kind: dict[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise DataError(f"repair rule {name} is {getattr(self, name)!r}; expected one of {', '.join(words)}")
        for name in ("crumbs", "speck_area", "min_area"):
            if getattr(self, name) < 0:
                raise DataError(f"repair rule {name} is {getattr(self, name)}; expected a number of pixels, 0 or more")
        if not 0 <= self.far < math.inf:
            raise DataError(f"repair rule far is {self.far}; expected a factor, 0 or more")
        for name in ("speck_fraction", "duplicates", "nested"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"repair rule {name} is {getattr(self, name)}; expected a fraction, 0 to 1")
        object.__setattr__(self, "classes_of_kind", _parse_kinds(self.kind_classes))

    @classmethod
    def parse(cls, words: Sequence[str], defaults: RepairRules | None = None) -> RepairRules:
        """Read words `rule=value`; rules that are not named keep their defaults.

        The word `none` switches all rules off first: `none holes=all` fills holes and does nothing else.
        Raises DataError for an unknown rule, naming the nearest, and for a value that it cannot have.
        """
        start = defaults or cls()
        values: dict[str, Any] = {}
        for word in words:
            if word == "none":
                start, values = NOTHING, {}
                continue
            name, equals, text = word.partition("=")
            if not equals or name not in RULE_NAMES:
                near = difflib.get_close_matches(name, RULE_NAMES, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise DataError(f"{word!r} is no repair rule: expected one of {', '.join(RULE_NAMES)} and =VALUE{hint}")
            values[name] = _read_value(name, text, getattr(start, name))
        return dataclasses.replace(start, **values)

    def to_dict(self) -> dict[str, Any]:
        """Return rule -> value."""
        return {name: getattr(self, name) for name in RULE_NAMES}


RULE_NAMES = tuple(f.name for f in dataclasses.fields(RepairRules) if f.init)


def _read_value(name: str, text: str, default: Any) -> Any:
    if text == "off" and name not in _WORDS and not isinstance(default, (str, bool)):
        return type(default)(0)
    if isinstance(default, bool):
        if text not in ("yes", "no"):
            raise DataError(f"repair rule {name} is {text!r}; expected yes or no")
        return text == "yes"
    if isinstance(default, str):
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (isinstance(default, int) and value != int(value)):
        kind = "whole number" if isinstance(default, int) else "number"
        raise DataError(f"repair rule {name} is {text!r}; expected a {kind}, or off")
    return type(default)(value)


def _parse_kinds(text: str) -> dict[str, tuple[str, ...]]:
    kinds: dict[str, tuple[str, ...]] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        value, colon, classes = entry.partition(":")
        names = tuple(filter(None, (name.strip() for name in classes.split("|"))))
        if not colon or not value.strip() or not names:
            raise DataError(f"repair rule kind_classes: {entry!r} is none of VALUE:CLASS or VALUE:CLASS|CLASS")
        kinds[value.strip()] = names
    return kinds


# All rules off.
NOTHING = RepairRules(
    holes="off",
    crumbs=0,
    fragments="off",
    far=0.0,
    speck_area=0,
    speck_fraction=0.0,
    min_area=0,
    duplicates=0.0,
    nested=0.0,
    wrong_class="off",
)


# What repair changed: one record an annotation and rule, as a CSV and as a table.

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
