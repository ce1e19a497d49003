"""The table that a reader prints when it is done."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Container, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from detseg.coco.catalog import FIELD as INPUT_FIELD
from detseg.coco.dataset import annotations_of, image_root_for, make_folder, write_coco
from detseg.curation.repair.image import ImageMasks, repair_image
from detseg.curation.repair.masks import allowed_classes, check_kinds
from detseg.curation.repair.rules import Change, RepairRules, changes_table, write_changes
from detseg.curation.splits import read_split_lists, split_folds, split_fractions
from detseg.errors import DataError, list_problems
from detseg.files.atomic import written_whole
from detseg.files.table import read_table
from detseg.formats.classes import assign_classes, parse_class_rule
from detseg.formats.source import (
    LabelledImage,
    PictureOptions,
    Source,
    choose_plane_of,
    with_known_channels,
    with_pixel_sizes,
)


def summary_table(
    parts: Mapping[str, Sequence[str]],
    images: Mapping[str, LabelledImage],
    groups: Mapping[str, str] | None,
    num_skipped: int,
    output: Path,
) -> str:
    """Return a table of images, objects and sizes of every part, and of every group in it, and where the files lie."""
    rows = [("part", "group", "images", "objects", "per image", "height x width", "file")]
    for part, names in parts.items():
        rows.append((part, "", *_numbers([images[name] for name in names]), f"{output / part}.json"))
        if groups is not None:
            for group in sorted({groups[name] for name in names if name in groups}):
                rows.append(("", group, *_numbers([images[name] for name in names if groups.get(name) == group]), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if 2 <= column <= 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    if num_skipped:
        lines.append(f"{num_skipped} problems: what was left out is listed in {output / 'skipped.txt'}")
    return "\n".join(lines)


def _numbers(images: Sequence[LabelledImage]) -> tuple[str, str, str, str]:
    """Return images, objects, least to most objects an image, least to greatest size."""
    if not images:
        return "0", "0", "", ""
    counts = [len(image.rles) for image in images]
    sizes = np.array([(image.height, image.width) for image in images])
    least, most = sizes.min(axis=0), sizes.max(axis=0)
    size = f"{least[0]} x {least[1]}" if (least == most).all() else f"{least[0]}-{most[0]} x {least[1]}-{most[1]}"
    return str(len(images)), str(sum(counts)), f"{min(counts)}-{max(counts)}", size


# Repairing what a reader found, before it is written.

CHANGES_NAME = "repairs.csv"


def repair_images(
    images: Mapping[str, LabelledImage], groups: Mapping[str, str], class_names: Sequence[str], rules: RepairRules
) -> tuple[dict[str, LabelledImage], list[Change]]:
    """Return the images with repaired masks, and what was changed; crowd regions stay as they are.

    groups: image name -> its group; `kind_field=group` means these. In the list of changes an annotation is called by
    its number in the image, from 1 on. Raises DataError where no image has the field that says its kind.
    """
    is_group = rules.kind_field == "group"
    kinds = {
        name: groups.get(name) if is_group else image.fields.get(rules.kind_field) for name, image in images.items()
    }
    check_kinds(kinds.values(), rules)
    repaired, changes = {}, []
    for name, image in tqdm(images.items(), desc="repairing", unit="image"):
        repaired[name], own = _repair(image, kinds[name], class_names, rules)
        changes += own
    return repaired, changes


def _repair(
    image: LabelledImage, kind: object, class_names: Sequence[str], rules: RepairRules
) -> tuple[LabelledImage, list[Change]]:
    crowd = np.array(image.crowd if len(image.crowd) else [False] * len(image.rles), dtype=bool)
    objects = np.flatnonzero(~crowd)
    classes = np.array(image.class_of_each, dtype=np.int64)
    result = repair_image(
        ImageMasks(
            file_name=image.file_name,
            rles=[image.rles[index] for index in objects],
            classes=classes[objects],
            names=(objects + 1).tolist(),
            class_names=class_names,
            allowed=None if kind is None else allowed_classes(kind, class_names, rules),
        ),
        rules,
    )
    # Crowd regions keep their place among the others.
    origins = np.concatenate([objects[result.origins], np.flatnonzero(crowd)]).astype(np.int64)
    order = np.argsort(origins, kind="stable")
    rles = [*result.rles, *(image.rles[index] for index in np.flatnonzero(crowd))]
    new_classes = np.concatenate([result.classes, classes[crowd]])
    flags = np.arange(len(rles)) >= len(result.rles)
    mended = dataclasses.replace(
        image,
        rles=[rles[index] for index in order],
        classes=new_classes[order].tolist(),
        crowd=flags[order].tolist() if len(image.crowd) else (),
    )
    return mended, result.changes


# A source of labelled images to COCO files, split into parts or folds: one way for every reader.

logger = logging.getLogger(__name__)

SKIPPED_NAME = "skipped.txt"
UNLABELLED = "unlabelled"
DEFAULT_FRACTIONS = (0.7, 0.15, 0.15)


@dataclass(frozen=True)
class PrepareOptions:
    """What every `detseg prepare_...` command takes; see its --help.

    folds and split_lists go before fractions, fractions before the split that the source comes with; where there is
    neither, `DEFAULT_FRACTIONS`. classes_from: words as `classes.parse_class_rule` reads them. stratify_by: a column of
    `table` (a CSV; key: its column of image names) or, without a table, one of the source's own; it is stored as
    `group` and, but for given lists, stratified by.
    pictures: what the user says of the images. repair: the rules by which masks are mended, None for none.
    """

    output: Path
    fractions: tuple[float, ...] | None = None
    folds: int | None = None
    split_lists: Path | None = None
    table: Path | None = None
    key: str | None = None
    stratify_by: str | None = None
    classes_from: tuple[str, ...] = ()
    seed: int = 0
    write_lists: bool = False
    pictures: PictureOptions = field(default_factory=PictureOptions)
    repair: RepairRules | None = None
    skip_bad: bool = False
    overwrite: bool = False


def prepare(source: Source, options: PrepareOptions) -> str:
    """Write the COCO files and return a table of what is in them.

    All is read and checked before the first file is written. Images without objects are kept.

    Raises:
        DataError: all that is wrong with the images, together, unless `skip_bad`; a split that cannot be made; a file
            that exists, unless `overwrite`, or cannot be written.
    """
    problems = list(source.problems)
    rule = parse_class_rule(options.classes_from, options.key)
    _stop_at(problems, options)
    # Only images of given lists need a value in the table; only split ones need it before they are split.
    listed = _listed_parts(source.names, options, problems)
    names = source.names if listed is None else [name for members in listed.values() for name in members]
    groups = _groups(source, names, options, problems)
    names = [name for name in names if groups is None or name in groups]
    _check_some(names, problems)
    parts = _split(names, options, groups, source.parts) if listed is None else _restricted(listed, set(names))
    if source.unlabelled:
        parts = {**parts, UNLABELLED: list(source.unlabelled)}
    _check_outputs(parts, options)
    choose_plane_of(source, options.pictures.plane)
    images = _read_all(source, sorted({name for members in parts.values() for name in members}), problems)
    images, class_names = assign_classes(images, source, rule, problems)
    images = with_known_channels(images, source, options.pictures, problems)
    images = with_pixel_sizes(images, source, options.pictures, options.key, problems)
    _stop_at(problems, options)
    _check_some(images, problems)
    changes = []
    if options.repair is not None:
        images, changes = repair_images(images, groups or {}, class_names, options.repair)
    # Bad images leave gaps and move no other image to another part.
    parts = _restricted(parts, images)
    source.check_target(list(images.values()), options.output, overwrite=options.overwrite)
    _write_skipped(problems, options)
    # Images before the files that name them: a COCO file that is there is whole.
    source.provide(list(images.values()), options.output)
    for part, members in parts.items():
        _write_part(part, [images[name] for name in members], groups, class_names, source, options)
    table = summary_table(parts, images, groups, len(problems), options.output)
    if options.repair is None:
        return table
    path = options.output / CHANGES_NAME
    write_changes(path, changes, overwrite=options.overwrite)
    return f"{table}\n\n{changes_table(changes)}\nlisted in {path}"


def _restricted(parts: Mapping[str, Sequence[str]], names: Container[str]) -> dict[str, list[str]]:
    """Return the parts without the images that are not in `names`."""
    return {part: [name for name in members if name in names] for part, members in parts.items()}


def _groups(
    source: Source, names: Sequence[str], options: PrepareOptions, problems: list[str]
) -> dict[str, str] | None:
    """Return image name -> value of the column to stratify by, or None where there is none."""
    column = options.stratify_by
    if options.table is not None:
        if column is None:
            raise DataError("--table CSV takes --stratify-by COLUMN too: the column is one of the table's")
        groups = _column_of_table(source, names, options, column, problems)
        _stop_at(problems, options)
        return groups
    in_tables = (*options.classes_from, options.pictures.pixel_size)
    if options.key is not None and not any(word.startswith("csv:") for word in in_tables):
        raise DataError("--key COLUMN takes --table CSV too: it names the table's column of image names")
    column = column or source.default_column
    if column is None:
        return None
    if column not in source.columns:
        own = f"; without a table there are {', '.join(source.columns)}" if source.columns else ""
        raise DataError(f"--stratify-by {column} takes --table CSV too: the column is one of the table's{own}")
    return dict(source.columns[column])


def _column_of_table(
    source: Source, names: Sequence[str], options: PrepareOptions, column: str, problems: list[str]
) -> dict[str, str]:
    """Return image name -> value of a column; a table may name images with suffix or without their folder."""
    path = Path(str(options.table))
    table = read_column(path, options.key, column, problems)
    groups = {}
    for name in names:
        value = next((table[alias] for alias in source.aliases(name) if table.get(alias)), None)
        if value is None:
            problems.append(f"{source.describe(name)}: {path} has no {column} for it")
        else:
            groups[name] = value
    return groups


def read_column(path: Path, key: str | None, column: str, problems: list[str]) -> dict[str, str]:
    """Read image name (suffix and folders as in the table) -> value of a column of a CSV file.

    Broken rows, and a second value of a name, go to `problems`. Raises DataError where the file or a column is missing.
    """
    table = read_table(path, [column] if key is None else [key, column])
    key = key or table.columns[0]
    problems += table.problems
    values: dict[str, str] = {}
    for row in table.rows:
        name, value = row.values[key], row.values[column]
        if values.setdefault(name, value) != value:
            problems.append(f"{path}: line {row.line}: {name} has two values, {values[name]} and {value}")
    return values


def _stop_at(problems: Sequence[str], options: PrepareOptions) -> None:
    if problems and not options.skip_bad:
        raise DataError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''}; mend, or leave out with --skip-bad:\n"
            f"{list_problems(problems)}"
        )


def _check_some(images: Sized, problems: Sequence[str]) -> None:
    if not images:
        raise DataError(f"no image is left:\n{list_problems(problems)}")


def _read_all(source: Source, names: Sequence[str], problems: list[str]) -> dict[str, LabelledImage]:
    images = {}
    for name in tqdm(names, desc="reading images and masks", unit="image"):
        try:
            images[name], bad_masks = source.read(name)
            problems += bad_masks
        except DataError as error:
            problems.append(str(error))
    return images


def _listed_parts(names: Sequence[str], options: PrepareOptions, problems: list[str]) -> dict[str, list[str]] | None:
    """Return part (the name of its file) -> image names by given lists, or None where there are none."""
    if options.split_lists is None:
        return None
    parts, missing = read_split_lists(options.split_lists, names)
    problems += missing
    _stop_at(problems, options)
    left_out = len(names) - sum(len(members) for members in parts.values())
    if left_out:
        logger.warning("%d images are in none of the lists %s and left out", left_out, options.split_lists)
    return parts


def _split(
    names: Sequence[str],
    options: PrepareOptions,
    groups: Mapping[str, str] | None,
    own_parts: Mapping[str, Sequence[str]] | None,
) -> dict[str, list[str]]:
    """Return part -> image names by folds, fractions or the source's own split."""
    if options.folds is None and options.fractions is None and own_parts is not None:
        return _restricted(own_parts, set(names))
    if options.folds is None:
        return split_fractions(names, options.fractions or DEFAULT_FRACTIONS, seed=options.seed, groups=groups)
    folds = split_folds(names, options.folds, seed=options.seed, groups=groups)
    parts = {}
    for number, fold in enumerate(folds):
        others = sorted(name for other in folds if other is not fold for name in other)
        parts[f"fold{number}_train"], parts[f"fold{number}_val"] = others, fold
    return parts


def _check_outputs(parts: Mapping[str, Sequence[str]], options: PrepareOptions) -> None:
    suffixes = (".json", ".txt") if options.write_lists else (".json",)
    names = [part + suffix for part in parts for suffix in suffixes]
    names += [CHANGES_NAME] if options.repair is not None else []
    present = [name for name in names if (options.output / name).exists()]
    if present and not options.overwrite:
        raise DataError(
            f"{options.output} holds {', '.join(present)} already; pass --overwrite, or name another output"
        )


def _write_skipped(problems: Sequence[str], options: PrepareOptions) -> None:
    """Write what was left out, or remove the list of a run before this one."""
    path = options.output / SKIPPED_NAME
    if path.exists() and not options.overwrite:
        if problems:
            raise DataError(f"{path} exists already; pass --overwrite to replace it, or name another output")
    elif problems:
        _write_lines(path, problems)
    elif path.exists():
        path.unlink()


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    make_folder(path.parent)
    with written_whole(path, "the list") as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def _write_part(
    part: str,
    images: Sequence[LabelledImage],
    groups: Mapping[str, str] | None,
    class_names: Sequence[str],
    source: Source,
    options: PrepareOptions,
) -> None:
    rows: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, start=1):
        row = {"id": image_id, "file_name": image.file_name, "height": image.height, "width": image.width}
        row.update(image.fields)
        if groups is not None and image.name in groups:
            row["group"] = groups[image.name]
        rows.append(row)
    root = image_root_for(source.image_root(options.output), options.output)
    write_coco(
        options.output / f"{part}.json",
        images=rows,
        annotations=_annotations(images),
        categories=[{"id": number, "name": name} for number, name in enumerate(class_names, start=1)],
        info={"description": source.description, "image_root": root, **_input(source, options)},
        overwrite=options.overwrite,
    )
    if options.write_lists:
        _write_lines(options.output / f"{part}.txt", [image.name for image in images])


def _input(source: Source, options: PrepareOptions) -> dict[str, Any]:
    """Return what the COCO file's info says of channels and scaling: what the source says, or the user."""
    keys = {**getattr(source, "input_keys", {}), **options.pictures.input_keys}
    return {INPUT_FIELD: keys} if keys else {}


def _annotations(images: Sequence[LabelledImage]) -> Iterator[dict[str, Any]]:
    first_id = 1
    for image_id, image in enumerate(images, start=1):
        categories = [index + 1 for index in image.class_of_each]
        crowd = image.crowd if len(image.crowd) else None
        yield from annotations_of(image.rles, categories, image_id=image_id, first_id=first_id, crowd=crowd)
        first_id += len(image.rles)
