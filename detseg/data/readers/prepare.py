"""Folders of images and label images to COCO files, split into parts or folds."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from detseg.data.coco_writer import annotations_of, write_coco
from detseg.data.readers.label_images import LabelledImage, Pair, find_pairs, read_pair
from detseg.data.readers.summary import summary_table
from detseg.data.splits import read_split_lists, split_folds, split_fractions
from detseg.errors import DataError, list_problems

logger = logging.getLogger(__name__)

SKIPPED_NAME = "skipped.txt"


@dataclass(frozen=True)
class PrepareOptions:
    """What the command line asks for; see `detseg prepare_label_images --help`.

    folds and split_lists go before fractions. table, key, stratify_by: a CSV, its column of image names and the one
    that is stored as `group` and, but for given lists, stratified by.
    """

    images: Path
    labels: Path
    output: Path
    label_suffix: str | None = None
    class_name: str = "cell"
    fractions: tuple[float, ...] = (0.7, 0.15, 0.15)
    folds: int | None = None
    split_lists: Path | None = None
    table: Path | None = None
    key: str | None = None
    stratify_by: str | None = None
    seed: int = 0
    write_lists: bool = False
    skip_bad: bool = False
    overwrite: bool = False


def prepare_label_images(options: PrepareOptions) -> str:
    """Write the COCO files and return a table of what is in them.

    All is read and checked before the first file is written. Images without objects are kept.

    Raises:
        DataError: all that is wrong with the images, together, unless `skip_bad`; a split that cannot be made; a file
            that exists, unless `overwrite`.
    """
    if (options.table is None) != (options.stratify_by is None):
        raise DataError("--stratify-by COLUMN and --table CSV go together: the column is one of the table's")
    pairs, problems = find_pairs(options.images, options.labels, options.label_suffix)
    _stop_at(problems, options)
    groups = None
    if options.table is not None:
        table = read_column(options.table, options.key, str(options.stratify_by))
        groups = _groups_of(pairs, table, problems, options)
        pairs = [pair for pair in pairs if pair.name in groups]
    parts = _make_parts([pair.name for pair in pairs], options, groups, problems)
    _check_outputs(parts, options)
    chosen = {name for names in parts.values() for name in names}
    images = _read_all([pair for pair in pairs if pair.name in chosen], problems)
    _stop_at(problems, options)
    if not images:
        raise DataError(f"no image is left:\n{list_problems(problems)}")
    # Bad images leave gaps and move no other image to another part.
    parts = {part: [name for name in names if name in images] for part, names in parts.items()}
    for part, names in parts.items():
        _write_part(part, [images[name] for name in names], groups, options)
    if problems:
        (options.output / SKIPPED_NAME).write_text("\n".join(problems) + "\n", encoding="utf-8")
    return summary_table(parts, images, groups, len(problems), options.output)


def read_column(path: Path, key: str | None, column: str) -> dict[str, str]:
    """Read image name (suffix and folders as in the table) -> value of a column of a CSV file.

    Raises DataError where the file or a column is missing, or a name has two values.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            key = key or (columns[0] if columns else "")
            for wanted in (key, column):
                if wanted not in columns:
                    raise DataError(
                        f"{path}: there is no column {wanted!r}; columns are: {', '.join(columns) or 'none'}"
                    )
            values: dict[str, str] = {}
            for row in reader:
                name, value = str(row[key] or "").strip(), str(row[column] or "").strip()
                if values.setdefault(name, value) != value:
                    raise DataError(
                        f"{path}: line {reader.line_num}: {name} has two values, {values[name]} and {value}"
                    )
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such table") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None
    return values


def _groups_of(
    pairs: Sequence[Pair], table: Mapping[str, str], problems: list[str], options: PrepareOptions
) -> dict[str, str]:
    """Return name -> value of the column; a table may name images with suffix or without their folder."""
    groups = {}
    missing = []
    for pair in pairs:
        names = (pair.name, pair.name + pair.image.suffix, pair.image.stem, pair.image.name)
        value = next((table[name] for name in names if table.get(name)), None)
        if value is None:
            missing.append(f"{pair.image}: {options.table} has no {options.stratify_by} for it")
        else:
            groups[pair.name] = value
    problems += missing
    _stop_at(problems, options)
    return groups


def _stop_at(problems: Sequence[str], options: PrepareOptions) -> None:
    if problems and not options.skip_bad:
        raise DataError(
            f"{len(problems)} problems; mend them, or leave these images out with --skip-bad:\n"
            f"{list_problems(problems)}"
        )


def _read_all(pairs: Sequence[Pair], problems: list[str]) -> dict[str, LabelledImage]:
    images = {}
    for pair in tqdm(pairs, desc="reading images and labels", unit="image"):
        try:
            images[pair.name] = read_pair(pair)
        except DataError as error:
            problems.append(str(error))
    return images


def _make_parts(
    names: Sequence[str], options: PrepareOptions, groups: Mapping[str, str] | None, problems: list[str]
) -> dict[str, list[str]]:
    """Return part (the name of its file) -> image names."""
    if options.split_lists is not None:
        parts, missing = read_split_lists(options.split_lists, names)
        problems += missing
        _stop_at(problems, options)
        left_out = len(names) - sum(len(members) for members in parts.values())
        if left_out:
            logger.warning("%d images are in none of the lists %s and left out", left_out, options.split_lists)
        return parts
    if options.folds is None:
        return split_fractions(names, options.fractions, seed=options.seed, groups=groups)
    folds = split_folds(names, options.folds, seed=options.seed, groups=groups)
    parts = {}
    for number, fold in enumerate(folds):
        others = sorted(name for other in folds if other is not fold for name in other)
        parts[f"fold{number}_train"], parts[f"fold{number}_val"] = others, fold
    return parts


def _check_outputs(parts: Mapping[str, Sequence[str]], options: PrepareOptions) -> None:
    present = [f"{part}.json" for part in parts if (options.output / f"{part}.json").exists()]
    if present and not options.overwrite:
        raise DataError(
            f"{options.output} holds {', '.join(present)} already; pass --overwrite, or name another output"
        )


def _write_part(
    part: str, images: Sequence[LabelledImage], groups: Mapping[str, str] | None, options: PrepareOptions
) -> None:
    rows: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, start=1):
        file_name = image.pair.image.relative_to(options.images).as_posix()
        row = {"id": image_id, "file_name": file_name, "height": image.height, "width": image.width}
        if groups is not None:
            row["group"] = groups[image.pair.name]
        rows.append(row)
    write_coco(
        options.output / f"{part}.json",
        images=rows,
        annotations=_annotations(images),
        categories=[{"id": 1, "name": options.class_name}],
        info={"description": f"label images of {options.labels}", "image_root": _image_root(options)},
        overwrite=options.overwrite,
    )
    if options.write_lists:
        names = "".join(f"{image.pair.name}\n" for image in images)
        (options.output / f"{part}.txt").write_text(names, encoding="utf-8", newline="\n")


def _annotations(images: Sequence[LabelledImage]) -> Iterator[dict[str, Any]]:
    first_id = 1
    for image_id, image in enumerate(images, start=1):
        yield from annotations_of(image.rles, [1] * len(image.rles), image_id=image_id, first_id=first_id)
        first_id += len(image.rles)


def _image_root(options: PrepareOptions) -> str:
    """Return the folder of the images: relative where it lies beside or below the output, so that both can move."""
    images, output = options.images.resolve(), options.output.resolve()
    try:
        relative = Path(os.path.relpath(images, output))
    except ValueError:  # another drive on Windows
        return images.as_posix()
    return relative.as_posix() if relative.parts.count("..") <= 1 else images.as_posix()
