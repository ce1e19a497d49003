"""The Sartorius cell instance segmentation competition: train.csv with run-lengths by rows, train/*.png, and more."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from detseg.errors import DataError
from detseg.files.table import Row, parse_table
from detseg.formats.run_lengths import MaskRows, encode_by_rows
from detseg.formats.source import LabelledImage
from detseg.formats.source_files import StoredImages, open_source
from detseg.images.reading import SUFFIXES, decode_image

CSV_NAME, LABELLED, UNLABELLED = "train.csv", "train", "train_semi_supervised"
KEY, RUNS, SIZE, KIND = "id", "annotation", ("height", "width"), "cell_type"

# As the competition spells them, and in the order of its discussion; category ids 1, 2, 3.
CELL_TYPES = ("shsy5y", "astro", "cort")

# What else the CSV says of an image: kept in the COCO file, and for --stratify-by.
_IMAGE_COLUMNS = ("plate_time", "sample_date", "sample_id", "elapsed_timedelta")


class Sartorius(StoredImages):
    """A `Source` of three classes, in a folder or a zip archive; images of train_semi_supervised are its `unlabelled`.

    Masks may overlap; every row is one object. Splits are stratified by cell type.
    """

    parts = None
    default_column = KIND
    class_names = CELL_TYPES

    def __init__(self, path: Path, *, allow_empty: bool = False) -> None:
        """Read the CSV and list the images.

        allow_empty: an image without a row has no objects; else it is a problem.

        Raises DataError where the CSV or images are missing, or the CSV is another.
        """
        self._images = open_source(path)
        self.description = f"Sartorius cell instance segmentation, {path}"
        csv_name = self._find_csv(path)
        base = PurePosixPath(csv_name).parent
        table = parse_table(self._images.read(csv_name), self._images.describe(csv_name), [KEY, RUNS, KIND])
        self._rows = MaskRows(table, key=KEY, runs=RUNS, size=SIZE, encode=encode_by_rows, allow_empty=allow_empty)
        self.problems = list(table.problems)
        self._file_of: dict[str, str] = {}
        self.names = self._list_images(base / LABELLED, "")
        self.unlabelled = self._list_images(base / UNLABELLED, f"{UNLABELLED}/")
        if not self.names:
            raise DataError(f"{path}: there are no images {base / LABELLED}/*.png; unpack the whole of the data set")
        self.problems += self._rows.missing(self.names, f"{base / LABELLED}")
        self.columns = {KIND: {name: self._kind_of_image(name) for name in self.names}}
        for column in _IMAGE_COLUMNS:
            if column in table.columns:
                self.columns[column] = {name: self._value(name, column) for name in self.names}

    def _find_csv(self, path: Path) -> str:
        found = [name for name in self._images.names if PurePosixPath(name).name == CSV_NAME]
        if not found:
            raise DataError(f"{path}: there is no {CSV_NAME}; expected {CSV_NAME} and {LABELLED}/*.png")
        # LIVECell comes along in a folder of its own; the competition's table is the one nearest to the top.
        return min(found, key=lambda name: (len(PurePosixPath(name).parts), name))

    def _list_images(self, folder: PurePosixPath, prefix: str) -> list[str]:
        names = []
        for file_name in self._images.names:
            path = PurePosixPath(file_name)
            if path.parent != folder or path.suffix.lower() not in SUFFIXES:
                continue
            name = prefix + path.stem
            if name in self._file_of:
                self.problems.append(
                    f"{self._images.describe(file_name)}: has the same name as {self._file_of[name]}; keep one of them"
                )
                continue
            self._file_of[name] = file_name
            names.append(name)
        return sorted(names)

    def _kind_of_image(self, name: str) -> str:
        """Return the cell type of an image, several joined by +."""
        kinds = {_kind_of(row) for row in self._rows.rows_of.get(name, [])}
        return "+".join(kind for kind in CELL_TYPES if kind in kinds) or "unknown"

    def _value(self, name: str, column: str) -> str:
        rows = self._rows.rows_of.get(name, [])
        return rows[0].values[column] if rows else ""

    def read(self, name: str) -> tuple[LabelledImage, list[str]]:
        file_name = self._file_of[name]
        height, width = decode_image(self._images.read(file_name), self.describe(name)).shape[:2]
        if name.startswith(f"{UNLABELLED}/"):
            # Their names start with the cell type, as in "cort[debris]_...": what semi-supervised training can balance.
            kind = _known(PurePosixPath(file_name).name.split("[")[0])
            fields = {KIND: kind, "group": kind} if kind else {}
            return LabelledImage(name, file_name, height, width, [], fields=fields), []
        rles, rows, problems = self._rows.read(name, height, width)
        kinds = [_kind_of(row) for row in rows]
        problems += [
            f"{self._rows.where(row)}: its {KIND} is {row.values[KIND]!r}; expected one of {', '.join(CELL_TYPES)}"
            for row, kind in zip(rows, kinds, strict=True)
            if not kind
        ]
        good = [(rle, CELL_TYPES.index(kind)) for rle, kind in zip(rles, kinds, strict=True) if kind]
        if rles and not good:
            raise DataError(f"image {name}: none of its {len(rows)} masks can be used; {problems[0]}")
        fields = {column: values[name] for column, values in self.columns.items()}
        image = LabelledImage(
            name, file_name, height, width, [rle for rle, _ in good], [index for _, index in good], fields
        )
        return image, problems


def _kind_of(row: Row) -> str:
    return _known(row.values[KIND])


def _known(text: str) -> str:
    """Return the cell type as it is spelled here, or nothing for another word."""
    lowered = text.strip().lower()
    return lowered if lowered in CELL_TYPES else ""
