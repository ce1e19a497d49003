"""Competitions' tables of run-lengths, as training annotations: the Sartorius train.csv and that of the DSB 2018."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from detseg.data.writers.objects import ImageObjects
from detseg.errors import DataError
from detseg.structures import rle as rle_codec
from detseg.structures.atomic_write import written_whole

SARTORIUS_COLUMNS = (
    *("id", "annotation", "width", "height", "cell_type"),
    *("plate_time", "sample_date", "sample_id", "elapsed_timedelta"),
)
DSB2018_COLUMNS = ("ImageId", "EncodedPixels")


def write_sartorius(path: Path, images: Iterable[ImageObjects], class_names: Sequence[str]) -> None:
    """Write train.csv: a row an object, runs along the rows; plate_time and the like where the images have them.

    As in the competition, an image is known by its name without folder and suffix; images and masks without a pixel
    have no row.
    An existing file is replaced.

    Raises DataError where two images have one name.
    """
    _write(path, SARTORIUS_COLUMNS, _sartorius_rows(images, class_names))


def _sartorius_rows(images: Iterable[ImageObjects], class_names: Sequence[str]) -> Iterator[list[str]]:
    for objects, name in _named(images):
        further = [str(objects.fields.get(column, "")) for column in SARTORIUS_COLUMNS[5:]]
        for crop, class_index in zip(rle_codec.decode_crops(objects.rles), objects.classes, strict=True):
            runs = encode_pairs(*crop, objects.width)
            if not runs:
                continue
            yield [name, runs, str(objects.width), str(objects.height), class_names[class_index], *further]


def write_dsb2018(path: Path, images: Iterable[ImageObjects], class_names: Sequence[str]) -> None:
    """Write stage1_train_labels.csv: a row an object, runs down the columns; it has no classes.

    Names and images without objects as in `write_sartorius`. An existing file is replaced.
    """
    _write(path, DSB2018_COLUMNS, _dsb2018_rows(images))


def _dsb2018_rows(images: Iterable[ImageObjects]) -> Iterator[list[str]]:
    for objects, name in _named(images):
        for crop, x0, y0 in rle_codec.decode_crops(objects.rles):
            runs = encode_pairs(crop.T, y0, x0, objects.height)
            if runs:
                yield [name, runs]


def encode_pairs(crop: np.ndarray, x0: int, y0: int, width: int) -> str:
    """Return a mask as pairs "start length", the first pixel is 1, along the rows of an image `width` pixels wide.

    crop: (h, w) bool, whose upper left lies at (x0, y0). For runs down the columns give its transpose, y0, x0 and the
    height.
    """
    rows, columns = np.nonzero(crop)
    places = (rows + y0) * width + columns + x0 + 1
    breaks = np.flatnonzero(np.diff(places) > 1) + 1
    starts = places[np.append(0, breaks)] if len(places) else places
    lengths = np.diff(np.concatenate([[0], breaks, [len(places)]])) if len(places) else places
    return " ".join(map(str, np.stack([starts, lengths], axis=1).ravel().tolist()))


def _named(images: Iterable[ImageObjects]) -> Iterator[tuple[ImageObjects, str]]:
    """Yield images with their names in the table."""
    seen: dict[str, str] = {}
    for objects in images:
        name = PurePosixPath(objects.file_name.replace("\\", "/")).stem
        other = seen.setdefault(name, objects.file_name)
        if other != objects.file_name:
            raise DataError(
                f"{other} and {objects.file_name} would both be called {name!r} in the table; rename one of the images"
            )
        yield objects, name


def _write(path: Path, columns: Sequence[str], rows: Iterable[list[str]]) -> None:
    with (
        written_whole(path, "the table") as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
