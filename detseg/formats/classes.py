"""The class of an object: from its folder, a table, an image field, or a map of names."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from detseg.config.yaml_file import parse_plain_yaml
from detseg.errors import DataError
from detseg.files.reading import check_regular
from detseg.files.table import read_table
from detseg.formats.image_fields import ImageColumn
from detseg.formats.reader import FoundObjects, LabelledImage, Reader

# Column of a table with one row per object: its number in the label image, or its name in the data.
OBJECT_COLUMN = "label"


@dataclass(frozen=True)
class ClassRule:
    """Where the classes of objects come from.

    kind: `folder` (of the image), `column` (an image field of the data), `csv` (a column of a table) or None (the
    objects' own labels). column, table: for these. names: label found -> class name, or None to leave the object out;
    None if nothing is renamed.
    """

    kind: str | None = None
    column: str = ""
    table: Path | None = None
    key: str | None = None
    map_file: Path | None = None
    names: Mapping[str, str | None] | None = None


def parse_class_rule(words: Sequence[str], key: str | None = None) -> ClassRule | None:
    """Parse --classes-from: one of folder, column:NAME and csv:FILE:COLUMN, optionally followed by map:FILE.

    key: the table's column of image names; None for its first. Raises DataError for other words, and if the map cannot
    be read.
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
            raise DataError(
                f"--classes-from {word}: expected folder, column:NAME, csv:FILE:COLUMN or map:FILE; map:FILE may "
                "follow one of the others"
            )
    return rule if words else None


def read_class_map(path: Path) -> dict[str, str | None]:
    """Read a map from names to classes: YAML or JSON (name: class), or a CSV with these as its first two columns.

    An empty class, `null` or `~`, leaves the objects out. Raises DataError if it is not such a map.
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
        raise DataError(f"{path}: has no classes; expected lines like `name in the data: class`")
    return names


def _read_mapping(path: Path) -> list[tuple[str, str | None]]:
    check_regular(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such map of classes") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not UTF-8 text ({error})") from None
    try:
        content = json.loads(text) if path.suffix.lower() == ".json" else parse_plain_yaml(text, str(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not YAML or JSON ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: expected lines like `name in the data: class`")
    wrong = [name for name, value in content.items() if value is not None and not isinstance(value, (str, int))]
    if wrong:
        raise DataError(
            f"{path}: the class of {wrong[0]!r} is {content[wrong[0]]!r}; expected a name, or null for none"
        )
    return [(str(name), None if value is None else str(value)) for name, value in content.items()]


def assign_classes(
    images: Mapping[str, LabelledImage], reader: Reader, rule: ClassRule | None, problems: list[str]
) -> tuple[dict[str, LabelledImage], list[str]]:
    """Return the images with object classes assigned by the rule, and the class names.

    Objects without a class are left out and reported in `problems`, and so are images with no others. Without a rule
    only readers that name the class of every object (and have no `class_names`) get indices here. Classes are in the
    order of the map, else sorted.
    """
    if rule is None and reader.class_names:
        return dict(images), list(reader.class_names)
    rule = rule or ClassRule()
    said = _words_of_objects(images, reader, rule, problems)
    if rule.names is None:
        class_names = sorted({word for words in said.values() for word in words if word}, key=natural_order)
    else:
        class_names = list(dict.fromkeys(value for value in rule.names.values() if value))
        unknown = [(word, name) for name, words in said.items() for word in words if word and word not in rule.names]
        for word, count in sorted(Counter(word for word, _ in unknown).items()):
            num_images = len({name for other, name in unknown if other == word})
            problems.append(
                f"{rule.map_file}: has no line for {word!r}, the label of {count} objects in {num_images} images; add "
                "one (null leaves them out)"
            )
        said = {name: [rule.names.get(w, _UNKNOWN) if w else w for w in words] for name, words in said.items()}
    class_names = class_names or list(reader.class_names) or ["object"]
    assigned = {}
    for name, image in images.items():
        is_lost = len(said[name]) > 0 and all(word == _UNKNOWN for word in said[name])
        if not is_lost:
            assigned[name] = _with_classes(image, said[name], class_names)
    return assigned, class_names


# Class of an object without one. None is for regions to be ignored, and for what a map leaves out.
_UNKNOWN = ""


def _words_of_objects(
    images: Mapping[str, LabelledImage], reader: Reader, rule: ClassRule, problems: list[str]
) -> dict[str, list[str | None]]:
    """Return the label of every object of every image, from the reader or from the table of the rule."""
    column = None
    if rule.table is not None:
        column = ImageColumn(rule.table, rule.key, rule.column, problems, object_column=OBJECT_COLUMN)
    elif rule.kind == "column" and rule.column not in reader.columns:
        own = ", ".join(reader.columns) or "none"
        raise DataError(f"--classes-from column:{rule.column}: there is no such image field; there are {own}")
    said: dict[str, list[str | None]] = {}
    for name, image in images.items():
        objects = image.objects
        labels = list(objects.labels) or [reader.class_names[index] for index in objects.classes]
        words: list[str | None] = list(labels)
        if column is not None:
            aliases = reader.aliases(name)
            words = [column.find(aliases, label) for label in labels]
        elif rule.kind is not None:
            folder = PurePosixPath(image.file_name).parent.name
            words = [folder if rule.kind == "folder" else reader.columns[rule.column].get(name, _UNKNOWN)] * len(labels)
        said[name] = [None if crowd else word for word, crowd in zip(words, objects.crowd, strict=True)]
        lost = [label for label, word in zip(labels, said[name], strict=True) if word == _UNKNOWN]
        if not lost:
            continue
        reason = f"{len(lost)} objects have no class"
        if rule.kind == "folder":
            reason = "is not in a folder that could be its class"
        elif column is not None:
            some = f"objects {', '.join(lost[:10])}{' ...' if len(lost) > 10 else ''}" if column.per_object else "it"
            reason = f"{rule.table} has no {rule.column} for {some}"
        problems.append(f"{reader.describe(name)}: {reason}")
    return said


def _with_classes(image: LabelledImage, words: Sequence[str | None], class_names: Sequence[str]) -> LabelledImage:
    found = image.objects
    index_of = {name: index for index, name in enumerate(class_names)}
    kept = [number for number, word in enumerate(words) if word in index_of or found.crowd[number]]
    objects = FoundObjects(
        [found.rles[number] for number in kept],
        [index_of.get(words[number] or _UNKNOWN, 0) for number in kept],
        [found.labels[number] for number in kept] if len(found.labels) else (),
        [found.crowd[number] for number in kept],
    )
    return dataclasses.replace(image, objects=objects)


def natural_order(name: str) -> tuple[Any, ...]:
    """Return a sort key in which numbers in names are compared as numbers: 2 before 10."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)
