"""The folds of a cross-validation: which images are for training, and which for validation (DATASETS.FOLD).

The fold of an image is its field `fold` in the COCO file, or is in an index file: a CSV with the columns `fold` and
`file_name` (or `image_id`), others are ignored; or a YAML with a list of file names for every fold, -1 for images
without a fold:

    0: [a.png, plate1/b.png]
    1: [c.png]
    -1: [held_out.png]
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detseg.coco.catalog import datasets_folder
from detseg.coco.dataset import CocoDataset, ImageRecord
from detseg.coco.pairing import ImageIndex, is_same_file
from detseg.config.node import Config
from detseg.config.options import Options, Problems, key, part
from detseg.errors import ConfigError, DataError, count_problems, list_problems
from detseg.files.atomic import make_folder, written_whole
from detseg.files.names import to_cell
from detseg.files.plain_yaml import read_yaml
from detseg.files.table import read_table

FOLD, FILE_NAME, IMAGE_ID = "fold", "file_name", "image_id"
# In an index: images without a fold, including those of a hold-out.
NO_FOLD = -1


def folds_of(images: Sequence[ImageRecord], index: Path | None = None) -> np.ndarray:
    """Return the fold (N,) int64 of every image, from 0; `NO_FOLD` for an image of the index without one.

    index: a CSV or YAML; None: the field `fold` of the images.

    Raises:
        DataError: an image has no fold or not a number, folds are missing, or the index cannot be read.
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
        raise DataError(f"{where}: {count_problems(problems)}; `detseg split` makes folds:\n{list_problems(problems)}")
    present = set(folds[folds >= 0].tolist())
    if len(present) < 2 or present != set(range(len(present))):
        found = ", ".join(map(str, sorted(present))) or "none"
        raise DataError(f"{where}: found the folds {found}; expected 0, 1, ... without gaps")
    return folds


def read_index(path: Path) -> dict[str, int]:
    """Read an index: file name or image id (as string) -> fold. Raises DataError if it is not one."""
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
        raise DataError(f"{path}: {count_problems(problems)}:\n{list_problems(problems)}")
    return index


def _read_yaml(path: Path) -> dict[str, int]:
    content = read_yaml(path)
    expected = "expected a list of file names for every fold: `0: [a.png, b.png]`"
    if not isinstance(content, dict):
        raise DataError(f"{path}: is not an index of folds; {expected}")
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
    """Write an index of images: rows with file_name, fold (None: no fold) and additional columns for a CSV.

    The suffix determines the format; an existing file is replaced.
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
    """Return the name of a fold in files and tables."""
    return f"{FOLD}{fold}"


# Placeholder in names of DATASETS.PSEUDO, and in MODEL.WEIGHTS, for the fold that is left out.
FOLD_PLACE = "{fold}"


def weights_name(cfg: Config) -> str:
    """Return MODEL.WEIGHTS for the fold that is trained."""
    return cfg.MODEL.WEIGHTS.replace(FOLD_PLACE, str(cfg.DATASETS.FOLD))


def pseudo_names(cfg: Config) -> list[str]:
    """Return the names of DATASETS.PSEUDO for the fold that is trained."""
    return [name.replace(FOLD_PLACE, str(cfg.DATASETS.FOLD)) for name in cfg.DATASETS.PSEUDO]


def empty_names(names: Sequence[str]) -> str | None:
    legal = all(name.strip() for name in names)
    return None if legal else "expected names from the catalog or paths of COCO files, got an empty one"


def _different(names: Sequence[str]) -> str | None:
    return None if all(names) and len(set(names)) == len(names) else "expected names that differ"


@dataclass(frozen=True)
class FoldedSets:
    """The images of a cross-validation.

    train: the training data sets; folds_of_train: the fold (N,) int64 of each of their images. validation: all images
    with a fold, as one set with distinct image ids; folds: (N,) int64 of these. has_own_truth: whether `validation` has
    other annotations than the training. extra: data sets for training in every fold, never for validation.
    """

    train: list[CocoDataset]
    folds_of_train: list[np.ndarray]
    validation: CocoDataset
    folds: np.ndarray
    has_own_truth: bool = False
    extra: list[CocoDataset] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The number of folds."""
        return int(self.folds.max()) + 1

    def training_part(self, fold: int) -> list[CocoDataset]:
        """Return the images of the other folds of every data set, without those that have no fold, such as a
        hold-out's. The sets of `extra` come last.
        """
        parts = zip(self.train, self.folds_of_train, strict=True)
        return [one.select(np.flatnonzero((folds >= 0) & (folds != fold))) for one, folds in parts] + self.extra

    def validation_part(self, fold: int) -> CocoDataset:
        """Return the images of a fold. Raises ConfigError if there is no such fold."""
        if fold >= self.count:
            raise ConfigError(f"DATASETS.FOLD is {fold}, but there are the folds 0 to {self.count - 1}")
        return self.validation.select(np.flatnonzero(self.folds == fold))

    def images_hash(self) -> str:
        """Return 16 hexadecimal digits that identify images with their folds."""
        pairs = zip(self.validation.images, self.folds.tolist(), strict=True)
        lines = sorted(f"{image.file_name}\t{fold}" for image, fold in pairs)
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def annotations_hash(self) -> str:
        """Return 16 hexadecimal digits that identify all annotations of this cross-validation."""
        others = [*(self.train if self.has_own_truth else []), *self.extra]
        hashes = [dataset.annotations_hash() for dataset in (self.validation, *others)]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Folds(Options):
    """fold: the one left out for validation; -1 for none. index: a file; "": the images' field.

    index: relative to the working folder, else to the folder of data sets.
    """

    section = "DATASETS"

    fold: int = key("FOLD", default=-1, at_least=-1)
    index: str = key("FOLDS", default="")

    @property
    def in_use(self) -> bool:
        return self.fold >= 0

    def without_fold(self, dataset: CocoDataset) -> CocoDataset:
        """Return the images of a data set outside the left-out fold; all of a set without folds."""
        folds = self._folds_of(dataset) if self.in_use else None
        return dataset if folds is None else dataset.select(np.flatnonzero((folds >= 0) & (folds != self.fold)))

    def of_sets(
        self, train: Sequence[CocoDataset], test: Sequence[CocoDataset] = (), extra: Sequence[CocoDataset] = ()
    ) -> FoldedSets:
        """Return the training and validation images of every fold.

        Args:
            train: the sets of DATASETS.TRAIN. Their folds may also come from the same images of `test`.
            test: those of DATASETS.TEST. If they have the same images, their annotations are the ground truth for
                validation; if they have none of the images, they are ignored.
            extra: those of DATASETS.EXTRA_TRAIN.

        Raises:
            DataError: a set of `train` has no folds, an image has none, the numbers of folds have gaps or differ, or
                the images of `train` and `test` are only partly the same.
        """
        truth = joined(test) if test else None
        partner = None if truth is None else _partners(train, truth)
        folds_of_truth = None if partner is None else self._folds_of(truth)
        folds_of_train = []
        for number, dataset in enumerate(train):
            folds = self._folds_of(dataset)
            if folds is None and folds_of_truth is not None:
                folds = np.array([NO_FOLD if one is None else folds_of_truth[one] for one in partner[number]])
            if folds is None:
                where = self.index or "the images' field `fold`"
                raise DataError(
                    f"DATASETS.TRAIN: {dataset.name} has no folds ({where}); make a COCO file with folds by `detseg "
                    "split`, or give an index in DATASETS.FOLDS. A data set for training in every fold, never for "
                    "validation, belongs in DATASETS.EXTRA_TRAIN"
                )
            folds_of_train.append(folds)
        counts = {int(folds.max()) + 1 for folds in folds_of_train}
        if len(counts) > 1:
            raise DataError(f"the data sets of DATASETS.TRAIN have {' and '.join(map(str, sorted(counts)))} folds")
        if partner is None:
            validation, folds = joined(train), np.concatenate(folds_of_train)
        else:
            validation = truth
            folds = _folds_of_partners(train, folds_of_train, truth, folds_of_truth, partner)
        chosen = np.flatnonzero(folds >= 0)
        validation = validation.select(chosen)
        return FoldedSets([*train], folds_of_train, validation, folds[chosen], partner is not None, [*extra])

    def _folds_of(self, dataset: CocoDataset) -> np.ndarray | None:
        """Return the fold (N,) of every image of a set; None if no image has one."""
        if not self.index:
            is_folded = any(FOLD in record.metadata for record in dataset.images)
            return folds_of(dataset.images) if is_folded else None
        for path in (Path(self.index), datasets_folder() / self.index):
            if path.is_file():
                known = read_index(path)
                is_folded = any(one.file_name in known or str(one.image_id) in known for one in dataset.images)
                return folds_of(dataset.images, path) if is_folded else None
        raise DataError(f"DATASETS.FOLDS: there is no file {self.index} in {Path.cwd()} or {datasets_folder()}")


def joined(datasets: Sequence[CocoDataset]) -> CocoDataset:
    """Join data sets to one with distinct image ids."""
    whole = CocoDataset.concatenate(datasets)
    images = whole.images
    if len({record.image_id for record in images}) < len(images):
        images = [dataclasses.replace(record, image_id=number) for number, record in enumerate(images, start=1)]
    return dataclasses.replace(whole, images=images)


# Two files of the same images: one for training, one for validation.

_OTHER_TRUTH = (
    "with folds, DATASETS.TEST has other annotations of the images of DATASETS.TRAIN, for validation; if it is a "
    "separate test set, set DATASETS.TEST []"
)


def _partners(train: Sequence[CocoDataset], truth: CocoDataset) -> list[list[int | None]] | None:
    """Return for every image of every set the index of the same image in `truth`, None if that lacks it.

    None for all if they have no image in common. Raises DataError if an image has another size or content there.
    """
    index = ImageIndex(truth.images, truth.name)
    numbers = {id(record): number for number, record in enumerate(truth.images)}
    partner: list[list[int | None]] = []
    problems = []
    for dataset in train:
        found = [index.find(record) for record in dataset.images]
        partner.append([None if one is None else numbers[id(one)] for one in found])
        for record, other in zip(dataset.images, found, strict=True):
            if other is not None and not is_same_file(record, other):
                problems.append(f"{record.path} ({dataset.name}) and {other.path} ({truth.name})")
    if problems:
        raise DataError(f"images of one name are different files:\n{list_problems(problems)}\n{_OTHER_TRUTH}")
    return partner if any(one is not None for numbers in partner for one in numbers) else None


def _folds_of_partners(
    train: Sequence[CocoDataset],
    folds_of_train: Sequence[np.ndarray],
    truth: CocoDataset,
    folds_of_truth: np.ndarray | None,
    partner: Sequence[Sequence[int | None]],
) -> np.ndarray:
    """Return the fold (N,) of every image of `truth`: that of the same image of `train`, NO_FOLD for a hold-out's.

    Raises DataError if images are missing on one side, occur twice, or have another fold there.
    """
    folds = np.full(len(truth), NO_FOLD, dtype=np.int64)
    is_trained = np.zeros(len(truth), dtype=bool)
    problems = []
    for dataset, of_images, numbers in zip(train, folds_of_train, partner, strict=True):
        for record, fold, number in zip(dataset.images, of_images.tolist(), numbers, strict=True):
            if number is None:
                problems += [f"{record.file_name}: is in {dataset.name} and not in {truth.name}"] if fold >= 0 else []
                continue
            if is_trained[number]:
                problems.append(f"{record.file_name}: occurs twice in DATASETS.TRAIN")
            elif folds_of_truth is not None and folds_of_truth[number] != fold:
                other = f"fold {folds_of_truth[number]} of {truth.name}"
                problems.append(f"{record.file_name}: is in fold {fold} of {dataset.name} and in {other}")
            folds[number], is_trained[number] = fold, True
    for number in np.flatnonzero(~is_trained).tolist():
        if folds_of_truth is None or folds_of_truth[number] >= 0:
            problems.append(f"{truth.images[number].file_name}: is in {truth.name} and not in DATASETS.TRAIN")
    if problems:
        raise DataError(f"DATASETS.TRAIN and DATASETS.TEST disagree:\n{list_problems(problems)}\n{_OTHER_TRUTH}")
    return folds


@dataclass(frozen=True)
class DataSetOptions(Options):
    """train, extra_train, test: names from the catalog or paths of COCO files. image_root: folder of the images, "" for
    that of the catalog and the files. classes: their order, empty for that of the first set. folds: of `train`.
    """

    section = "DATASETS"

    train: tuple[str, ...] = key("TRAIN", test=empty_names)
    extra_train: tuple[str, ...] = key("EXTRA_TRAIN", test=empty_names)
    test: tuple[str, ...] = key("TEST", test=empty_names)
    image_root: str = key("IMAGE_ROOT")
    classes: tuple[str, ...] = key("CLASSES", test=_different)
    folds: Folds = part(Folds)

    def check(self, problems: Problems) -> None:
        if problems.training and not self.train:
            problems.add("DATASETS.TRAIN", 'expected the training data: ["catalog name or COCO file"]')
