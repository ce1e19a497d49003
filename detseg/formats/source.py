"""What a reader finds in a source, and what `prepare` makes COCO files of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from detseg.config import get_default_config
from detseg.config.problems import Problems
from detseg.data.preprocess import ImagePreprocess
from detseg.errors import DataError
from detseg.files.table import read_table
from detseg.images.planes import SINGLE, PlaneChoice
from detseg.structures.pixel_size import FIELD, parse_pixel_size_text, pixel_size_field


@dataclass(frozen=True)
class LabelledImage:
    """One image with its N objects.

    name: of the image in lists and tables. file_name: its path below the source's image root, with slashes. height,
    width: pixels. rles: N compressed COCO RLEs. classes: N class indices, 0-based; empty: all of class 0. fields:
    further fields of the image in the COCO file. crowd: N flags, True for a region to be ignored; empty: none. labels:
    what the source calls each object (its number in a label image, the name of its class); empty: as its class.
    """

    name: str
    file_name: str
    height: int
    width: int
    rles: list[dict[str, Any]]
    classes: Sequence[int] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    crowd: Sequence[bool] = ()
    labels: Sequence[str] = ()

    @property
    def class_of_each(self) -> Sequence[int]:
        """N class indices, 0-based."""
        return self.classes if len(self.classes) else [0] * len(self.rles)


class Source(Protocol):
    """A data set as it was downloaded.

    description: for the COCO file's info. class_names: of class 0, 1, ...; empty where the `labels` of objects are the
    names of their classes. names: of the images, each once, sorted. parts: the split that the data come with, part ->
    names, used where no other is asked for; None: they have none.
    unlabelled: names of images that nobody has labelled; they go to a file of their own. problems: found while listing.
    columns: column -> image name -> value, what the source itself says of its images. default_column: the one of them
    that splits are stratified by unless another is named, or None.

    A source whose files may hold several pictures has a `plane` too, a `planes.PlaneChoice` that is set before reading;
    one that carries INPUT keys has them as `input_keys` (see `data.input_keys`).
    """

    description: str
    class_names: Sequence[str]
    names: Sequence[str]
    parts: Mapping[str, Sequence[str]] | None
    unlabelled: Sequence[str]
    problems: Sequence[str]
    columns: Mapping[str, Mapping[str, str]]
    default_column: str | None

    def aliases(self, name: str) -> Sequence[str]:
        """Return what a table of the images may call one of them, the best first."""
        ...

    def describe(self, name: str) -> str:
        """Return what messages call the image."""
        ...

    def read(self, name: str) -> tuple[LabelledImage, list[str]]:
        """Read one image and its masks.

        Returns the image with its good masks, and what is wrong with the others. Raises DataError where nothing of the
        image can be used.
        """
        ...

    def image_root(self, output: Path) -> Path:
        """Return the folder that file names are relative to."""
        ...

    def check_target(self, images: Sequence[LabelledImage], output: Path, *, overwrite: bool) -> None:
        """Raise DataError where `provide` would replace files, unless `overwrite`."""
        ...

    def provide(self, images: Sequence[LabelledImage], output: Path) -> None:
        """Make the images lie below `image_root`."""
        ...


# What the user says of a source's images: which picture of a stack is meant, pixel size, channels and scaling.

_TABLE = "csv:"


@dataclass(frozen=True)
class PictureOptions:
    """What the user says of all images.

    plane: of files that hold several pictures. pixel_size: micrometres as a text ("0.5", or "0.5 0.4" for y and x), or
    csv:FILE:COLUMN, a table with a row an image; "": as the images' files say. input_keys: INPUT keys that the COCO
    files shall carry, see `input_keys`.
    """

    plane: PlaneChoice = SINGLE
    pixel_size: str = ""
    input_keys: Mapping[str, Any] = field(default_factory=dict)


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


def choose_plane_of(source: Source, plane: PlaneChoice) -> None:
    """Tell a source which picture of its files is meant. Raises DataError where it knows of single pictures alone."""
    if plane == SINGLE:
        return
    if not hasattr(source, "plane"):
        raise DataError(f"{source.description}: its files are single pictures; leave out --z, --t and --axes")
    source.plane = plane


def with_known_channels(
    images: Mapping[str, LabelledImage], source: Source, options: PictureOptions, problems: list[str]
) -> dict[str, LabelledImage]:
    """Return the images that have the channels that the user named.

    Images whose files name their channels otherwise become `problems` and go. Files without names stay: the COCO file
    may be told them later.
    """
    chosen = [one for one in options.input_keys.get("INPUT.CHANNELS", ()) if isinstance(one, str)]
    known = {}
    for name, image in images.items():
        own = image.fields.get("channel_names")
        missing = [one for one in chosen if own and one not in own]
        if missing:
            problems.append(
                f"{source.describe(name)}: has no channel {missing[0]!r} (--channels); it has {', '.join(own)}"
            )
        else:
            known[name] = image
    return known


def with_pixel_sizes(
    images: Mapping[str, LabelledImage], source: Source, options: PictureOptions, key: str | None, problems: list[str]
) -> dict[str, LabelledImage]:
    """Return the images with the pixel size that the user gives, in the place of what their files say.

    key: the table's column of image names, None: the first. Images that a table does not have, or no size for, become
    `problems` and go.
    """
    if not options.pixel_size:
        return dict(images)
    if not options.pixel_size.startswith(_TABLE):
        size = pixel_size_field(parse_pixel_size_text(options.pixel_size, "--pixel-size"))
        return {name: _with_size(image, size) for name, image in images.items()}
    path, _, column = options.pixel_size.removeprefix(_TABLE).rpartition(":")
    if not path or not column:
        raise DataError(f"--pixel-size {options.pixel_size}: expected micrometres, or csv:FILE:COLUMN")
    texts = _column(Path(path), key, column, problems)
    sized = {}
    for name, image in images.items():
        text = next((texts[alias] for alias in source.aliases(name) if texts.get(alias)), None)
        try:
            if text is None:
                raise DataError(f"{source.describe(name)}: {path} has no {column} for it")
            sized[name] = _with_size(image, pixel_size_field(parse_pixel_size_text(text, f"{path}: {name}: {column}")))
        except DataError as error:
            problems.append(str(error))
    return sized


def _column(path: Path, key: str | None, column: str, problems: list[str]) -> dict[str, str]:
    table = read_table(path, [column] if key is None else [key, column])
    problems += table.problems
    return {row.values[key or table.columns[0]]: row.values[column] for row in table.rows}


def _with_size(image: LabelledImage, size: float | list[float]) -> LabelledImage:
    return dataclasses.replace(image, fields={**image.fields, FIELD: size})
