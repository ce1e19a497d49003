"""A column of a CSV that has a row an image, or a row an object."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from detseg.errors import DataError
from detseg.files.table import read_table
from detseg.formats.reader import Reader


class ImageColumn:
    """The values of a column by what the table calls the images: with or without folder and ending.

    per_object: whether it has a row an object, with a column `object_column` that says which.
    """

    def __init__(
        self, path: Path, key: str | None, column: str, problems: list[str], *, object_column: str | None = None
    ) -> None:
        """Read the column. key: the column of image names, None for the first.

        Broken rows, and a second value of a name, go to `problems`. Raises DataError where the file or a column is
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
        """Return the value of the first of the names that has one, "" where none has. label: of the object."""
        places = ((name, label if self.per_object else "") for name in names)
        return next((self._values[place] for place in places if self._values.get(place)), "")

    def of_image(self, reader: Reader, name: str) -> str:
        """Return the value of an image. Raises DataError where the table has none."""
        value = self.find(reader.aliases(name))
        if not value:
            raise DataError(f"{reader.describe(name)}: {self.path} has no {self.column} for it")
        return value
