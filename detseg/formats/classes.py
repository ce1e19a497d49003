"""Which class an object is: said by its folder, a table, a field of its image, or a map of names."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from detseg.errors import DataError
from detseg.files.table import read_table
from detseg.formats.source import LabelledImage, Source

# Column of a table that has one row an object: its number in the label image, or what else its source calls it.
OBJECT_COLUMN = "label"
EXPECTED = "folder, column:NAME, csv:FILE:COLUMN or map:FILE"


@dataclass(frozen=True)
class ClassRule:
    """Where the classes of objects come from.

    kind: `folder` (the one in which the image lies), `column` (a field that the source knows of its images), `csv` (a
    column of a table) or None (what the source itself calls its objects). column, table: of these. names: what came
    out -> name of the class, or None to leave the object out; None where nothing is renamed.
    """

    kind: str | None = None
    column: str = ""
    table: Path | None = None
    key: str | None = None
    map_file: Path | None = None
    names: Mapping[str, str | None] | None = None


def parse_class_rule(words: Sequence[str], key: str | None = None) -> ClassRule | None:
    """Read what --classes-from says: one of folder, column:NAME and csv:FILE:COLUMN, and a map:FILE behind it.

    key: the table's column of image names; None for its first. Raises DataError for another word, and where the map
    cannot be read.
    """
    rule = ClassRule(key=key)
    for word in words:
        kind, _, rest = word.partition(":")
        if kind == "map" and rest and rule.names is None:
            rule = dataclasses.replace(rule, map_file=Path(rest), names=read_class_map(Path(rest)))
        elif kind in ("folder", "column", "csv") and rule.kind is None and (kind == "folder") == (not rest):
            table, _, column = rest.rpartition(":") if kind == "csv" else ("", "", rest)
            if kind == "csv" and not (table and column):
                raise DataError(f"--classes-from {word}: expected csv:FILE:COLUMN")
            rule = dataclasses.replace(rule, kind=kind, column=column, table=Path(table) if table else None)
        else:
            raise DataError(f"--classes-from {word}: expected {EXPECTED}; map:FILE may follow one of the others")
    return rule if words else None


def read_class_map(path: Path) -> dict[str, str | None]:
    """Read a map of names to classes: YAML or JSON (name: class), or a CSV whose first two columns are that.

    Nothing, `null` or `~` for a class leaves the objects out. Raises DataError where it is no such map.
    """
    if path.suffix.lower() in (".csv", ".tsv"):
        table = read_table(path, [])
        if len(table.columns) < 2 or table.problems:
            raise DataError(
                f"{path}: expected two columns, name and class" + "".join(f"\n  {p}" for p in table.problems)
            )
        pairs = [(row.values[table.columns[0]], row.values[table.columns[1]] or None) for row in table.rows]
    else:
        pairs = _read_mapping(path)
    names: dict[str, str | None] = {}
    for name, value in pairs:
        if names.setdefault(name, value) != value:
            raise DataError(f"{path}: {name!r} has two classes, {names[name]} and {value}")
    if not any(names.values()):
        raise DataError(f"{path}: names no class; expected lines as `name in the data: class`")
    return names


def _read_mapping(path: Path) -> list[tuple[str, str | None]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such map of classes") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text in UTF-8 ({error})") from None
    try:
        content = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path}: is no YAML or JSON ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: expected lines as `name in the data: class`")
    wrong = [name for name, value in content.items() if value is not None and not isinstance(value, (str, int))]
    if wrong:
        raise DataError(
            f"{path}: the class of {wrong[0]!r} is {content[wrong[0]]!r}; expected a name, or null for none"
        )
    return [(str(name), None if value is None else str(value)) for name, value in content.items()]


def assign_classes(
    images: Mapping[str, LabelledImage], source: Source, rule: ClassRule | None, problems: list[str]
) -> tuple[dict[str, LabelledImage], list[str]]:
    """Return the images with the classes that the rule gives their objects, and the names of the classes.

    Objects whose class is not said are left out and told in `problems`; an image that has no other goes too. Without a
    rule only sources that name the class of every object (and have no `class_names`) get indices here. Classes are in
    the order of the map, else sorted.
    """
    if rule is None and source.class_names:
        return dict(images), list(source.class_names)
    rule = rule or ClassRule()
    said = _Said(source, rule, problems)
    named = {name: said.of(image) for name, image in images.items()}
    if rule.names is None:
        class_names = sorted({word for words in named.values() for word in words if word}, key=natural_order)
    else:
        class_names = list(dict.fromkeys(value for value in rule.names.values() if value))
        problems += _not_in_map(named, rule)
        named = {name: [_renamed(word, rule.names) for word in words] for name, words in named.items()}
    class_names = class_names or list(source.class_names) or ["object"]
    assigned = {}
    for name, image in images.items():
        is_lost = len(image.rles) > 0 and all(word == _UNKNOWN for word in named[name])
        if not is_lost:
            assigned[name] = _with_classes(image, named[name], class_names)
    return assigned, class_names


# The class of an object that nobody says; None is the class of one that a map leaves out.
_UNKNOWN = ""


class _Said:
    """What the source, or the table that the rule names, says of every object, before it is renamed."""

    def __init__(self, source: Source, rule: ClassRule, problems: list[str]) -> None:
        self._source = source
        self._rule = rule
        self._problems = problems
        self._values: dict[tuple[str, str], str] = {}
        self._is_per_object = False
        if rule.table is not None:
            self._read_table(rule.table)
        elif rule.kind == "column" and rule.column not in source.columns:
            own = ", ".join(source.columns) or "none"
            raise DataError(f"--classes-from column:{rule.column}: there is no such field of images; there are {own}")

    def _read_table(self, path: Path) -> None:
        table = read_table(path, [self._rule.column] + ([self._rule.key] if self._rule.key else []))
        key = self._rule.key or table.columns[0]
        self._problems += table.problems
        self._is_per_object = OBJECT_COLUMN in table.columns and OBJECT_COLUMN not in (key, self._rule.column)
        for row in table.rows:
            place = (row.values[key], row.values[OBJECT_COLUMN] if self._is_per_object else "")
            value = row.values[self._rule.column]
            if self._values.setdefault(place, value) != value:
                what = " ".join(place).strip()
                self._problems.append(
                    f"{path}: line {row.line}: {what} has two values, {self._values[place]} and {value}"
                )

    def of(self, image: LabelledImage) -> list[str | None]:
        """Return what each object of an image is called; regions to be ignored are called `None`."""
        own = self._own(image)
        words: list[str | None] = [word if self._rule.kind is None else self._word(image, word) for word in own]
        for number, is_crowd in enumerate(image.crowd):
            if is_crowd:
                words[number] = None
        lost = [label for label, word in zip(own, words, strict=True) if word == _UNKNOWN]
        if lost:
            self._problems.append(f"{self._source.describe(image.name)}: {self._reason(lost)}")
        return words

    def _own(self, image: LabelledImage) -> list[str]:
        if len(image.labels):
            return list(image.labels)
        return [self._source.class_names[index] for index in image.class_of_each]

    def _word(self, image: LabelledImage, label: str) -> str:
        if self._rule.kind == "folder":
            return PurePosixPath(image.file_name).parent.name
        if self._rule.kind == "column":
            return self._source.columns[self._rule.column].get(image.name, _UNKNOWN)
        places = [(alias, label if self._is_per_object else "") for alias in self._source.aliases(image.name)]
        return next((self._values[place] for place in places if self._values.get(place)), _UNKNOWN)

    def _reason(self, lost: Sequence[str]) -> str:
        if self._rule.kind == "folder":
            return "lies in no folder whose name could be its class"
        if self._rule.kind == "csv":
            objects = (
                f"objects {', '.join(lost[:10])}{' ...' if len(lost) > 10 else ''}" if self._is_per_object else "it"
            )
            return f"{self._rule.table} has no {self._rule.column} for {objects}"
        return f"the class of {len(lost)} objects is not said"


def _renamed(word: str | None, names: Mapping[str, str | None]) -> str | None:
    return word if not word else names.get(word, _UNKNOWN)


def _not_in_map(named: Mapping[str, Sequence[str | None]], rule: ClassRule) -> list[str]:
    """Return the problems of names that the map does not have, one a name."""
    names = rule.names or {}
    objects = Counter(word for words in named.values() for word in words if word and word not in names)
    images = Counter(word for words in named.values() for word in set(words) if word and word not in names)
    return [
        f"{rule.map_file}: has no line for {word!r}, as {count} objects in {images[word]} images are called; add it "
        "(null leaves them out)"
        for word, count in sorted(objects.items())
    ]


def _with_classes(image: LabelledImage, words: Sequence[str | None], class_names: Sequence[str]) -> LabelledImage:
    crowd = list(image.crowd) or [False] * len(image.rles)
    index_of = {name: index for index, name in enumerate(class_names)}
    kept = [number for number, word in enumerate(words) if word in index_of or crowd[number]]
    return dataclasses.replace(
        image,
        rles=[image.rles[number] for number in kept],
        classes=[index_of.get(words[number] or _UNKNOWN, 0) for number in kept],
        labels=[image.labels[number] for number in kept] if len(image.labels) else (),
        crowd=[crowd[number] for number in kept],
    )


def natural_order(name: str) -> tuple[Any, ...]:
    """Return a key that sorts names with numbers in them by the numbers: 2 before 10."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)
