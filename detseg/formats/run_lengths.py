"""Run-lengths of competitions: pairs "start length", the first pixel is 1, in row-major or column-major order.

`read_pairs` and `to_rles` read them, `to_texts` writes them; `MaskTable` reads tables of them, `write_mask_table`
writes these; for submissions see `detseg.submission`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.files.table import Row, Table, write_csv
from detseg.formats.objects import ImageObjects
from detseg.formats.reader import FoundObjects
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import crops_of_runs
from detseg.structures.runs import Runs

# More digits are no position in any image, and up to this many fit into int64.
_NUMBER = re.compile(r"[0-9]{1,15}")


def read_pairs(text: str, num_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the runs of one mask.

    Returns:
        starts, ends: (R,) int64 positions 0-based, half-open, ascending.

    Raises:
        DataError: not a number, an odd count, or runs that are outside 1..num_pixels, empty, descending or overlapping.
    """
    words = text.split()
    if not words:
        raise DataError("the mask is empty (no run-lengths); remove the row, or draw the object")
    for word in words:
        if not _NUMBER.fullmatch(word):
            raise DataError(f"{word[:30]!r} is not a run-length; expected pairs of whole numbers, start and length")
    if len(words) % 2:
        raise DataError(f"{len(words)} run-lengths; expected pairs of start and length; the row may be truncated")
    numbers = np.array(words, dtype=np.int64)
    starts, lengths = numbers[0::2] - 1, numbers[1::2]
    ends = starts + lengths
    for wrong, reason in (
        (starts < 0, "starts before the first pixel, which is 1"),
        (lengths < 1, "has no length; expected 1 or more"),
        (ends > num_pixels, f"exceeds the image, which has {num_pixels} pixels; it may be for another size"),
        (np.append(False, starts[1:] < starts[:-1]), "starts before the previous one; expected ascending starts"),
        (np.append(False, starts[1:] < ends[:-1]), "overlaps the previous one"),
    ):
        index = np.flatnonzero(wrong)
        if len(index):
            raise DataError(f"the run {starts[index[0]] + 1} {lengths[index[0]]} {reason}")
    return starts, ends


def to_rles(
    masks: Sequence[tuple[np.ndarray, np.ndarray]], height: int, width: int, *, by_rows: bool
) -> list[dict[str, Any]]:
    """Return the COCO RLEs of N masks given by their `read_pairs`; the masks may overlap.

    by_rows: runs are in row-major order, else column-major like COCO's.
    """
    nothing = np.zeros(0, dtype=np.int64)
    # Runs in row-major order are column-major runs of the transposed image.
    sides = (width, height) if by_rows else (height, width)
    runs = Runs(
        starts=np.concatenate([nothing, *(starts for starts, _ in masks)]),
        ends=np.concatenate([nothing, *(ends for _, ends in masks)]),
        owners=np.repeat(np.arange(len(masks)), [len(starts) for starts, _ in masks]),
        heights=np.full(len(masks), sides[0], dtype=np.int64),
        widths=np.full(len(masks), sides[1], dtype=np.int64),
    )
    if not by_rows:
        return rle_codec.encode_runs(runs)
    return rle_codec.encode_crops([(crop.T, y0, x0) for crop, x0, y0 in crops_of_runs(runs)], height, width)


def to_texts(rles: Sequence[dict[str, Any]], height: int, width: int, *, by_rows: bool) -> list[str]:
    """Return N masks as pairs "start length", "" for one without pixels."""
    if by_rows:
        rles = rle_codec.transpose_rles(rles, height, width)
    else:
        # RLEs of other programs may split one run into several.
        rles = rle_codec.encode_runs(rle_codec.read_runs(rles))
    runs = rle_codec.read_runs(rles)
    pairs = np.stack([runs.starts + 1, runs.ends - runs.starts], axis=1)
    return [" ".join(map(str, pairs[a:b].ravel().tolist())) for a, b in itertools.pairwise(runs.bounds)]


def competition_name(file_name: str) -> str:
    """Return the name of an image in competitions: its file name without folder and suffix."""
    return PurePosixPath(file_name.replace("\\", "/")).stem


class MaskTable:
    """A table with one row per mask, as training annotations.

    key, runs: its columns with image names and run-lengths. size: its columns with height and width, checked against
    the image if present. allow_empty: an image without a row has no objects; otherwise it is a problem.
    """

    def __init__(
        self, table: Table, *, key: str, runs: str, size: tuple[str, str], by_rows: bool, allow_empty: bool
    ) -> None:
        self.table, self._key, self._runs, self._by_rows, self._allow_empty = table, key, runs, by_rows, allow_empty
        self._size = size if set(size) <= set(table.columns) else None
        self.rows_of: dict[str, list[Row]] = {}
        for row in table.rows:
            self.rows_of.setdefault(row.values[key], []).append(row)

    def _where(self, row: Row) -> str:
        return f"{self.table.name}: line {row.line} (image {row.values[self._key]})"

    def missing(self, names: Iterable[str], folder: str) -> list[str]:
        """Return problems for images in rows that are not in `names`."""
        known = set(names)
        return [
            f"{self._where(rows[0])}: there is no image of this name in {folder}"
            + (f" ({len(rows)} rows)" if len(rows) > 1 else "")
            for name, rows in self.rows_of.items()
            if name not in known
        ]

    def find_objects(
        self, name: str, height: int, width: int, class_of: Callable[[Row], int] = lambda row: 0
    ) -> FoundObjects:
        """Read the masks of an image of height x width pixels.

        A single row without run-lengths is an image without objects. class_of: returns the class of a row, or raises
        DataError.

        Raises DataError if the image has no row, unless `allow_empty`: training would learn that it is empty.
        """
        rows = self.rows_of.get(name, [])
        if not rows and not self._allow_empty:
            raise DataError(
                f"image {name}: {self.table.name} has no row for it; the table may be incomplete. If images without "
                "objects have no row, give --allow-empty"
            )
        if len(rows) == 1 and not rows[0].values[self._runs]:
            return FoundObjects()
        masks, classes, problems = [], [], []
        for row in rows:
            try:
                said = [row.values[column] for column in self._size or ()]
                if self._size and said != [str(height), str(width)]:
                    raise DataError(
                        f"is for {said[0]!r} x {said[1]!r} pixels (height x width), but the image has {height} x "
                        f"{width}"
                    )
                mask, class_index = read_pairs(row.values[self._runs], height * width), class_of(row)
            except DataError as error:
                problems.append(f"{self._where(row)}: {error}")
                continue
            masks.append(mask)
            classes.append(class_index)
        return FoundObjects(to_rles(masks, height, width, by_rows=self._by_rows), classes, problems=problems)


def write_mask_table(
    path: Path,
    columns: Sequence[str],
    images: Iterable[ImageObjects],
    row_of: Callable[[ImageObjects, int, str, str], Sequence[str]],
    *,
    by_rows: bool,
) -> None:
    """Write a table with a row per object; images without objects and empty masks have no row. An existing file is
    replaced.

    row_of: image, index of the object, name of the image in the table and run-lengths -> the row's fields.

    Raises DataError if two images have the same name.
    """

    def rows() -> Iterator[Sequence[str]]:
        seen: dict[str, str] = {}
        for objects in images:
            name = competition_name(objects.file_name)
            other = seen.setdefault(name, objects.file_name)
            if other != objects.file_name:
                raise DataError(
                    f"{other} and {objects.file_name} would both have the name {name!r} in the table; rename one of "
                    "them"
                )
            texts = to_texts(objects.rles, objects.height, objects.width, by_rows=by_rows)
            yield from (row_of(objects, index, name, runs) for index, runs in enumerate(texts) if runs)

    write_csv(path, itertools.chain([columns], rows()), "the table")
