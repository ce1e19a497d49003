"""The Data Science Bowl 2018 as distributed: stage1_train with a file per nucleus, or a CSV of run-lengths."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from detseg.errors import DataError
from detseg.files.table import read_table
from detseg.formats.objects import ImageObjects
from detseg.formats.reader import FoundObjects, Reader, check_mask_size, objects_of_crops
from detseg.formats.run_lengths import MaskTable, write_mask_table
from detseg.images.reading import SUFFIXES, decode_label_image
from detseg.structures.mask_crop import MaskCrop

logger = logging.getLogger(__name__)

KEY, RUNS, SIZE, USAGE = "ImageId", "EncodedPixels", ("Height", "Width"), "Usage"


class Dsb2018(Reader):
    """One class: ID/images/ID.png with ID/masks/*.png, in a folder or a zip archive.

    With `run_lengths` (stage1_train_labels.csv, or a stage-1 solution with the images of stage1_test) the masks are
    read from there, and images may also be ID.png in one folder.
    """

    has_metadata = False

    def __init__(
        self,
        source: Path,
        *,
        run_lengths: Path | None = None,
        class_name: str = "nucleus",
        allow_empty: bool = False,
    ) -> None:
        """List the images and masks. Raises DataError if there are no images, or the CSV is not a table of masks."""
        super().__init__(source)
        self.description = f"Data Science Bowl 2018, {run_lengths or source}"
        self.class_names = [class_name]
        self.file_of: dict[str, str] = {}
        self._masks_of: dict[str, list[str]] = {}
        self._allow_empty = allow_empty
        for name in self.files.names:
            path = PurePosixPath(name)
            if path.suffix.lower() not in SUFFIXES:
                continue
            kind = path.parts[-2] if len(path.parts) > 2 else ""
            if kind == "masks":
                self._masks_of.setdefault(path.parts[-3], []).append(name)
            elif kind == "images" or run_lengths is not None:
                image_id = path.parts[-3] if kind == "images" else path.stem
                other = self.file_of.setdefault(image_id, name)
                if other != name:
                    self.problems.append(
                        f"{self.files.describe(name)}: is a second image of {image_id}, next to {other}; keep one"
                    )
        if not self.file_of:
            archives = [name for name in self.files.names if name.lower().endswith(".zip")]
            nested = f"; it contains {archives[0]}: unpack that, or give that itself" if archives else ""
            raise DataError(
                f"{source}: there are no images; expected {'ID.png or ' if run_lengths else ''}ID/images/ID.png, as in "
                f"stage1_train{nested}"
            )
        self._table = None if run_lengths is None else self._read_table(run_lengths)

    def _read_table(self, path: Path) -> MaskTable:
        table = read_table(path, [KEY, RUNS])
        masks = MaskTable(table, key=KEY, runs=RUNS, size=SIZE, by_rows=False, allow_empty=self._allow_empty)
        self.problems += [*table.problems, *masks.missing(self.file_of, "the images")]
        ignored = {row.values[KEY] for row in table.rows if row.values.get(USAGE) == "Ignored"}
        if ignored:
            logger.info("%s: %d images are marked as ignored in %s and left out", path, len(ignored), USAGE)
            self.file_of = {name: file for name, file in self.file_of.items() if name not in ignored}
        return masks

    def find_objects(self, name: str, height: int, width: int) -> FoundObjects:
        if self._table is not None:
            return self._table.find_objects(name, height, width)
        files = self._masks_of.get(name, [])
        if not files and not self._allow_empty:
            raise DataError(
                f"{self.describe(name)}: has no masks; expected {name}/masks/*.png, or --run-lengths CSV; if images "
                "without objects have none, give --allow-empty"
            )
        crops, problems = [], []
        for file in files:
            where = self.files.describe(file)
            try:
                values = decode_label_image(self.files.read(file), where)
                check_mask_size(values, where, height, width)
                mask = values > 0
                levels = np.unique(values[mask])
                if len(levels) > 1:
                    raise DataError(
                        f"{where}: has {len(levels)} values other than 0, {levels[0]} to {levels[-1]}, but the mask of "
                        "one object has one: it was resized with interpolation, saved lossily, or is not a mask; save "
                        "it again, or set values below half of the maximum to 0 and the others to 255"
                    )
                if not mask.any():
                    raise DataError(f"{where}: the mask is empty; remove the file, or draw the nucleus")
                crops.append(MaskCrop(mask, 0, 0).tight())
            except DataError as error:
                problems.append(str(error))
        return objects_of_crops(crops, height, width, problems=problems)


def write_dsb2018(path: Path, images: Iterable[ImageObjects], class_names: Sequence[str]) -> None:
    """Write stage1_train_labels.csv: a row per object, run-lengths in column-major order; it has no classes."""
    write_mask_table(path, (KEY, RUNS), images, lambda objects, index, name, runs: (name, runs), by_rows=False)
