"""What the user says of the images: pixel size, channels and scaling."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detseg.config import get_default_config
from detseg.config.problems import Problems
from detseg.data.preprocess import ImagePreprocess
from detseg.errors import DataError
from detseg.formats.image_column import ImageColumn
from detseg.formats.reader import LabelledImage, Reader
from detseg.structures.pixel_size import FIELD, parse_pixel_size_text, pixel_size_field


def input_keys(
    channels: Sequence[str] | None,
    scaling: str | None,
    percentiles: Sequence[float] | None,
    scaling_range: Sequence[float] | None,
) -> dict[str, Any]:
    """Return the INPUT keys of what a user typed. Raises DetsegError where they make no sense."""
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
        raise DataError("--scaling fixed takes --scaling-range LOW HIGH too: the intensities that become 0 and 255")
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
    """Return the images that have the channels that the INPUT keys name.

    Images whose files name their channels otherwise become `problems` and go. Files without names stay: the COCO file
    may get them later.
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
    """Return the images with the pixel size that the user gives, in the place of what their files say.

    text: micrometres ("0.5", or "0.5 0.4" for y and x), or csv:FILE:COLUMN, a table with a row an image; key: its
    column of image names, None: the first. Images that the table does not have, or no size for, become `problems` and
    go.
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
