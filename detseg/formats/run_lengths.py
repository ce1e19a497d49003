"""Run-lengths as competitions write them: pairs "start length", the first pixel is 1, read by columns or by rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.files.atomic import written_whole
from detseg.files.table import Row, Table
from detseg.formats.objects import ImageObjects
from detseg.structures import rle as rle_codec
from detseg.structures.rle import Runs

# Digits beyond this are no position in any image; int64 holds them.
_NUMBER = re.compile(r"[0-9]{1,15}")

Encoder = Callable[[Sequence[tuple[np.ndarray, np.ndarray]], int, int], list[dict[str, Any]]]


def parse_pairs(text: str, num_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the runs of one mask.

    Returns:
        starts, ends: (R,) int64 positions from 0 on, half-open, ascending.

    Raises:
        DataError: what is no number, an odd count, runs outside of 1..num_pixels, empty, descending or overlapping.
    """
    words = text.split()
    if not words:
        raise DataError("the mask is empty (no run-lengths); remove the row, or draw the object")
    for word in words:
        if not _NUMBER.fullmatch(word):
            raise DataError(f"{word[:30]!r} is no run-length; expected pairs of whole numbers, start and length")
    if len(words) % 2:
        raise DataError(f"{len(words)} run-lengths; expected pairs, start and length: is the row cut off?")
    numbers = np.array(words, dtype=np.int64)
    starts, lengths = numbers[0::2] - 1, numbers[1::2]
    ends = starts + lengths
    _check(starts, lengths, ends, num_pixels)
    return starts, ends


def _check(starts: np.ndarray, lengths: np.ndarray, ends: np.ndarray, num_pixels: int) -> None:
    def first(wrong: np.ndarray) -> str | None:
        """Return the first wrong run as the file has it, or None."""
        index = np.flatnonzero(wrong)
        return f"{starts[index[0]] + 1} {lengths[index[0]]}" if len(index) else None

    if run := first(starts < 0):
        raise DataError(f"the run {run} starts before the first pixel, which is 1")
    if run := first(lengths < 1):
        raise DataError(f"the run {run} has no length; expected 1 or more")
    if run := first(ends > num_pixels):
        raise DataError(f"the run {run} leaves the image, which has {num_pixels} pixels: was it made for another size?")
    if run := first(np.append(False, starts[1:] < starts[:-1])):
        raise DataError(f"the run {run} starts before the one in front of it; expected ascending starts")
    if run := first(np.append(False, starts[1:] < ends[:-1])):
        raise DataError(f"the run {run} overlaps the one in front of it")


def encode_by_columns(masks: Sequence[tuple[np.ndarray, np.ndarray]], height: int, width: int) -> list[dict[str, Any]]:
    """Return N COCO RLEs of masks given by runs that go down the columns, as those of COCO itself do."""
    return rle_codec.encode_runs(_join(masks, height, width), height, width)


def encode_by_rows(masks: Sequence[tuple[np.ndarray, np.ndarray]], height: int, width: int) -> list[dict[str, Any]]:
    """Return N COCO RLEs of masks given by runs that go along the rows.

    By columns these are the runs of the transposed image; its crops are transposed, so that nothing as large as the
    image is made for a mask, and masks may overlap.
    """
    crops = rle_codec.crops_of(_join(masks, width, height))
    return rle_codec.encode_crops([(crop.T, y0, x0) for crop, x0, y0 in crops], height, width)


def _join(masks: Sequence[tuple[np.ndarray, np.ndarray]], height: int, width: int) -> Runs:
    nothing = np.zeros(0, dtype=np.int64)
    return Runs(
        starts=np.concatenate([nothing, *(starts for starts, _ in masks)]),
        ends=np.concatenate([nothing, *(ends for _, ends in masks)]),
        owners=np.repeat(np.arange(len(masks)), [len(starts) for starts, _ in masks]),
        heights=np.full(len(masks), height, dtype=np.int64),
        widths=np.full(len(masks), width, dtype=np.int64),
    )


# The rows of a CSV of masks: by image, checked, and from run-lengths to COCO RLEs.


class MaskRows:
    """A table with one row a mask.

    key, runs: its columns of image names and of run-lengths. size: its columns of height and width, where it has them;
    every row must say the size of the image. allow_empty: an image without a row has no objects; else it is a problem.
    """

    def __init__(
        self, table: Table, *, key: str, runs: str, size: tuple[str, str], encode: Encoder, allow_empty: bool = False
    ) -> None:
        self.table = table
        self._allow_empty = allow_empty
        self.key = key
        self._runs = runs
        self._size = size if set(size) <= set(table.columns) else None
        self._encode = encode
        self.rows_of: dict[str, list[Row]] = {}
        for row in table.rows:
            self.rows_of.setdefault(row.values[key], []).append(row)

    def where(self, row: Row) -> str:
        """Return what messages call a row."""
        return f"{self.table.name}: line {row.line} (image {row.values[self.key]})"

    def missing(self, names: Sequence[str], folder: str) -> list[str]:
        """Return the problems of images that rows name and that are not in `names`."""
        known = set(names)
        return [
            f"{self.where(rows[0])}: there is no image of this name in {folder}"
            + (f" ({len(rows)} rows)" if len(rows) > 1 else "")
            for name, rows in self.rows_of.items()
            if name not in known
        ]

    def read(self, name: str, height: int, width: int) -> tuple[list[dict[str, Any]], list[Row], list[str]]:
        """Read the masks of an image of height x width pixels.

        A single row without run-lengths is an image without objects.

        Returns:
            N compressed COCO RLEs, their rows, and what is wrong with the other rows.

        Raises:
            DataError: the image has no row, unless `allow_empty`, or none that can be used: to train on it would teach
                that it is empty.
        """
        rows = self.rows_of.get(name, [])
        if not rows and not self._allow_empty:
            raise DataError(
                f"image {name}: {self.table.name} has no row for it; is the table whole? Where images without objects "
                "have no row, pass --allow-empty"
            )
        if not rows or (len(rows) == 1 and not rows[0].values[self._runs]):
            return [], [], []
        masks, good, problems = [], [], []
        for row in rows:
            try:
                self._check_size(row, height, width)
                masks.append(parse_pairs(row.values[self._runs], height * width))
                good.append(row)
            except DataError as error:
                problems.append(f"{self.where(row)}: {error}")
        if not good:
            raise DataError(f"image {name}: none of its {len(rows)} masks can be used; {problems[0]}")
        return self._encode(masks, height, width), good, problems

    def _check_size(self, row: Row, height: int, width: int) -> None:
        if self._size is None:
            return
        said = [row.values[column] for column in self._size]
        if said != [str(height), str(width)]:
            raise DataError(
                f"was made for {said[0]!r} x {said[1]!r} pixels (height x width), but the image has {height} x {width}"
            )


# Competitions' tables of run-lengths, as training annotations: the Sartorius train.csv and that of the DSB 2018.

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
