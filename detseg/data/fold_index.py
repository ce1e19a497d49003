"""Which image is in which fold: the field `fold` of a COCO file's images, or an index beside it.

An index is a CSV with the columns `fold` and `file_name` (or `image_id`), further ones are not read; or a YAML with a
list of file names for every fold, -1 for those of none:

    0: [a.png, plate1/b.png]
    1: [c.png]
    -1: [held_out.png]
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detseg.data.coco import ImageRecord
from detseg.data.coco_writer import make_folder
from detseg.data.readers.table import read_table
from detseg.errors import DataError, list_problems
from detseg.structures.atomic_write import written_whole

FOLD, FILE_NAME, IMAGE_ID = "fold", "file_name", "image_id"
# In an index: images that belong to no fold, those of the hold-out among them.
NO_FOLD = -1


def folds_of(images: Sequence[ImageRecord], index: Path | None = None) -> np.ndarray:
    """Return the fold (N,) int64 of every image, from 0 on; `NO_FOLD` for an image of the index without one.

    index: a CSV or YAML; None: the field `fold` of the images.

    Raises:
        DataError: an image has no fold or one that is no number, folds are missing, or the index cannot be read.
    """
    where = str(index) if index is not None else "the images' field `fold`"
    given = (
        [record.metadata.get(FOLD) for record in images] if index is None else _from_index(images, read_index(index))
    )
    problems = []
    folds = np.full(len(images), NO_FOLD, dtype=np.int64)
    for number, (record, value) in enumerate(zip(images, given, strict=True)):
        if value is None:
            problems.append(f"image {record.file_name} has no fold")
        elif isinstance(value, bool) or not isinstance(value, int) or value < NO_FOLD:
            problems.append(f"image {record.file_name}: its fold is {value!r}; expected a number 0, 1, ...")
        else:
            folds[number] = value
    if problems:
        raise DataError(
            f"{where}: {len(problems)} problem{'s' if len(problems) > 1 else ''}; `detseg split` writes folds:\n"
            f"{list_problems(problems)}"
        )
    present = set(folds[folds >= 0].tolist())
    if len(present) < 2 or present != set(range(len(present))):
        found = ", ".join(map(str, sorted(present))) or "none"
        raise DataError(f"{where}: found the folds {found}; expected 0, 1, ... without gaps")
    return folds


def read_index(path: Path) -> dict[str, int]:
    """Read an index: file name or image id (as text) -> fold. Raises DataError where it is none."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return _read_yaml(path)
    table = read_table(path, [FOLD])
    key = next((column for column in (FILE_NAME, IMAGE_ID) if column in table.columns), None)
    if key is None:
        raise DataError(f"{path}: has no column {FILE_NAME} or {IMAGE_ID}; there are {', '.join(table.columns)}")
    problems = list(table.problems)
    index: dict[str, int] = {}
    for row in table.rows:
        name, text = row.values[key], row.values[FOLD].strip()
        if text and not text.isdecimal() and text != str(NO_FOLD):
            problems.append(f"{path}: line {row.line}: the fold of {name} is {text!r}; expected a number, or nothing")
        elif name in index:
            problems.append(f"{path}: line {row.line}: {name} occurs twice")
        else:
            index[name] = int(text) if text else NO_FOLD
    if problems:
        raise DataError(f"{path}: {len(problems)} problems:\n{list_problems(problems)}")
    return index


def _read_yaml(path: Path) -> dict[str, int]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read as YAML: {error}") from None
    expected = "expected a list of file names for every fold: `0: [a.png, b.png]`"
    if not isinstance(content, dict):
        raise DataError(f"{path}: is no index of folds; {expected}")
    index: dict[str, int] = {}
    for fold, names in content.items():
        if isinstance(fold, bool) or not isinstance(fold, int) or fold < NO_FOLD or not isinstance(names, list):
            raise DataError(f"{path}: at {fold!r}: {expected}")
        for name in map(str, names):
            if name in index:
                raise DataError(f"{path}: {name} occurs twice, in the folds {index[name]} and {fold}")
            index[name] = fold
    return index


def _from_index(images: Sequence[ImageRecord], index: Mapping[str, int]) -> list[int | None]:
    return [index.get(record.file_name, index.get(str(record.image_id))) for record in images]


def write_index(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write an index of images: rows with file_name, fold (None: of no fold) and what else a CSV shall say of them.

    The suffix says which kind; what is there is replaced.
    """
    make_folder(path.parent)
    with written_whole(path, "the index of folds") as temporary:
        if path.suffix.lower() in (".yaml", ".yml"):
            folds: dict[int, list[str]] = {}
            for row in rows:
                fold = NO_FOLD if row[FOLD] is None else int(row[FOLD])
                folds.setdefault(fold, []).append(row[FILE_NAME])
            temporary.write_text(yaml.safe_dump(folds, allow_unicode=True), encoding="utf-8")
            return
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
