"""The Data Science Bowl 2018 as it ships: stage1_train with one file a nucleus, or a CSV of run-lengths by columns."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.files.table import read_table
from detseg.formats.run_lengths import MaskRows, encode_by_columns
from detseg.formats.source import LabelledImage
from detseg.formats.source_files import StoredImages, open_source
from detseg.images.reading import SUFFIXES, decode_image, decode_label_image
from detseg.structures import rle as rle_codec

logger = logging.getLogger(__name__)

KEY, RUNS, SIZE, USAGE = "ImageId", "EncodedPixels", ("Height", "Width"), "Usage"


class Dsb2018(StoredImages):
    """A `Source` of one class: ID/images/ID.png with ID/masks/*.png, in a folder or a zip archive.

    With `run_lengths` (stage1_train_labels.csv, or a stage-1 solution, whose images are those of stage1_test) the masks
    are read from there, and images may also lie as ID.png in one folder.
    """

    parts = None
    unlabelled: Sequence[str] = ()
    default_column = None

    def __init__(
        self,
        path: Path,
        *,
        run_lengths: Path | None = None,
        class_name: str = "nucleus",
        allow_empty: bool = False,
    ) -> None:
        """List the images and masks.

        allow_empty: an image without masks, or without a row in `run_lengths`, has no objects; else it is a problem.

        Raises DataError where there are no images, or the CSV is no table of masks.
        """
        self._images = open_source(path)
        self.description = f"Data Science Bowl 2018, {run_lengths or path}"
        self.class_names = [class_name]
        self.columns: dict[str, dict[str, str]] = {}
        self.problems: list[str] = []
        self._file_of: dict[str, str] = {}
        self._masks_of: dict[str, list[str]] = {}
        self._list_files(flat=run_lengths is not None)
        if not self._file_of:
            raise DataError(
                f"{path}: there are no images; expected {'ID.png or ' if run_lengths else ''}ID/images/ID.png, as in "
                f"stage1_train{self._nested()}"
            )
        self._allow_empty = allow_empty
        self._rows = None
        self.names = sorted(self._file_of)
        if run_lengths is not None:
            self._rows = self._read_rows(run_lengths)

    def _nested(self) -> str:
        archives = [name for name in self._images.names if name.lower().endswith(".zip")]
        return f"; it holds {archives[0]}: unpack that, or give that itself" if archives else ""

    def _list_files(self, *, flat: bool) -> None:
        for name in self._images.names:
            path = PurePosixPath(name)
            if path.suffix.lower() not in SUFFIXES:
                continue
            kind = path.parts[-2] if len(path.parts) > 2 else ""
            if kind == "masks":
                self._masks_of.setdefault(path.parts[-3], []).append(name)
            elif kind == "images" or flat:
                image_id = path.parts[-3] if kind == "images" else path.stem
                other = self._file_of.setdefault(image_id, name)
                if other != name:
                    self.problems.append(
                        f"{self._images.describe(name)}: is a second image of {image_id}, beside {other}; keep one"
                    )

    def _read_rows(self, path: Path) -> MaskRows:
        table = read_table(path, [KEY, RUNS])
        self.problems += table.problems
        rows = MaskRows(table, key=KEY, runs=RUNS, size=SIZE, encode=encode_by_columns, allow_empty=self._allow_empty)
        if USAGE in table.columns:
            ignored = {row.values[KEY] for row in table.rows if row.values[USAGE] == "Ignored"}
            if ignored:
                logger.info("%s: %d images are marked as ignored in %s and left out", path, len(ignored), USAGE)
                self.names = [name for name in self.names if name not in ignored]
        self.problems += rows.missing(list(self._file_of), "the images")
        return rows

    def read(self, name: str) -> tuple[LabelledImage, list[str]]:
        file_name = self._file_of[name]
        height, width = decode_image(self._images.read(file_name), self.describe(name)).shape[:2]
        if self._rows is not None:
            rles, _, problems = self._rows.read(name, height, width)
        else:
            rles, problems = self._read_masks(name, height, width)
        return LabelledImage(name, file_name, height, width, rles), problems

    def _read_masks(self, name: str, height: int, width: int) -> tuple[list[dict[str, Any]], list[str]]:
        files = self._masks_of.get(name, [])
        if not files and self._allow_empty:
            return [], []
        if not files:
            raise DataError(
                f"{self.describe(name)}: has no masks; expected {name}/masks/*.png, or --run-lengths CSV; where images "
                "without objects have none, pass --allow-empty"
            )
        crops, problems = [], []
        for file_name in files:
            try:
                crops.append(self._read_mask(file_name, height, width))
            except DataError as error:
                problems.append(str(error))
        if not crops:
            raise DataError(f"{self.describe(name)}: none of its {len(files)} masks can be used; {problems[0]}")
        return rle_codec.encode_crops(crops, height, width), problems

    def _read_mask(self, file_name: str, height: int, width: int) -> tuple[np.ndarray, int, int]:
        """Return the tight crop (h, w) bool of one nucleus, x0 and y0."""
        where = self._images.describe(file_name)
        mask = decode_label_image(self._images.read(file_name), where) > 0
        if mask.shape != (height, width):
            raise DataError(
                f"{where}: has {mask.shape[0]} x {mask.shape[1]} pixels (height x width), its image {height} x {width}"
            )
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            raise DataError(f"{where}: the mask is empty; remove the file, or draw the nucleus")
        y0, x0 = int(rows[0]), int(columns[0])
        return mask[y0 : rows[-1] + 1, x0 : columns[-1] + 1], x0, y0
