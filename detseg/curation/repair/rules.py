"""The rules of repair, their switches and defaults; and the list of what was changed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detseg.errors import DataError, did_you_mean
from detseg.files.atomic import make_folder
from detseg.files.table import text_table, write_csv

_WORDS = {
    "holes": ("free", "all", "off"),
    "fragments": ("split", "keep", "largest", "off"),
    "wrong_class": ("relabel", "drop", "off"),
}
# What rules were called before.
_RENAMED = {"crumbs": "spurs"}


@dataclass(frozen=True)
class RepairRules:
    """What is repaired; the defaults are meant for microscopy (docs/data.md says why).

    holes: `free` fills the holes in which no other object is, `all` fills all, `off` none.
    spurs: pixels of the largest spur that is trimmed; 0: none is. See `masks.spurs_of`.
    fragments: further pieces of a mask, but for specks, stay (`keep`: a cell that another one crosses), become objects
        of their own (`split`) or go (`largest`); `off` leaves specks, too.
    far: a piece further away than this many times the longer side of the largest piece's box becomes an object of its
        own, whatever `fragments` says, but `off`: two objects have the same number. 0: off.
    speck_area, speck_fraction: a near piece of fewer pixels, or of a smaller part of the largest piece, is a speck and
        goes.
    min_area: objects of fewer pixels go.
    duplicates: IoU from which on two masks are one object; the larger stays. 0: off.
    nested: part of a mask inside a larger one of its class from which on it goes; where several cover half of the
        larger one or more, that goes instead. 0: off.
    kind_field: image-level field of the kind. Where its value is a class, or `kind_classes` names the classes of it,
        objects of other classes are wrong. Empty: images have no kind.
    kind_classes: `VALUE:CLASS|CLASS,VALUE:CLASS`, the classes of the values of `kind_field`.
    one_class_per_image: objects of another class than 80 % or more of the image's are wrong.
    wrong_class: what becomes of them: the one class of the kind (`relabel`; where it has several they go), or they go
        (`drop`).
    """

    holes: str = "free"
    spurs: int = 8
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
        fraction, pixels = "a fraction, 0 to 1", "a number of pixels, 0 or more"
        for name, expected, is_right in (
            *((name, f"one of {', '.join(words)}", words.__contains__) for name, words in _WORDS.items()),
            *((name, pixels, lambda value: value >= 0) for name in ("spurs", "speck_area", "min_area")),
            ("far", "a factor, 0 or more", lambda value: 0 <= value < math.inf),
            *((name, fraction, lambda v: 0 <= v <= 1) for name in ("speck_fraction", "duplicates", "nested")),
        ):
            if not is_right(getattr(self, name)):
                raise DataError(f"repair rule {name} is {getattr(self, name)!r}; expected {expected}")
        kinds: dict[str, tuple[str, ...]] = {}
        for entry in filter(None, (part.strip() for part in self.kind_classes.split(","))):
            value, _, classes = entry.partition(":")
            names = tuple(filter(None, (name.strip() for name in classes.split("|"))))
            if not value.strip() or not names:
                raise DataError(f"repair rule kind_classes: {entry!r} is none of VALUE:CLASS or VALUE:CLASS|CLASS")
            kinds[value.strip()] = names
        object.__setattr__(self, "classes_of_kind", kinds)

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
                hint = did_you_mean(_RENAMED.get(name, name), RULE_NAMES)
                raise DataError(f"{word!r} is no repair rule: expected one of {', '.join(RULE_NAMES)} and =VALUE{hint}")
            values[name] = _read_value(name, text, getattr(start, name))
        return dataclasses.replace(start, **values)

    def to_dict(self) -> dict[str, Any]:
        """Return rule -> value."""
        return {name: getattr(self, name) for name in RULE_NAMES}

    def allowed_classes(self, kind: Any, class_names: Sequence[str]) -> set[int] | None:
        """Return the class indices that objects of an image of this kind (the value of its kind field) may have.

        None: the kind says nothing. Raises DataError where `kind_classes` names a class that there is not.
        """
        names = self.classes_of_kind.get(str(kind)) if kind is not None else None
        if names is None:
            return {class_names.index(kind)} if kind in class_names else None
        unknown = [name for name in names if name not in class_names]
        if unknown:
            raise DataError(
                f"repair rule kind_classes: {str(kind)!r} has the class {unknown[0]!r}; there are "
                f"{', '.join(class_names)}"
            )
        return {class_names.index(name) for name in names}

    def check_kinds(self, kinds: Iterable[Any]) -> None:
        """Raise DataError where `kind_field` names a field that no image has. kinds: its values, None for none."""
        if self.kind_field and all(kind is None for kind in kinds):
            raise DataError(f"repair rule kind_field: no image has a field {self.kind_field!r}")


RULE_NAMES = tuple(f.name for f in dataclasses.fields(RepairRules) if f.init)
# All rules off: the word, or the empty value of the type.
NOTHING = RepairRules(
    **{f.name: "off" if f.name in _WORDS else type(f.default)() for f in dataclasses.fields(RepairRules) if f.init}
)


def _read_value(name: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text not in ("yes", "no"):
            raise DataError(f"repair rule {name} is {text!r}; expected yes or no")
        return text == "yes"
    if isinstance(default, str):
        return text
    try:
        value = 0.0 if text == "off" else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (isinstance(default, int) and value != int(value)):
        kind = "whole number" if isinstance(default, int) else "number"
        raise DataError(f"repair rule {name} is {text!r}; expected a {kind}, or off")
    return type(default)(value)


def one_class_hint(objects: np.ndarray) -> str | None:
    """Say that images seem to hold one class each, but for a few, or None. objects: (images, classes) int64 counts."""
    has_class = objects[objects.sum(axis=1) > 0] > 0
    mixed = int((has_class.sum(axis=1) > 1).sum())
    classes_of_their_own = np.unique(has_class[has_class.sum(axis=1) == 1].argmax(axis=1))
    if not 0 < mixed <= 0.1 * len(has_class) or len(classes_of_their_own) < 2:
        return None
    return (
        f"{len(has_class) - mixed} of {len(has_class)} images hold objects of one class only, {mixed} of several; "
        "where that cannot be right, the rule one_class_per_image=yes gives stray objects the class of the others"
    )


# Rule -> what it found, in the order of the table.
RULES = {
    "empty": "masks without a pixel",
    "wrong_class": "masks of the wrong class for the image's kind",
    "holes": "masks with holes",
    "spurs": "masks with spurs",
    "specks": "masks with specks beside them",
    "fragments": "masks of several pieces",
    "min_area": "objects that are too small",
    "duplicates": "masks that were there twice",
    "nested": "masks in or around another one",
}


@dataclass(frozen=True)
class Change:
    """What one rule did to one annotation; the fields are the columns of the list of changes.

    image: file name. annotation: its id in the file that was repaired, or its number in the source (from 1 on). action:
    filled, trimmed, split, dropped, merged or relabelled. Areas and pixels are counts; after a split the mask is its
    largest piece. other: the annotation that a dropped one duplicated or was inside, how many pieces a mask was split
    into, or the classes before and after.
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
        """How many pixels were added or removed."""
        return self.pixels_added + self.pixels_removed


def write_changes(path: Path, changes: Iterable[Change]) -> None:
    """Write the CSV; one that is there is replaced. Raises DataError where it cannot be written."""
    make_folder(path.parent)
    columns = [column.name for column in dataclasses.fields(Change)]
    rows = ([getattr(change, column) for column in columns] for change in changes)
    write_csv(path, [columns, *rows], "the list of changes")


def changes_table(changes: Sequence[Change]) -> str:
    """Return a table of the rules: annotations and images that each changed, and pixels."""
    rows = [("rule", "annotations", "images", "pixels added", "removed", "what was found")]
    for rule, found in RULES.items():
        own = [change for change in changes if change.rule == rule]
        added, removed = sum(c.pixels_added for c in own), sum(c.pixels_removed for c in own)
        if own:
            numbers = (len(own), len({change.image for change in own}), added, removed)
            rows.append((rule, *map(str, numbers), found))
    return text_table(rows, left=(0, 5)) if len(rows) > 1 else "nothing to repair was found"
