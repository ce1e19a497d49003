"""The folds of a training: which images it trains with, and which it is validated on (DATASETS.FOLD)."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from detseg.coco.catalog import datasets_folder
from detseg.coco.dataset import CocoDataset, ImageRecord, make_folder
from detseg.errors import ConfigError, DataError, list_problems
from detseg.files.atomic import written_whole
from detseg.files.table import read_table

if TYPE_CHECKING:
    from detseg.config import Config


# Which image is in which fold: the field `fold` of a COCO file's images, or an index beside it.
#
# An index is a CSV with the columns `fold` and `file_name` (or `image_id`), further ones are not read; or a YAML with a
# list of file names for every fold, -1 for those of none:
#
#     0: [a.png, plate1/b.png]
#     1: [c.png]
#     -1: [held_out.png]

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


def has_folds(cfg: Config) -> bool:
    """Whether DATASETS.FOLD names a fold."""
    return cfg.DATASETS.FOLD >= 0


def fold_name(fold: int) -> str:
    """Return what a fold is called in files and tables."""
    return f"{FOLD}{fold}"


def training_part(cfg: Config, dataset: CocoDataset) -> CocoDataset:
    """Return the images of one data set that may be trained with.

    With DATASETS.FOLD those of other folds; images of no fold, such as a hold-out's, are not among them. A set without
    folds is used whole.
    """
    if not has_folds(cfg) or not _is_folded(cfg, dataset):
        return dataset
    folds = folds_of(dataset.images, _index_path(cfg))
    return dataset.select(np.flatnonzero((folds >= 0) & (folds != cfg.DATASETS.FOLD)))


def validation_part(cfg: Config, datasets: Sequence[CocoDataset]) -> CocoDataset:
    """Return the images of the fold DATASETS.FOLD of those data sets of DATASETS.TRAIN that have folds.

    Raises ConfigError where there is no such fold.
    """
    whole, folds = folded_set(cfg, datasets)
    last = int(folds.max())
    if last < cfg.DATASETS.FOLD:
        raise ConfigError(f"DATASETS.FOLD is {cfg.DATASETS.FOLD}, but there are the folds 0 to {last}")
    return whole.select(np.flatnonzero(folds == cfg.DATASETS.FOLD))


def folded_set(cfg: Config, datasets: Sequence[CocoDataset]) -> tuple[CocoDataset, np.ndarray]:
    """Return all images that are in a fold, as one set whose image ids differ, and their folds (N,) int64.

    datasets: those of DATASETS.TRAIN, in order; sets without folds are passed over.

    Raises:
        DataError: none has folds, an image has none, or the numbers of folds have gaps.
    """
    folded = [dataset for dataset in datasets if _is_folded(cfg, dataset)]
    if not folded:
        where = cfg.DATASETS.FOLDS or "the images' field `fold`"
        raise DataError(
            f"no data set of DATASETS.TRAIN has folds ({where}); `detseg split` writes a COCO file with them, or name "
            "an index by DATASETS.FOLDS"
        )
    whole = _with_ids_that_differ(CocoDataset.concatenate(folded))
    folds = folds_of(whole.images, _index_path(cfg)) if len(folded) == 1 else _folds_of_several(cfg, folded)
    chosen = np.flatnonzero(folds >= 0)
    return whole.select(chosen), folds[chosen]


def _folds_of_several(cfg: Config, datasets: Sequence[CocoDataset]) -> np.ndarray:
    """Return the folds of data sets whose ids may not differ, one behind the other; all have the same folds."""
    folds = [folds_of(dataset.images, _index_path(cfg)) for dataset in datasets]
    counts = {int(own.max()) + 1 for own in folds}
    if len(counts) > 1:
        raise DataError(f"the data sets of DATASETS.TRAIN have {' and '.join(map(str, sorted(counts)))} folds")
    return np.concatenate(folds)


def _is_folded(cfg: Config, dataset: CocoDataset) -> bool:
    """Whether an image of the set has a fold."""
    if not cfg.DATASETS.FOLDS:
        return any(FOLD in record.metadata for record in dataset.images)
    index = read_index(_index_path(cfg))
    return any(record.file_name in index or str(record.image_id) in index for record in dataset.images)


def _index_path(cfg: Config) -> Path | None:
    """Return the index DATASETS.FOLDS, relative to the working folder, else to the folder of data sets."""
    if not cfg.DATASETS.FOLDS:
        return None
    for candidate in (Path(cfg.DATASETS.FOLDS), datasets_folder() / cfg.DATASETS.FOLDS):
        if candidate.is_file():
            return candidate
    raise DataError(f"DATASETS.FOLDS: there is no file {cfg.DATASETS.FOLDS} in {Path.cwd()} or {datasets_folder()}")


def _with_ids_that_differ(dataset: CocoDataset) -> CocoDataset:
    """Return the data set as it is, or with its images numbered from 1 on where ids occur twice."""
    if len({record.image_id for record in dataset.images}) == len(dataset):
        return dataset
    images = [dataclasses.replace(record, image_id=number) for number, record in enumerate(dataset.images, start=1)]
    return CocoDataset(images, dataset.categories, dataset.table, dataset.name, dataset.origins)
