"""A column of a CSV with a row per image, or a row per object."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from detseg.config import get_default_config
from detseg.config.options import Problems
from detseg.data.preprocess import ImagePreprocess
from detseg.errors import DataError
from detseg.files.table import read_table
from detseg.formats.reader import LabelledImage, Reader
from detseg.structures.sample import FIELD, parse_pixel_size_text, pixel_size_field

logger = logging.getLogger(__name__)


class ImageColumn:
    """The values of a column by image name in the table: with or without folder and suffix.

    per_object: whether it has a row per object, identified by a column `object_column`.
    """

    def __init__(
        self, path: Path, key: str | None, column: str, problems: list[str], *, object_column: str | None = None
    ) -> None:
        """Read the column. key: the column of image names, None for the first.

        Invalid rows, and a second value for a name, go to `problems`. Raises DataError if the file or a column is
        missing.
        """
        self.path, self.column = path, column
        table = read_table(path, [column] if key is None else [key, column])
        key = key or table.columns[0]
        self.per_object = object_column in table.columns and object_column not in (key, column)
        self._values: dict[tuple[str, str], str] = {}
        problems += table.problems
        for row in table.rows:
            place = (row.values[key], row.values[str(object_column)] if self.per_object else "")
            value, other = row.values[column], self._values.setdefault(place, row.values[column])
            if value != other:
                name = " ".join(place).strip()
                problems.append(f"{path}: line {row.line}: {name} has two values, {other} and {value}")

    def find(self, names: Iterable[str], label: str = "") -> str:
        """Return the value of the first of the names with one, "" if none has. label: of the object."""
        places = ((name, label if self.per_object else "") for name in names)
        return next((self._values[place] for place in places if self._values.get(place)), "")

    def of_file(self, file_name: str) -> str:
        """Return the value of an image by its path, with or without folder and suffix; "" if there is none."""
        path = PurePosixPath(file_name.replace("\\", "/"))
        return self.find([file_name, str(path), str(path.with_suffix("")), path.name, path.stem])

    def of_image(self, reader: Reader, name: str) -> str:
        """Return the value of an image. Raises DataError if the table has none."""
        value = self.find(reader.aliases(name))
        if not value:
            raise DataError(f"{reader.describe(name)}: {self.path} has no {self.column} for it")
        return value


# Fields that other commands read as numbers or structures, which strings from a table cannot set.
_WITH_MEANING = {"id", "file_name", "height", "width", "fold", "plane", FIELD, "object_diameter", "channel_names"}


def columns_of_images(
    path: Path, key: str | None, reader: Reader, names: Sequence[str], problems: list[str]
) -> dict[str, dict[str, str]]:
    """Return column -> image name -> value: the image data of a table, to be kept as image fields.

    Left out are empty cells, columns with several values for an image (they refer to objects), and columns whose names
    have another meaning in a COCO file. Invalid rows go to `problems`; images without a row give a warning. Raises
    DataError if the table is missing or has none of the images. key: the column of image names, None for the first.
    """
    table = read_table(path, [] if key is None else [key])
    key = key or table.columns[0]
    problems += table.problems
    rows: dict[str, list[Mapping[str, str]]] = {}
    for row in table.rows:
        rows.setdefault(row.values[key], []).append(row.values)
    columns: dict[str, dict[str, str]] = {name: {} for name in table.columns if name not in {"", key, *_WITH_MEANING}}
    lacking = []
    for name in names:
        own = next((rows[alias] for alias in reader.aliases(name) if alias in rows), None)
        if own is None:
            lacking.append(reader.describe(name))
            continue
        for column in list(columns):
            values = {values[column] for values in own} - {""}
            if len(values) > 1:
                del columns[column]
            elif values:
                columns[column][name] = values.pop()
    if lacking and len(lacking) == len(names):
        names_there = ", ".join(map(repr, list(rows)[:3])) or "no rows"
        raise DataError(
            f"{path}: has none of the images: its column {key!r} has {names_there}, an image is {lacking[0]}; select "
            "another column with --key"
        )
    if lacking:
        logger.warning("%s has no row for %d of %d images, for example %s", path, len(lacking), len(names), lacking[0])
    return columns


# Image properties given by the user: pixel size, channels and scaling.


def input_keys(
    channels: Sequence[str] | None,
    scaling: str | None,
    percentiles: Sequence[float] | None,
    scaling_range: Sequence[float] | None,
) -> dict[str, Any]:
    """Return the INPUT keys for command-line values. Raises DetsegError if they are invalid."""
    keys: dict[str, Any] = {}
    if channels:
        keys["INPUT.CHANNELS"] = [int(one) if one.isascii() and one.isdigit() else one for one in channels]
    if scaling:
        keys["INPUT.SCALING"] = scaling
    for name, kind, values in (("PERCENTILES", "percentile", percentiles), ("RANGE", "fixed", scaling_range)):
        if values is not None and scaling != kind:
            raise DataError(f"--scaling-{name.lower()} takes --scaling {kind} too")
        if values is not None:
            keys[f"INPUT.SCALING_{name}"] = [float(value) for value in values]
    if scaling == "fixed" and scaling_range is None:
        raise DataError("--scaling fixed needs --scaling-range LOW HIGH: the intensities that become 0 and 255")
    cfg = get_default_config()
    for name, value in keys.items():
        cfg.set(name, value, origin="command line")
    problems = Problems(cfg)
    for name in keys:
        ImagePreprocess.rules()[name].check(problems, name)
    problems.raise_if_any()
    return keys


def with_known_channels(
    images: Mapping[str, LabelledImage], reader: Reader, keys: Mapping[str, Any], problems: list[str]
) -> dict[str, LabelledImage]:
    """Return the images that have the channels in the INPUT keys.

    Images whose files have other channel names become `problems` and are removed. Files without names are kept: they
    may get names in the COCO file later.
    """
    chosen = [one for one in keys.get("INPUT.CHANNELS", ()) if isinstance(one, str)]
    known = {}
    for name, image in images.items():
        own = image.fields.get("channel_names")
        missing = [one for one in chosen if own and one not in own]
        if missing:
            problems.append(
                f"{reader.describe(name)}: has no channel {missing[0]!r} (--channels); it has {', '.join(own)}"
            )
        else:
            known[name] = image
    return known


def with_pixel_sizes(
    images: Mapping[str, LabelledImage], reader: Reader, text: str, key: str | None, problems: list[str]
) -> dict[str, LabelledImage]:
    """Return the images with the pixel size given by the user, which overrides that in their files.

    text: micrometres ("0.5", or "0.5 0.4" for y and x), or csv:FILE:COLUMN, a table with a row per image; key: its
    column of image names, None: the first. Images that are not in the table, or have no size there, become `problems`
    and are removed.
    """
    column = None
    if text.startswith("csv:"):
        path, _, column_name = text.removeprefix("csv:").rpartition(":")
        if not path or not column_name:
            raise DataError(f"--pixel-size {text}: expected micrometres, or csv:FILE:COLUMN")
        column = ImageColumn(Path(path), key, column_name, problems)
    else:
        size = pixel_size_field(parse_pixel_size_text(text, "--pixel-size"))
    sized = {}
    for name, image in images.items():
        try:
            if column is not None:
                said = column.of_image(reader, name)
                size = pixel_size_field(parse_pixel_size_text(said, f"{column.path}: {name}: {column.column}"))
            sized[name] = dataclasses.replace(image, fields={**image.fields, FIELD: size})
        except DataError as error:
            problems.append(str(error))
    return sized
