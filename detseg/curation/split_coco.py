"""Splitting a COCO file into folds or parts: alike in classes, objects and kinds, with groups whole."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from detseg.coco.dataset import CocoDataset, make_folder
from detseg.coco.raw import RawCoco
from detseg.curation.leaks import SIMILAR, SimilarPair, join_groups, leaks, similar_images
from detseg.curation.prepare import read_column
from detseg.curation.splits import PART_NAMES, balance_rows, split_groups, table_of
from detseg.data.folds import FILE_NAME, FOLD, IMAGE_ID, write_index
from detseg.errors import DataError, list_problems
from detseg.files.atomic import written_whole

logger = logging.getLogger(__name__)

HOLDOUT = "test"
# How much the features count: images, all objects, the objects of a class, a kind, a range of objects an image.
_WEIGHTS = {"images": 4.0, "objects": 2.0, "class": 1.0, "kind": 1.0, "fullness": 0.5}
INDEX_NAMES = {"csv": "folds.csv", "yaml": "folds.yaml"}


@dataclass(frozen=True)
class SplitOptions:
    """What `detseg split` takes; see its --help.

    folds: K of them, unless `fractions` names the shares of train, val and test. holdout: share of the images that go
    to test.json before the rest is folded. stratify_by, group_by: fields of the images or columns of `table` (key: its
    column of image names); of several, the values together. group_pattern: regular expression; what its first group (or
    all of it) finds in the value of `group_by`, without that in the file name, is the group. similar: correlation from
    which on images are nearly the same, 0: not looked for; group_similar: they go to one part. coco_files: write
    fold0_train.json, fold0_val.json, ... too. index: csv or yaml.
    """

    output: Path
    folds: int = 5
    fractions: tuple[float, ...] | None = None
    holdout: float = 0.0
    stratify_by: tuple[str, ...] = ()
    group_by: tuple[str, ...] = ()
    group_pattern: str | None = None
    table: Path | None = None
    key: str | None = None
    seed: int = 0
    similar: float = SIMILAR
    group_similar: bool = True
    coco_files: bool = False
    index: str = "csv"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.fractions is None and self.folds < 2:
            raise DataError(f"--folds is {self.folds}; expected 2 or more")
        if not 0 <= self.holdout < 1:
            raise DataError(f"--holdout is {self.holdout}; expected a share of the images, 0 to 1")
        if self.fractions is not None:
            if not 2 <= len(self.fractions) <= 3 or min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-6:
                words = " ".join(map(str, self.fractions))
                raise DataError(f"--fractions takes 2 or 3 positive fractions with the sum 1, not {words}")
            if self.holdout or self.coco_files:
                raise DataError("--fractions has no folds: --holdout and --coco-files go with --folds")
        if not 0 <= self.similar <= 1:
            raise DataError(f"--similar is {self.similar}; expected a correlation, 0 to 1")


@dataclass(frozen=True)
class Split:
    """N images in parts. parts: their names in order. part_of: (N,) int64. groups: (N,) int64, whole in one part.

    strata: column -> the value of every image. pairs: images that are nearly the same.
    """

    parts: list[str]
    part_of: np.ndarray
    groups: np.ndarray
    group_names: list[str]
    strata: dict[str, list[str]]
    pairs: list[SimilarPair] = field(default_factory=list)

    def names(self) -> list[str]:
        """Return the part of every image."""
        return [self.parts[part] for part in self.part_of]

    @property
    def leaks(self) -> list[SimilarPair]:
        """The pairs in two parts."""
        return leaks(self.pairs, self.part_of.tolist())


def split_coco(source: Path, options: SplitOptions) -> str:
    """Split a COCO file and write what `options` say; annotations and further fields stay as they are.

    Returns a report: the parts, and what would leak or does.

    Raises:
        DataError: the file is no COCO data set, an image cannot be read or lacks a field, there are too few groups, or
            a file exists, unless `overwrite`.
    """
    coco = RawCoco(source)
    _check_free(options)
    split = find_split(coco.dataset, options)
    written = _write(coco, split, options)
    rows = balance_rows(coco.dataset, split.parts, split.part_of, split.groups, split.strata)
    _write_csv(options.output / "balance.csv", rows)
    report = [table_of(rows), "", *_leak_report(coco.dataset, split, options)]
    return "\n".join([*report, "", "written: " + ", ".join(map(str, [*written, options.output / "balance.csv"]))])


def find_split(dataset: CocoDataset, options: SplitOptions) -> Split:
    """Decide on the part of every image of a data set."""
    names = [record.file_name for record in dataset.images]
    columns = _Columns(dataset, options)
    strata = {column: columns.values(column) for column in options.stratify_by}
    group_names = columns.groups()
    pairs = similar_images(dataset, options.similar) if options.similar else []
    groups = join_groups(group_names, pairs if options.group_similar else ())
    features, weights = balance_features(dataset, strata)

    def split(chosen: np.ndarray, shares: Sequence[float]) -> np.ndarray:
        chosen_names = [names[index] for index in chosen]
        return split_groups(
            features[chosen], groups[chosen], shares, seed=options.seed, names=chosen_names, weights=weights
        )

    everything = np.arange(len(dataset))
    if options.fractions is not None:
        parts = list(PART_NAMES[len(options.fractions)])
        return Split(parts, split(everything, options.fractions), groups, group_names, strata, pairs)
    parts = [f"{FOLD}{number}" for number in range(options.folds)]
    part_of = np.zeros(len(dataset), dtype=np.int64)
    if options.holdout:
        parts.append(HOLDOUT)
        part_of = np.where(split(everything, (1 - options.holdout, options.holdout)) == 1, options.folds, 0)
    rest = np.flatnonzero(part_of != options.folds)
    part_of[rest] = split(rest, [1 / options.folds] * options.folds)
    return Split(parts, part_of, groups, group_names, strata, pairs)


def balance_features(dataset: CocoDataset, strata: dict[str, list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return what parts shall have alike of N images, (N, F) float64, and how much each column counts, (F,).

    One for the image, its objects, those of every class, its values of `strata`, and to which quarter of the images
    it belongs by the number of objects (or that it has none).
    """
    objects = dataset.objects_per_image()
    total = objects.sum(axis=1)
    columns = [(np.ones(len(dataset)), "images"), (total, "objects")]
    if objects.shape[1] > 1:
        columns += [(objects[:, number], "class") for number in range(objects.shape[1])]
    limits = np.quantile(total[total > 0], [0.25, 0.5, 0.75]) if (total > 0).any() else []
    fullness = np.where(total > 0, np.searchsorted(limits, total), -1)
    columns += [(fullness == value, "fullness") for value in np.unique(fullness)]
    for values in strata.values():
        present = np.array(values)
        columns += [(present == value, "kind") for value in sorted(set(values))]
    features = np.stack([np.asarray(column, dtype=np.float64) for column, _ in columns], axis=1)
    return features, np.array([_WEIGHTS[kind] for _, kind in columns])


class _Columns:
    """The values of the images' fields, or of the columns of a table."""

    def __init__(self, dataset: CocoDataset, options: SplitOptions) -> None:
        self.images = dataset.images
        self.options = options

    def values(self, column: str) -> list[str]:
        """Return the value of every image. Raises DataError where one has none."""
        found = self._of_table(column) if self.options.table else [r.metadata.get(column) for r in self.images]
        missing = [record.file_name for record, value in zip(self.images, found, strict=True) if value in (None, "")]
        if missing:
            where = f"the table {self.options.table}" if self.options.table else "its fields"
            known = sorted({key for record in self.images for key in record.metadata})
            there = (
                "" if self.options.table else f" (there are: {', '.join(known) or 'none'}; --table CSV brings others)"
            )
            raise DataError(
                f"{len(missing)} of {len(self.images)} images have no {column!r} in {where}{there}:\n"
                f"{list_problems(missing, 5)}"
            )
        return [str(value) for value in found]

    def _of_table(self, column: str) -> list[str | None]:
        problems: list[str] = []
        table = read_column(self.options.table, self.options.key, column, problems)
        if problems:
            raise DataError(f"{len(problems)} problems:\n{list_problems(problems)}")
        return [next((table[alias] for alias in _aliases(r.file_name) if table.get(alias)), None) for r in self.images]

    def groups(self) -> list[str]:
        """Return the group of every image; without a field or a pattern each is its own."""
        pattern = self.options.group_pattern
        if not self.options.group_by and pattern is None:
            return [record.file_name for record in self.images]
        columns = [self.values(column) for column in self.options.group_by]
        texts = [" ".join(values) for values in zip(*columns, strict=True)]
        texts = texts or [record.file_name for record in self.images]
        if pattern is None:
            return texts
        try:
            found = [re.search(pattern, text) for text in texts]
        except re.error as error:
            raise DataError(f"--group-pattern {pattern!r} is no regular expression: {error}") from None
        missing = [text for text, match in zip(texts, found, strict=True) if match is None]
        if missing:
            raise DataError(f"--group-pattern {pattern!r} finds nothing in:\n{list_problems(missing, 5)}")
        return [match.group(1) if match.re.groups else match.group() for match in found]


def _aliases(file_name: str) -> list[str]:
    path = PurePosixPath(file_name.replace("\\", "/"))
    return [file_name, str(path), str(path.with_suffix("")), path.name, path.stem]


def _outputs(options: SplitOptions) -> list[Path]:
    """Return every file that may be written."""
    names = ["balance.csv", "similar.csv"]
    if options.fractions is not None:
        names += [f"{part}.json" for part in PART_NAMES[len(options.fractions)]]
    else:
        names += ["folds.json", INDEX_NAMES[options.index]]
        names += [f"{HOLDOUT}.json"] if options.holdout else []
        if options.coco_files:
            names += [f"fold{k}_{part}.json" for k in range(options.folds) for part in ("train", "val")]
    return [options.output / name for name in names]


def _check_free(options: SplitOptions) -> None:
    present = [path.name for path in _outputs(options) if path.exists()]
    if present and not options.overwrite:
        raise DataError(
            f"{options.output} holds {', '.join(present)} already; pass --overwrite, or name another output"
        )


def _write(coco: RawCoco, split: Split, options: SplitOptions) -> list[Path]:
    """Write the COCO files and the index; return their paths."""
    info = {
        "split": {"seed": options.seed, "group_by": list(options.group_by), "stratify_by": list(options.stratify_by)}
    }
    parts = {part: np.flatnonzero(split.part_of == number) for number, part in enumerate(split.parts)}
    files: dict[str, np.ndarray] = {}
    if options.fractions is not None:
        files = parts
    else:
        held_out = parts.pop(HOLDOUT, None)
        files["folds"] = np.sort(np.concatenate(list(parts.values())))
        if held_out is not None:
            files[HOLDOUT] = held_out
        if options.coco_files:
            for number, own in enumerate(parts.values()):
                files[f"fold{number}_train"] = np.setdiff1d(files["folds"], own)
                files[f"fold{number}_val"] = own
    written = []
    for name, indices in files.items():
        path = options.output / f"{name}.json"
        has_folds = options.fractions is None and name != HOLDOUT
        fields = [{FOLD: int(split.part_of[index])} for index in indices] if has_folds else None
        coco.write(path, indices=indices, image_fields=fields, info=info, overwrite=options.overwrite)
        written.append(path)
    if options.fractions is None:
        written.append(options.output / INDEX_NAMES[options.index])
        write_index(written[-1], _index_rows(coco.dataset, split))
    return written


def _index_rows(dataset: CocoDataset, split: Split) -> list[dict[str, object]]:
    counts = dataset.objects_per_image().sum(axis=1).tolist()
    rows = []
    for number, (record, part) in enumerate(zip(dataset.images, split.names(), strict=True)):
        rows.append(
            {
                FILE_NAME: record.file_name,
                IMAGE_ID: record.image_id,
                FOLD: None if part == HOLDOUT else int(split.part_of[number]),
                "part": part,
                "group": split.group_names[number],
                "objects": counts[number],
                **{column: values[number] for column, values in split.strata.items() if column != "group"},
            }
        )
    return rows


def _leak_report(dataset: CocoDataset, split: Split, options: SplitOptions) -> list[str]:
    path = options.output / "similar.csv"
    if not split.pairs:
        path.unlink(missing_ok=True)
        return ["no two images are nearly the same"] if options.similar else ["similar images were not looked for"]
    names = [record.file_name for record in dataset.images]
    parts = split.names()
    rows = [
        ("first", "second", "similarity", "turned", "part of first", "part of second"),
        *(
            (
                names[p.first],
                names[p.second],
                f"{p.similarity:.3f}",
                "yes" if p.turned else "no",
                parts[p.first],
                parts[p.second],
            )
            for p in sorted(split.pairs, key=lambda pair: -pair.similarity)
        ),
    ]
    _write_csv(path, rows)
    leaking = len(split.leaks)
    told = f"pairs of images that are nearly the same: {len(split.pairs)}, listed in {path}; "
    if not leaking:
        return [told + "each lies in one part"]
    return [told + f"in two parts: {leaking}, so that scores will be too good (leave --ignore-similar out)"]


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    make_folder(path.parent)
    with (
        written_whole(path, "the table") as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(rows)
