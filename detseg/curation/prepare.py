"""`detseg prepare`: from the images of a reader to COCO files, with classes, split and repair."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Container, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.catalog import FIELD as INPUT_FIELD
from detseg.coco.json_files import annotations_of, image_root_for, write_coco
from detseg.coco.learnable import NOTHING
from detseg.curation.repair.image import ImageMasks, repair_image
from detseg.curation.repair.rules import Change, RepairRules, changes_table, write_changes
from detseg.curation.splits import read_split_lists, split_folds, split_fractions
from detseg.errors import DataError, count_problems, list_problems
from detseg.files.atomic import check_free, write_output
from detseg.files.table import text_table
from detseg.formats.classes import ClassRule, assign_classes, parse_class_rule
from detseg.formats.image_fields import ImageColumn, columns_of_images, with_known_channels, with_pixel_sizes
from detseg.formats.plausibility import LabelCheck
from detseg.formats.reader import FoundObjects, LabelledImage, Reader
from detseg.images.planes import SINGLE, PlaneChoice
from detseg.progress import ProgressBar

logger = logging.getLogger(__name__)

CHANGES_NAME, SKIPPED_NAME = "repairs.csv", "skipped.txt"
UNLABELLED = "unlabelled"
DEFAULT_FRACTIONS = (0.7, 0.15, 0.15)


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `detseg prepare` for all formats; see its --help.

    folds and split_lists override fractions, which override the split of the source; without any of them,
    `DEFAULT_FRACTIONS`. classes_from: arguments for `classes.parse_class_rule`. stratify_by: a column of `table` (a
    CSV; key: its column of image names) or, without a table, of the reader; it is stored as `group` and stratified by,
    except with given lists. plane: for files with several planes. pixel_size: for `picture_options.with_pixel_sizes`,
    "": from the image files. input_keys: INPUT keys for the COCO files. repair: rules by which masks are repaired, None
    for no repair.
    """

    output: Path
    fractions: Sequence[float] | None = None
    folds: int | None = None
    split_lists: Path | None = None
    table: Path | None = None
    key: str | None = None
    stratify_by: str | None = None
    classes_from: Sequence[str] = ()
    seed: int = 0
    write_lists: bool = False
    plane: PlaneChoice = SINGLE
    pixel_size: str = ""
    input_keys: Mapping[str, Any] = field(default_factory=dict)
    repair: RepairRules | None = None
    skip_bad: bool = False
    overwrite: bool = False


def prepare(reader: Reader, options: PrepareOptions) -> str:
    """Write the COCO files and return a table of their content.

    Everything is read and checked before the first file is written. Images without objects are kept.

    Raises:
        DataError: all problems of the images together, unless `skip_bad`; an impossible split; a file that exists,
            unless `overwrite`, or cannot be written.
    """
    problems = list(reader.problems)
    rule = parse_class_rule(options.classes_from, options.key)
    try:
        parts, groups = _choose_parts(reader, options, problems)
    except DataError:
        _stop_at(problems, options)  # the cause of the empty result
        raise
    endings = (".json", ".txt") if options.write_lists else (".json",)
    outputs = [options.output / (part + ending) for part in parts for ending in endings]
    outputs += [options.output / CHANGES_NAME] if options.repair is not None else []
    check_free(*outputs, overwrite=options.overwrite)
    if options.plane != SINGLE and not reader.has_metadata:
        raise DataError(f"{reader.description}: its files are single images; remove --z, --t and --axes")
    reader.plane = options.plane
    wanted = sorted({name for members in parts.values() for name in members})
    images, class_names = _usable_images(reader, wanted, rule, options, problems)
    labels = LabelCheck()
    for name, image in images.items():
        if name not in reader.unlabelled:
            own = [rle for rle, crowd in zip(image.objects.rles, image.objects.crowd, strict=True) if not crowd]
            labels.add(image.file_name, own, image.is_labels)
    changes: list[Change] = []
    if options.repair is not None:
        images, changes = repair_images(images, groups, class_names, options.repair)
    # Bad images leave gaps, but move no other image to another part.
    parts = _restricted(parts, images)
    file_names = [image.file_name for image in images.values()]
    reader.files.check_target(file_names, options.output, overwrite=options.overwrite)
    skipped = options.output / SKIPPED_NAME
    if problems:
        check_free(skipped, overwrite=options.overwrite)
        _write_lines(skipped, problems)
    elif options.overwrite:  # from an earlier run
        skipped.unlink(missing_ok=True)
    # Images are written before the files that list them: an existing COCO file is complete.
    reader.files.provide(file_names, options.output)
    for part, members in parts.items():
        _write_part(part, [images[name] for name in members], groups, class_names, reader, options)
    said = [summary_table(parts, images, groups, options.output)]
    if problems:
        said.append(f"{count_problems(problems)}: what was left out is listed in {skipped}")
    if options.repair is not None:
        path = options.output / CHANGES_NAME
        write_changes(path, changes)
        said.append(f"\n{changes_table(changes)}\nlisted in {path}")
    # At the end, where it is noticed.
    note = reader.closing_note()
    warnings = [f"WARNING: {text}" for text in labels.warnings() if NOTHING not in text or NOTHING not in note]
    warnings += [
        f"WARNING: {part}.json has no images left; fix the listed ones, or split with another --seed"
        for part, members in parts.items()
        if not members
    ]
    return "\n".join([*said, *filter(None, [note]), *warnings])


def _usable_images(
    reader: Reader, wanted: Sequence[str], rule: ClassRule | None, options: PrepareOptions, problems: list[str]
) -> tuple[dict[str, LabelledImage], list[str]]:
    """Return the usable ones of the wanted images, by name, and the class names; problems are appended to `problems`.

    Raises DataError with all problems, unless `skip_bad`, or if no images are left.
    """
    of_table: dict[str, dict[str, str]] = {}
    if options.table is not None:
        labelled = [name for name in wanted if name not in reader.unlabelled]
        # Problems of the column to stratify by have been reported already.
        told = problems if options.stratify_by is None else []
        of_table = columns_of_images(options.table, options.key, reader, labelled, told)
        reader.columns = {**of_table, **reader.columns}
    images = _read_images(reader, wanted, of_table, problems)
    images, class_names = assign_classes(images, reader, rule, problems)
    images = with_known_channels(images, reader, options.input_keys, problems)
    if options.pixel_size:
        images = with_pixel_sizes(images, reader, options.pixel_size, options.key, problems)
    _stop_at(problems, options)
    _check_some(images, problems)
    return images, class_names


def _read_images(
    reader: Reader, names: Sequence[str], columns: Mapping[str, Mapping[str, str]], problems: list[str]
) -> dict[str, LabelledImage]:
    """Return the usable images; problems are appended to `problems`.

    columns: additional fields of the images, column -> image name -> value.
    """
    images = {}
    for name in ProgressBar(names, desc="reading images and masks", unit="image"):
        try:
            image = reader.read(name)
        except DataError as error:
            problems.append(str(error))
            continue
        problems += image.objects.problems
        if image.objects.problems and not len(image.objects.rles):
            problems.append(f"image {image.file_name}: all of its objects are bad, so it is left out")
        else:
            fields = {column: values[name] for column, values in columns.items() if name in values}
            images[name] = dataclasses.replace(image, fields={**fields, **image.fields})
    return images


def _stop_at(problems: Sequence[str], options: PrepareOptions) -> None:
    if problems and not options.skip_bad:
        raise DataError(f"{count_problems(problems)} to fix, or to skip with --skip-bad:\n{list_problems(problems)}")


def _check_some(images: Sized, problems: Sequence[str]) -> None:
    if not images:
        raise DataError(f"no images are left:\n{list_problems(problems)}")


def _restricted(parts: Mapping[str, Sequence[str]], names: Container[str]) -> dict[str, list[str]]:
    """Return the parts with only the images in `names`."""
    return {part: [name for name in members if name in names] for part, members in parts.items()}


def _choose_parts(
    reader: Reader, options: PrepareOptions, problems: list[str]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return part (name of its file) -> image names, and image name -> value of the column to stratify by."""
    names, parts = reader.names, reader.parts
    if options.split_lists is not None:
        parts, missing = read_split_lists(options.split_lists, names, reader.aliases)
        problems += missing
        num_all, names = len(names), [name for members in parts.values() for name in members]
        if num_all > len(names):
            logger.warning(
                "%d images are in none of the lists %s and are left out", num_all - len(names), options.split_lists
            )
    # With given lists only their images need a value in the table; otherwise all do before they are split.
    groups = _groups(reader, names, options, problems)
    names = [name for name in names if groups is None or name in groups]
    _check_some(names, problems)
    takes_given = options.split_lists is not None or (options.folds is None and options.fractions is None)
    if takes_given and parts is not None:
        chosen = _restricted(parts, set(names))
    elif options.folds is not None:
        folds = split_folds(names, options.folds, seed=options.seed, groups=groups)
        chosen = {}
        for number, fold in enumerate(folds):
            others = sorted(name for other in folds if other is not fold for name in other)
            chosen[f"fold{number}_train"], chosen[f"fold{number}_val"] = others, fold
    else:
        chosen = split_fractions(names, options.fractions or DEFAULT_FRACTIONS, seed=options.seed, groups=groups)
    if reader.unlabelled:
        chosen[UNLABELLED] = list(reader.unlabelled)
    return chosen, groups or {}


def _groups(
    reader: Reader, names: Sequence[str], options: PrepareOptions, problems: list[str]
) -> dict[str, str] | None:
    """Return image name -> value of the column to stratify by, or None without one."""
    column = options.stratify_by
    if options.table is not None and column is not None:
        values = ImageColumn(options.table, options.key, column, problems)
        groups = {}
        for name in names:
            try:
                groups[name] = values.of_image(reader, name)
            except DataError as error:
                problems.append(str(error))
        return groups
    in_tables = (*options.classes_from, options.pixel_size)
    if options.key is not None and options.table is None and not any(word.startswith("csv:") for word in in_tables):
        raise DataError("--key COLUMN needs --table CSV: it is the table's column of image names")
    column = column or reader.stratify_by
    if column is None:
        return None
    if column not in reader.columns:
        own = f"; without a table expected one of {', '.join(reader.columns)}" if reader.columns else ""
        raise DataError(f"--stratify-by {column} needs --table CSV with this column{own}")
    return dict(reader.columns[column])


# Repair before writing.


def repair_images(
    images: Mapping[str, LabelledImage], groups: Mapping[str, str], class_names: Sequence[str], rules: RepairRules
) -> tuple[dict[str, LabelledImage], list[Change]]:
    """Return the images with repaired masks, and the changes; crowd regions are unchanged.

    groups: image name -> group, for `kind_field=group`. In the list of changes an annotation is identified by its
    1-based number in the image. Raises DataError if no image has the field with the kind.
    """
    is_group = rules.kind_field == "group"
    kinds = {
        name: groups.get(name) if is_group else image.fields.get(rules.kind_field) for name, image in images.items()
    }
    rules.check_kinds(kinds.values())
    repaired: dict[str, LabelledImage] = {}
    changes: list[Change] = []
    for name, image in ProgressBar(images.items(), desc="repairing", unit="image"):
        found = image.objects
        is_crowd, classes = np.array(found.crowd, dtype=bool), np.array(found.classes, dtype=np.int64)
        objects, crowd = np.flatnonzero(~is_crowd), np.flatnonzero(is_crowd)
        masks = ImageMasks(
            file_name=image.file_name,
            rles=[found.rles[index] for index in objects],
            classes=classes[objects],
            names=(objects + 1).tolist(),
            class_names=class_names,
            allowed=rules.allowed_classes(kinds[name], class_names),
        )
        result = repair_image(masks, rules)
        # Crowd regions keep their position among the others.
        order = np.argsort(np.concatenate([objects[result.origins], crowd]), kind="stable")
        rles = [*result.rles, *(found.rles[index] for index in crowd)]
        new = FoundObjects(
            [rles[index] for index in order],
            np.concatenate([result.classes, classes[crowd]])[order].tolist(),
            crowd=(order >= len(result.rles)).tolist(),
        )
        repaired[name] = dataclasses.replace(image, objects=new)
        changes += result.changes
    return repaired, changes


# Output.


def _write_part(
    part: str,
    images: Sequence[LabelledImage],
    groups: Mapping[str, str],
    class_names: Sequence[str],
    reader: Reader,
    options: PrepareOptions,
) -> None:
    rows: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, start=1):
        row = {"id": image_id, "file_name": image.file_name, "height": image.height, "width": image.width}
        rows.append({**row, **image.fields, **({"group": groups[image.name]} if image.name in groups else {})})

    def annotations() -> Iterator[dict[str, Any]]:
        first_id = 1
        for image_id, image in enumerate(images, start=1):
            found = image.objects
            ids = [index + 1 for index in found.classes]
            yield from annotations_of(found.rles, ids, image_id=image_id, first_id=first_id, crowd=found.crowd)
            first_id += len(found.rles)

    # INPUT keys on channels and scaling for the COCO file's info: those of the user take precedence over the data's.
    keys = {**reader.input_keys, **options.input_keys}
    root = image_root_for(reader.files.image_root(options.output), options.output)
    write_coco(
        options.output / f"{part}.json",
        images=rows,
        annotations=annotations(),
        categories=[{"id": number, "name": name} for number, name in enumerate(class_names, start=1)],
        info={"description": reader.description, "image_root": root, **({INPUT_FIELD: keys} if keys else {})},
        overwrite=options.overwrite,
    )
    if options.write_lists:
        _write_lines(options.output / f"{part}.txt", [image.name for image in images])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    write_output(path, "".join(f"{line}\n" for line in lines), "the list")


def summary_table(
    parts: Mapping[str, Sequence[str]],
    images: Mapping[str, LabelledImage],
    groups: Mapping[str, str],
    output: Path,
) -> str:
    """Return a table of images, objects and sizes for every part, and for every group in it, with its file."""

    def numbers(names: Sequence[str]) -> tuple[str, str, str, str]:
        """Number of images and objects, range of objects per image, range of sizes."""
        if not names:
            return "0", "0", "", ""
        counts = [sum(not is_crowd for is_crowd in images[name].objects.crowd) for name in names]
        sizes = np.array([(images[name].height, images[name].width) for name in names])
        least, most = sizes.min(axis=0), sizes.max(axis=0)
        size = f"{least[0]} x {least[1]}"
        if (least != most).any():
            size = f"{least[0]}-{most[0]} x {least[1]}-{most[1]}"
        return str(len(names)), str(sum(counts)), f"{min(counts)}-{max(counts)}", size

    rows = [("part", "group", "images", "objects", "per image", "height x width", "file")]
    for part, names in parts.items():
        rows.append((part, "", *numbers(names), f"{output / part}.json"))
        for group in sorted({groups[name] for name in names if name in groups}):
            rows.append(("", group, *numbers([name for name in names if groups.get(name) == group]), ""))
    return text_table(rows, left=(0, 1, 5, 6))
