"""CSV files with any usual separator, with problems reported by line; and tables as text."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from detseg.errors import DataError
from detseg.files.atomic import written_whole
from detseg.files.names import from_cell, printable, to_cell
from detseg.files.reading import check_regular, unpacked_limit

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "or tabs"}


@dataclass(frozen=True)
class Row:
    """One row: its (last) line number in the file, counted from 1, and column -> text, stripped."""

    line: int
    values: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A CSV file. problems: messages on the rows with the wrong number of fields, which are not in `rows`."""

    name: str
    columns: list[str]
    rows: list[Row]
    problems: list[str]


def read_table(path: Path, wanted: Sequence[str]) -> Table:
    """Read a CSV file, or a zip archive of one, that must have the columns `wanted`.

    Raises DataError if the file is missing, is not a table or lacks a column.
    """
    check_regular(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such table") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    return parse_table(_unpack(data, path), str(path), wanted)


def _unpack(data: bytes, path: Path) -> bytes:
    """Return the only CSV file in a zip archive; other data are returned unchanged."""
    if not data.startswith(b"PK\x03\x04"):
        return data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [name for name in archive.namelist() if name.lower().endswith(".csv") and "__MACOSX" not in name]
            if len(members) != 1:
                raise DataError(f"{path}: expected one CSV file in the archive, found {len(members)}; unpack it")
            size, limit = archive.getinfo(members[0]).file_size, unpacked_limit(len(data))
            if size > limit:
                raise DataError(f"{path}: {members[0]} unpacks to {size} bytes, the limit is {limit}; unpack it")
            return archive.read(members[0])
    except DataError:
        raise
    except Exception as error:  # for a broken member zipfile raises RuntimeError, zlib.error, struct.error, ...
        raise DataError(f"{path}: the zip archive cannot be read ({error}); download it again") from None


def parse_table(data: bytes, name: str, wanted: Sequence[str]) -> Table:
    """Parse the bytes of a CSV file like `read_table`. The separator is the one that yields the wanted columns."""
    text = _decode(data, name)
    if not text.strip():
        raise DataError(f"{name}: the table is empty; expected a first line with the columns {', '.join(wanted)}")
    with _long_fields():
        headers = {separator: _header(text, separator) for separator in SEPARATORS}
        fitting = [separator for separator, columns in headers.items() if set(wanted) <= set(columns)]
        if fitting:
            # A table of one column needs no separator; otherwise the wrong separators find a single column.
            separator = max(fitting, key=lambda separator: len(headers[separator]))
            return _read_rows(text, separator, name, wanted)
    columns = max(headers.values(), key=len)
    missing = [column for column in wanted if column not in columns]
    raise DataError(
        f"{name}: line 1: there is no column {', '.join(map(repr, missing))}; columns are: {', '.join(columns)} "
        f"(expected {', '.join(SEPARATORS.values())} between them)"
    )


def _header(text: str, separator: str) -> list[str]:
    """Return the columns of the first non-blank line, split at this separator."""
    first = next(line for line in text.splitlines() if line.strip())
    return [column.strip() for column in next(csv.reader([first], delimiter=separator))]


def _decode(data: bytes, name: str) -> str:
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{name}: line {line}: cannot be read as CSV in UTF-8 ({error.reason}); save it in that encoding"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{name}: line {line}: contains a NUL character, so it is not text; save it as CSV in UTF-8")
    return text


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters per field: the run lengths of an object may be longer."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _lines(text: str, separator: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and fields of every row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(
            f"{name}: line {reader.line_num}: is not CSV ({error}); look for a stray quotation mark"
        ) from None


def _read_rows(text: str, separator: str, name: str, wanted: Sequence[str]) -> Table:
    lines = _lines(text, separator, name)
    columns = [column.strip() for column in next(lines)[1]]
    twice = [column for column in wanted if columns.count(column) > 1]
    if twice:
        raise DataError(f"{name}: line 1: the column {twice[0]!r} occurs twice; rename or remove one of them")
    rows, problems = [], []
    for line, fields in lines:
        if len(fields) != len(columns):
            problems.append(f"{name}: line {line}: has {len(fields)} fields; expected {len(columns)}, as columns")
            continue
        values = {column: from_cell(field.strip()) for column, field in zip(columns, fields, strict=True)}
        rows.append(Row(line, values))
    return Table(name, columns, rows, problems)


def text_table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return rows of text as an aligned table: the columns `left` left-aligned, the others, numbers, right-aligned."""
    rows = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def write_csv(path: Path, rows: Iterable[Sequence[object]], what: str) -> None:
    """Write rows as a CSV file with formulas escaped (`to_cell`), replacing an existing file.

    Raises DataError, which names `what`, if it cannot be written.
    """
    with written_whole(path, what) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([to_cell(value) for value in row] for row in rows)
