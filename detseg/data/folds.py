"""The folds of a training: which images it trains with, and which it is validated on (DATASETS.FOLD).

The fold of an image is its field `fold` in the COCO file, or is in an index beside it: a CSV with the columns `fold`
and `file_name` (or `image_id`), further ones are not read; or a YAML with a list of file names for every fold, -1 for
those of none:

    0: [a.png, plate1/b.png]
    1: [c.png]
    -1: [held_out.png]
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detseg.coco.catalog import datasets_folder
from detseg.coco.dataset import CocoDataset, ImageRecord
from detseg.config.options import Options, Problems, key, part
from detseg.config.yaml_file import parse_plain_yaml
from detseg.errors import ConfigError, DataError, list_problems
from detseg.files.atomic import make_folder, written_whole
from detseg.files.names import to_cell
from detseg.files.reading import check_regular
from detseg.files.table import read_table

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
    if index is None:
        given = [record.metadata.get(FOLD) for record in images]
    else:
        fold_by_name = read_index(index)
        given = [fold_by_name.get(record.file_name, fold_by_name.get(str(record.image_id))) for record in images]
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
    check_regular(path)
    try:
        content = parse_plain_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
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
            writer.writerows({name: to_cell(value) for name, value in row.items()} for row in rows)


def fold_name(fold: int) -> str:
    """Return what a fold is called in files and tables."""
    return f"{FOLD}{fold}"


def _named(names: Sequence[str]) -> str | None:
    legal = all(name.strip() for name in names)
    return None if legal else "expected names from the catalog or paths of COCO files, got an empty one"


def _different(names: Sequence[str]) -> str | None:
    return None if all(names) and len(set(names)) == len(names) else "expected names that differ"


@dataclass(frozen=True)
class Folds(Options):
    """fold: which one is left out of the training and validated on; -1 for none. index: a file; "": the images' field.

    index: relative to the working folder, else to the folder of data sets.
    """

    section = "DATASETS"

    fold: int = key("FOLD", default=-1, at_least=-1)
    index: str = key("FOLDS", default="")

    @property
    def in_use(self) -> bool:
        return self.fold >= 0

    def training_part(self, dataset: CocoDataset) -> CocoDataset:
        """Return the images of one data set that may be trained with.

        With a fold those of other folds; images of no fold, such as a hold-out's, are not among them. A set without
        folds is used whole.
        """
        folds = self._folds_of(dataset) if self.in_use else None
        return dataset if folds is None else dataset.select(np.flatnonzero((folds >= 0) & (folds != self.fold)))

    def validation_part(self, datasets: Sequence[CocoDataset]) -> CocoDataset:
        """Return the images of the fold of those data sets of DATASETS.TRAIN that have folds.

        Raises ConfigError where there is no such fold.
        """
        whole, folds = self.folded_set(datasets)
        last = int(folds.max())
        if last < self.fold:
            raise ConfigError(f"DATASETS.FOLD is {self.fold}, but there are the folds 0 to {last}")
        return whole.select(np.flatnonzero(folds == self.fold))

    def folded_set(self, datasets: Sequence[CocoDataset]) -> tuple[CocoDataset, np.ndarray]:
        """Return all images that are in a fold, as one set whose image ids differ, and their folds (N,) int64.

        datasets: those of DATASETS.TRAIN, in order; sets without folds are passed over.

        Raises:
            DataError: none has folds, an image has none, or the numbers of folds have gaps.
        """
        found = [(dataset, folds) for dataset in datasets if (folds := self._folds_of(dataset)) is not None]
        if not found:
            where = self.index or "the images' field `fold`"
            raise DataError(
                f"no data set of DATASETS.TRAIN has folds ({where}); `detseg split` writes a COCO file with them, or "
                "name an index by DATASETS.FOLDS"
            )
        counts = {int(folds.max()) + 1 for _, folds in found}
        if len(counts) > 1:
            raise DataError(f"the data sets of DATASETS.TRAIN have {' and '.join(map(str, sorted(counts)))} folds")
        whole = CocoDataset.concatenate([dataset for dataset, _ in found])
        images = whole.images
        if len({record.image_id for record in images}) < len(images):
            images = [dataclasses.replace(record, image_id=number) for number, record in enumerate(images, start=1)]
            whole = dataclasses.replace(whole, images=images)
        all_folds = np.concatenate([folds for _, folds in found])
        chosen = np.flatnonzero(all_folds >= 0)
        return whole.select(chosen), all_folds[chosen]

    def _folds_of(self, dataset: CocoDataset) -> np.ndarray | None:
        """Return the fold (N,) of every image of a set; None where no image has one."""
        if not self.index:
            is_folded = any(FOLD in record.metadata for record in dataset.images)
            return folds_of(dataset.images) if is_folded else None
        for path in (Path(self.index), datasets_folder() / self.index):
            if path.is_file():
                known = read_index(path)
                is_folded = any(one.file_name in known or str(one.image_id) in known for one in dataset.images)
                return folds_of(dataset.images, path) if is_folded else None
        raise DataError(f"DATASETS.FOLDS: there is no file {self.index} in {Path.cwd()} or {datasets_folder()}")


@dataclass(frozen=True)
class DataSetOptions(Options):
    """train, test: names from the catalog or paths of COCO files. image_root: folder of the images, "" for what the
    catalog and the files say. classes: their order, empty for that of the first set. folds: of `train`.
    """

    section = "DATASETS"

    train: tuple[str, ...] = key("TRAIN", test=_named)
    test: tuple[str, ...] = key("TEST", test=_named)
    image_root: str = key("IMAGE_ROOT")
    classes: tuple[str, ...] = key("CLASSES", test=_different)
    folds: Folds = part(Folds)

    def check(self, problems: Problems) -> None:
        if problems.training and not self.train:
            problems.add("DATASETS.TRAIN", 'expected the training data: ["catalog name or COCO file"]')
