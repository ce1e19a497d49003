"""The rules of repair with their options and defaults, and the list of changes."""

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
# Former names of rules.
_RENAMED = {"crumbs": "spurs"}


@dataclass(frozen=True)
class RepairRules:
    """What is repaired; the defaults are meant for microscopy (docs/data.md gives the reasons).

    holes: `free` fills holes without other objects in them, `all` fills all, `off` none.
    spurs: maximum size in pixels of spurs that are trimmed; 0: off. See `masks.spurs_of`.
    fragments: further pieces of a mask, except specks, are kept (`keep`: a cell crossed by another one), become objects
        of their own (`split`) or are removed (`largest`); `off` keeps specks too.
    far: a piece whose distance is more than this many times the longer side of the largest piece's box becomes an
        object of its own, unless `fragments` is `off`: two objects have the same label. 0: off.
    speck_area, speck_fraction: a near piece with fewer pixels, or a smaller fraction of the largest piece, is a speck
        and removed.
    min_area: objects with fewer pixels are removed.
    duplicates: IoU above which two masks are one object; the larger is kept. 0: off.
    nested: fraction of a mask inside a larger one of its class above which it is removed; if several cover at least
        half of the larger one, that is removed instead. 0: off.
    kind_field: image-level field with the kind. If its value is a class, or `kind_classes` gives its classes, objects
        of other classes are wrong. Empty: images have no kind.
    kind_classes: `VALUE:CLASS|CLASS,VALUE:CLASS`, the classes for values of `kind_field`.
    one_class_per_image: objects with another class than 80 % or more of the image's are wrong.
    wrong_class: wrong objects get the single class of the kind (`relabel`; they are removed if it has several), or are
        removed (`drop`).
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
                raise DataError(
                    f"repair rule kind_classes: {entry!r} is not of the form VALUE:CLASS or VALUE:CLASS|CLASS"
                )
            kinds[value.strip()] = names
        object.__setattr__(self, "classes_of_kind", kinds)

    @classmethod
    def parse(cls, words: Sequence[str], defaults: RepairRules | None = None) -> RepairRules:
        """Parse arguments `rule=value`; rules that are not given keep their defaults.

        The word `none` first switches all rules off: `none holes=all` fills holes and does nothing else. Raises
        DataError for an unknown rule, with the most similar one, and for an invalid value.
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
                raise DataError(
                    f"{word!r} is not a repair rule: expected RULE=VALUE with one of {', '.join(RULE_NAMES)}{hint}"
                )
            values[name] = _read_value(name, text, getattr(start, name))
        return dataclasses.replace(start, **values)

    def to_dict(self) -> dict[str, Any]:
        """Return rule -> value."""
        return {name: getattr(self, name) for name in RULE_NAMES}

    def allowed_classes(self, kind: Any, class_names: Sequence[str]) -> set[int] | None:
        """Return the class indices allowed in an image of this kind (the value of its kind field).

        None: the kind gives no restriction. Raises DataError if `kind_classes` has an unknown class.
        """
        names = self.classes_of_kind.get(str(kind)) if kind is not None else None
        if names is None:
            return {class_names.index(kind)} if kind in class_names else None
        unknown = [name for name in names if name not in class_names]
        if unknown:
            raise DataError(
                f"repair rule kind_classes: {str(kind)!r} has the class {unknown[0]!r}; expected one of "
                f"{', '.join(class_names)}"
            )
        return {class_names.index(name) for name in names}

    def check_kinds(self, kinds: Iterable[Any]) -> None:
        """Raise DataError if no image has `kind_field`. kinds: its values, None for images without it."""
        if self.kind_field and all(kind is None for kind in kinds):
            raise DataError(f"repair rule kind_field: no image has a field {self.kind_field!r}")


RULE_NAMES = tuple(f.name for f in dataclasses.fields(RepairRules) if f.init)
# All rules off: `off`, or the empty value of the type.
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
    """Return a hint if nearly all images have one class each, or None. objects: (images, classes) int64 counts."""
    has_class = objects[objects.sum(axis=1) > 0] > 0
    mixed = int((has_class.sum(axis=1) > 1).sum())
    classes_of_their_own = np.unique(has_class[has_class.sum(axis=1) == 1].argmax(axis=1))
    if not 0 < mixed <= 0.1 * len(has_class) or len(classes_of_their_own) < 2:
        return None
    return (
        f"{len(has_class) - mixed} of {len(has_class)} images have objects of one class only, {mixed} of several; if "
        "that is an error, the rule one_class_per_image=yes gives stray objects the class of the others"
    )


# Rule -> its finding, in the order of the table.
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
    """Change of one annotation by one rule; the fields are the columns of the list of changes.

    image: file name. annotation: its id in the input file, or its 1-based number in the source. action: filled,
    trimmed, split, dropped, merged or relabelled. Areas and pixels are counts; after a split the mask is its largest
    piece. other: the annotation that a dropped one duplicated or was inside, the number of pieces after a split, or the
    classes before and after.
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
        """The number of pixels added or removed."""
        return self.pixels_added + self.pixels_removed


def write_changes(path: Path, changes: Iterable[Change]) -> None:
    """Write the CSV; an existing one is replaced. Raises DataError if it cannot be written."""
    make_folder(path.parent)
    columns = [column.name for column in dataclasses.fields(Change)]
    rows = ([getattr(change, column) for column in columns] for change in changes)
    write_csv(path, [columns, *rows], "the list of changes")


def changes_table(changes: Sequence[Change]) -> str:
    """Return a table of the rules with the number of annotations and images changed, and pixels."""
    rows = [("rule", "annotations", "images", "pixels added", "removed", "what was found")]
    for rule, found in RULES.items():
        own = [change for change in changes if change.rule == rule]
        added, removed = sum(c.pixels_added for c in own), sum(c.pixels_removed for c in own)
        if own:
            numbers = (len(own), len({change.image for change in own}), added, removed)
            rows.append((rule, *map(str, numbers), found))
    return text_table(rows, left=(0, 5)) if len(rows) > 1 else "nothing to repair was found"
