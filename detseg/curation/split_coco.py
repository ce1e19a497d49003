"""Split a COCO file into folds or parts with similar classes, objects and kinds, and with groups kept together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.curation.leaks import SIMILAR, SimilarPair, check_similar, join_groups, leaks, similar_images
from detseg.curation.splits import PART_NAMES, balance_features, balance_table, check_fractions, split_groups
from detseg.curation.tiles import cut_into_tiles
from detseg.data.folds import FILE_NAME, FOLD, IMAGE_ID, write_index
from detseg.errors import DataError, count_problems, list_problems
from detseg.files.atomic import check_free, make_folder
from detseg.files.table import text_table, write_csv
from detseg.formats.image_fields import ImageColumn

HOLDOUT = "test"
INDEX_NAMES = {"csv": "folds.csv", "yaml": "folds.yaml"}
BALANCE_NAME, SIMILAR_NAME = "balance.csv", "similar.csv"
TILES_NAME, LEAST_TILE = "tiles", 32


@dataclass(frozen=True)
class SplitOptions:
    """Options of `detseg split`; see its --help.

    folds: number of folds, unless `fractions` gives the fractions of train, val and test. holdout: fraction of the
    images for test.json, before the rest is split into folds. stratify_by, group_by: image fields or columns of `table`
    (key: its column of image names); several are combined. group_pattern: regular expression; its first group (or its
    whole match) in the value of `group_by`, or without that in the file name, is the group. similar: correlation above
    which images are near-duplicates, 0: no comparison; group_similar: keep these together. coco_files: also write
    fold0_train.json, fold0_val.json, .... index: csv or yaml. tile: side in pixels of the tiles that images are cut
    into, with all tiles of an image in one part; 0: no tiles. overlap: pixels shared by neighbouring tiles.
    """

    output: Path
    folds: int = 5
    fractions: Sequence[float] | None = None
    holdout: float = 0.0
    stratify_by: Sequence[str] = ()
    group_by: Sequence[str] = ()
    group_pattern: str | None = None
    table: Path | None = None
    key: str | None = None
    seed: int = 0
    similar: float = SIMILAR
    group_similar: bool = True
    coco_files: bool = False
    index: str = "csv"
    tile: int = 0
    overlap: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.fractions is not None:
            check_fractions(self.fractions, "--fractions", (2, 3))
            if self.holdout or self.coco_files:
                raise DataError("--fractions makes no folds: --holdout and --coco-files need --folds")
        elif self.folds < 2:
            raise DataError(f"--folds is {self.folds}; expected 2 or more")
        if not 0 <= self.holdout < 1:
            raise DataError(f"--holdout is {self.holdout}; expected a fraction of the images, 0 to 1")
        check_similar(self.similar)
        if self.table and not (self.stratify_by or self.group_by):
            raise DataError("--table CSV needs --stratify-by or --group-by COLUMN, which select its columns")
        if self.key and not self.table:
            raise DataError("--key COLUMN needs --table CSV: it is the table's column of image names")
        if self.tile and self.tile < LEAST_TILE:
            raise DataError(f"--tile is {self.tile}; expected {LEAST_TILE} pixels or more, several objects wide")
        if not 0 <= self.overlap <= self.tile // 2:
            raise DataError(f"--overlap is {self.overlap}; expected 0 to half of --tile, which is {self.tile}")


@dataclass(frozen=True)
class Split:
    """N images in parts. parts: their names in order. part_of: (N,) int64. groups: (N,) int64, kept together.

    group_names: of every image, before near-duplicates joined groups. strata: field -> value of every image. pairs:
    near-duplicates.
    """

    parts: list[str]
    part_of: np.ndarray
    groups: np.ndarray
    group_names: list[str]
    strata: dict[str, list[str]]
    pairs: list[SimilarPair]

    @property
    def part_names(self) -> list[str]:
        """Name of the part of every image."""
        return [self.parts[part] for part in self.part_of]

    def of_tiles(self, origins: np.ndarray) -> Split:
        """Return the split of tiles, given the image (T,) int64 of each; pairs remain those of images."""
        strata = {field: [values[index] for index in origins] for field, values in self.strata.items()}
        names = [self.group_names[index] for index in origins]
        return Split(self.parts, self.part_of[origins], self.groups[origins], names, strata, [])


def split_coco(source: Path, options: SplitOptions) -> str:
    """Split a COCO file and write the files set by `options`; annotations and additional fields are unchanged.

    Returns a report: the parts, and leaks that were prevented or remain.

    Raises:
        DataError: the file is not a COCO data set, an image cannot be read or lacks a field, there are too few groups,
            or a file exists, unless `overwrite`.
    """
    dataset = CocoDataset.load(source)
    check_free(*(options.output / name for name in _output_names(options)), overwrite=options.overwrite)
    split = find_split(dataset, options)
    make_folder(options.output)
    about_leaks = _write_similar(dataset, split, options)
    if options.tile:
        folder = options.output / TILES_NAME
        dataset, origins = cut_into_tiles(dataset, folder, tile=options.tile, overlap=options.overlap)
        split = split.of_tiles(origins)
    written = _write(dataset, split, options)
    rows = balance_table(dataset, split.parts, split.part_of, split.groups, split.strata)
    written.append(options.output / BALANCE_NAME)
    write_csv(written[-1], rows, "the table")
    return f"{text_table(rows)}\n\n{about_leaks}\n\nwritten: {', '.join(map(str, written))}"


def find_split(dataset: CocoDataset, options: SplitOptions) -> Split:
    """Assign every image of a data set to a part."""
    names = [record.file_name for record in dataset.images]
    strata = {field: _values(dataset, field, options) for field in options.stratify_by}
    group_names = _groups(dataset, options)
    pairs = similar_images([dataset], options.similar) if options.similar else []
    groups = join_groups(group_names, pairs if options.group_similar else [])
    features, weights = balance_features(dataset, strata)

    def split(chosen: np.ndarray, shares: Sequence[float]) -> np.ndarray:
        own = [names[index] for index in chosen]
        return split_groups(features[chosen], groups[chosen], shares, seed=options.seed, names=own, weights=weights)

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


def _values(dataset: CocoDataset, field: str, options: SplitOptions) -> list[str]:
    """Return the value of a field, or table column, for every image. Raises DataError if one has none."""
    images = dataset.images
    if options.table:
        problems: list[str] = []
        column = ImageColumn(options.table, options.key, field, problems)
        if problems:
            raise DataError(f"{count_problems(problems)}:\n{list_problems(problems)}")
        found = [column.of_file(record.file_name) for record in images]
        where = f"the table {options.table}"
    else:
        found = [record.metadata.get(field) for record in images]
        known = sorted({key for record in images for key in record.metadata})
        where = f"its fields (they have: {', '.join(known) or 'none'}; --table CSV adds others)"
    missing = [record.file_name for record, value in zip(images, found, strict=True) if value in (None, "")]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(images)} images have no {field!r} in {where}:\n{list_problems(missing, 5)}"
        )
    return [str(value) for value in found]


def _groups(dataset: CocoDataset, options: SplitOptions) -> list[str]:
    """Return the group of every image; without a field or pattern each image is a group."""
    texts = [record.file_name for record in dataset.images]
    if options.group_by:
        fields = [_values(dataset, field, options) for field in options.group_by]
        texts = [" ".join(values) for values in zip(*fields, strict=True)]
    if options.group_pattern is None:
        return texts
    try:
        pattern = re.compile(options.group_pattern)
    except re.error as error:
        raise DataError(
            f"--group-pattern {options.group_pattern!r} is not a valid regular expression: {error}"
        ) from None
    found = [pattern.search(text) for text in texts]
    missing = [text for text, match in zip(texts, found, strict=True) if match is None]
    if missing:
        raise DataError(f"--group-pattern {options.group_pattern!r} matches nothing in:\n{list_problems(missing, 5)}")
    return [match.group(1 if pattern.groups else 0) for match in found]


def _output_names(options: SplitOptions) -> list[str]:
    """Return the names of all files that may be written."""
    names = [BALANCE_NAME, SIMILAR_NAME, *([TILES_NAME] if options.tile else [])]
    if options.fractions is not None:
        names += [f"{part}.json" for part in PART_NAMES[len(options.fractions)]]
    else:
        names += ["folds.json", INDEX_NAMES[options.index], *([f"{HOLDOUT}.json"] if options.holdout else [])]
        if options.coco_files:
            names += [f"fold{k}_{part}.json" for k in range(options.folds) for part in ("train", "val")]
    return names


def _write(dataset: CocoDataset, split: Split, options: SplitOptions) -> list[Path]:
    """Write the COCO files and the index; return their paths."""
    info = {
        "split": {"seed": options.seed, "group_by": list(options.group_by), "stratify_by": list(options.stratify_by)}
    }
    parts = {part: np.flatnonzero(split.part_of == number) for number, part in enumerate(split.parts)}
    files = parts
    if options.fractions is None:
        files = {"folds": np.flatnonzero(split.part_of < options.folds)}
        if options.holdout:
            files[HOLDOUT] = parts.pop(HOLDOUT)
        if options.coco_files:
            for number, own in enumerate(parts.values()):
                files[f"fold{number}_train"] = np.setdiff1d(files["folds"], own)
                files[f"fold{number}_val"] = own
    written = []
    for name, indices in files.items():
        written.append(options.output / f"{name}.json")
        has_folds = options.fractions is None and name != HOLDOUT
        fields = [{FOLD: int(split.part_of[index])} for index in indices] if has_folds else None
        part = dataset.select(indices)
        part.save(written[-1], image_fields=fields, info=info, overwrite=options.overwrite)
    if options.fractions is None:
        written.append(options.output / INDEX_NAMES[options.index])
        counts = dataset.objects_per_image().sum(axis=1).tolist()
        rows = [
            {
                FILE_NAME: record.file_name,
                IMAGE_ID: record.image_id,
                FOLD: None if part == HOLDOUT else int(split.part_of[number]),
                "part": part,
                "group": split.group_names[number],
                "objects": counts[number],
                **{field: values[number] for field, values in split.strata.items() if field != "group"},
            }
            for number, (record, part) in enumerate(zip(dataset.images, split.part_names, strict=True))
        ]
        write_index(written[-1], rows)
    return written


def _write_similar(dataset: CocoDataset, split: Split, options: SplitOptions) -> str:
    """Write the list of near-duplicates, or remove that of an earlier run; return a sentence about them."""
    path = options.output / SIMILAR_NAME
    if not split.pairs:
        path.unlink(missing_ok=True)
        return "no images are near-duplicates" if options.similar else "images were not compared"
    names, parts = [record.file_name for record in dataset.images], split.part_names
    rows = [("first", "second", "similarity", "turned", "part of first", "part of second")]
    for p in sorted(split.pairs, key=lambda pair: -pair.similarity):
        turned = "yes" if p.turned else "no"
        rows.append((names[p.first], names[p.second], f"{p.similarity:.3f}", turned, parts[p.first], parts[p.second]))
    write_csv(path, rows, "the table")
    leaking = len(leaks(split.pairs, parts))
    told = f"near-duplicate pairs of images: {len(split.pairs)}, listed in {path}; "
    if not leaking:
        return told + "each is in one part"
    return told + f"in two parts: {leaking}, so that scores will be too high (remove --ignore-similar)"
