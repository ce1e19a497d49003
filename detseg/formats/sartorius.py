"""The Sartorius cell instance segmentation competition: train.csv with row-major run-lengths, train/*.png, and more."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from detseg.errors import DataError
from detseg.files.table import Row, parse_table
from detseg.formats.objects import ImageObjects
from detseg.formats.reader import FoundObjects, Reader, image_names
from detseg.formats.run_lengths import MaskTable, write_mask_table

CSV_NAME, LABELLED, UNLABELLED = "train.csv", "train", "train_semi_supervised"
KEY, RUNS, SIZE, KIND = "id", "annotation", ("height", "width"), "cell_type"

# As spelled by the competition, in the order of its discussion; category ids 1, 2, 3.
CELL_TYPES = ("shsy5y", "astro", "cort")

# Other columns with image properties: kept in the COCO file, and for --stratify-by.
IMAGE_COLUMNS = ("plate_time", "sample_date", "sample_id", "elapsed_timedelta")

# Image fields from the names of samples, see `sample_fields`.
SAMPLE_ID, TREATMENT, WELL, PLATE = "sample_id", "treatment", "well", "plate"
_SAMPLE = re.compile(r"([^\W_]+)\[([^\]]*)\]_(.+)")
_WELL = re.compile(r"([A-P]\d{1,2})(?:-\d+)?")
# The instrument calls a plate vessel. Simulated data sets number their plates themselves.
_PLATES = (re.compile(r"plate-?\w+", re.IGNORECASE), re.compile(r"vessel-?\w+", re.IGNORECASE))


class Sartorius(Reader):
    """Three classes, in a folder or a zip archive; images of train_semi_supervised are its unlabelled ones.

    Masks may overlap; every row is one object.
    """

    class_names = CELL_TYPES
    stratify_by = KIND
    has_metadata = False
    one_class_per_image = True

    def __init__(self, source: Path, *, allow_empty: bool = False) -> None:
        """Read the CSV and list the images. Raises DataError if one is missing, or the CSV has other columns."""
        super().__init__(source)
        self.description = f"Sartorius cell instance segmentation, {source}"
        tables = [name for name in self.files.names if PurePosixPath(name).name == CSV_NAME]
        if not tables:
            raise DataError(f"{source}: there is no {CSV_NAME}; expected {CSV_NAME} and {LABELLED}/*.png")
        # The archive has LIVECell in a separate folder; the competition's table is the one nearest to the top.
        csv_name = min(tables, key=lambda name: (len(PurePosixPath(name).parts), name))
        base = PurePosixPath(csv_name).parent
        table = parse_table(self.files.read(csv_name), self.files.describe(csv_name), [KEY, RUNS, KIND])
        self._table = MaskTable(table, key=KEY, runs=RUNS, size=SIZE, by_rows=True, allow_empty=allow_empty)
        self.problems += table.problems
        labelled, unlabelled = (
            image_names(
                [name for name in self.files.names if PurePosixPath(name).parent == base / folder],
                self.problems,
                lambda name, prefix=prefix: prefix + PurePosixPath(name).stem,
            )
            for folder, prefix in ((LABELLED, ""), (UNLABELLED, f"{UNLABELLED}/"))
        )
        if not labelled:
            raise DataError(f"{source}: there are no images {base / LABELLED}/*.png; unpack the complete data set")
        self.file_of = {**labelled, **unlabelled}
        self.unlabelled = sorted(unlabelled)
        self.problems += self._table.missing(labelled, f"{base / LABELLED}")
        rows_of = self._table.rows_of
        self.columns = {KIND: {name: _kinds_of(rows_of.get(name, [])) for name in sorted(labelled)}}
        for column in IMAGE_COLUMNS:
            if column in table.columns:
                self.columns[column] = {
                    name: rows_of[name][0].values[column] if name in rows_of else "" for name in labelled
                }
        samples = {name: sample_fields(text) for name, text in self.columns.get(SAMPLE_ID, {}).items()}
        for column in (TREATMENT, WELL, PLATE):
            if any(column in sample for sample in samples.values()):
                self.columns[column] = {name: sample.get(column, "") for name, sample in samples.items()}
        # Names of unlabelled images contain what train.csv has for labelled ones, so that semi-supervised training can
        # balance them, and keep them apart from the plates of the validation.
        self._of_unlabelled = {name: sample_fields(PurePosixPath(name).name) for name in self.unlabelled}

    def fields(self, name: str) -> Mapping[str, str]:
        if name in self.columns[KIND]:
            return {column: values[name] for column, values in self.columns.items()}
        found = self._of_unlabelled[name]
        return {**found, "group": found[KIND]} if KIND in found else found

    def closing_note(self) -> str:
        notes = []
        for what, keys in (("cell type", (KIND,)), ("plate and well", (PLATE, WELL))):
            lacking = [name for name, found in self._of_unlabelled.items() if not any(key in found for key in keys)]
            if lacking:
                notes.append(
                    f"{len(lacking)} of {len(self.unlabelled)} unlabelled images have no {what} in their names "
                    f"({lacking[0]}), so that unlabelled.json has none either; expected "
                    "CELL[TREATMENT]_WELL_..._Vessel-NUMBER_..."
                )
        return "\n".join(notes)

    def find_objects(self, name: str, height: int, width: int) -> FoundObjects:
        return self._table.find_objects(name, height, width, _class_of)


def sample_fields(name: str) -> dict[str, str]:
    """Return the fields in the name of a sample: cell_type, treatment, well, plate and the name itself as sample_id.

    Names look like `astros[cereb]_A1_1_Vessel-361_Ph_1` or `shsy5y[diff]_E10-4_Vessel-714_Ph_3`, in which 1 and 4 are
    positions in the wells A1 and E10. Fields that a name lacks are left out; a name of another form has none.
    """
    match = _SAMPLE.fullmatch(name)
    if match is None:
        return {}
    cells, treatment, rest = match.groups()
    # Unlabelled images have "astros" instead of "astro".
    kind = next((kind for kind in CELL_TYPES if cells.lower() in (kind, f"{kind}s")), None)
    words = rest.split("_")
    well = next((found[1] for word in words if (found := _WELL.fullmatch(word))), None)
    plate = next((word for form in _PLATES for word in words if form.fullmatch(word)), None)
    found = {SAMPLE_ID: name, KIND: kind, TREATMENT: treatment, WELL: well, PLATE: plate}
    return {key: value for key, value in found.items() if value}


def _class_of(row: Row) -> int:
    kind = _known(row.values[KIND])
    if not kind:
        raise DataError(f"its {KIND} is {row.values[KIND]!r}; expected one of {', '.join(CELL_TYPES)}")
    return CELL_TYPES.index(kind)


def _kinds_of(rows: Sequence[Row]) -> str:
    """Return the cell type of an image, joined by + if there are several."""
    kinds = {_known(row.values[KIND]) for row in rows}
    return "+".join(kind for kind in CELL_TYPES if kind in kinds) or "unknown"


def _known(text: str) -> str:
    """Return the canonical spelling of a cell type, or an empty string for another word."""
    lowered = text.strip().lower()
    return lowered if lowered in CELL_TYPES else ""


def write_sartorius(path: Path, images: Iterable[ImageObjects], class_names: Sequence[str]) -> None:
    """Write train.csv: a row per object, row-major run-lengths; plate_time and so on if the images have them."""

    def row(objects: ImageObjects, index: int, name: str, runs: str) -> list[str]:
        further = [str(objects.fields.get(column, "")) for column in IMAGE_COLUMNS]
        sides = [str(objects.width), str(objects.height)]
        return [name, runs, *sides, class_names[objects.classes[index]], *further]

    write_mask_table(path, (KEY, RUNS, "width", "height", KIND, *IMAGE_COLUMNS), images, row, by_rows=True)
