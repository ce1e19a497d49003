"""The rows of a CSV of masks: by image, checked, and from run-lengths to COCO RLEs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detseg.data.readers.run_lengths import Encoder, parse_pairs
from detseg.data.readers.table import Row, Table
from detseg.errors import DataError


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
