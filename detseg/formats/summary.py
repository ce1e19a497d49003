"""The summary of a prediction: counts, densities, areas and intensities per image, per folder and in total."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from detseg.files.names import json_stem
from detseg.files.table import text_table, write_csv
from detseg.formats.measurements import ImageNumbers, columns_of, number_cell

# Rows of images that are printed; the file has all.
SHOWN = 20
_SQUARE_MICROMETRES = 1e6  # in a square millimetre

Row = dict[str, object]


def summary_name(path: Path) -> Path:
    """Return the path of the summary of a Predictions file, or of a folder of label images: next to it."""
    return path.with_name(f"{json_stem(path.name)}_summary.csv")


@dataclass
class _Values:
    """Numbers for mean and median, in memory that does not grow with their count."""

    count: int = 0
    total: float = 0.0
    counts: Counter[float] = field(default_factory=Counter)

    def add(self, values: np.ndarray) -> None:
        self.count += len(values)
        self.total += float(values.sum())
        # Four digits: 9,000 different numbers per power of ten. Areas below 10,000 pixels are exact.
        self.counts.update(float(f"{value:.4g}") for value in values.tolist())

    def median(self) -> float:
        middle, seen, lower = self.count / 2, 0, None
        for value in sorted(self.counts):
            seen += self.counts[value]
            if lower is not None:
                return (lower + value) / 2
            if seen > middle:
                return value
            if seen == middle:
                lower = value
        return math.nan


@dataclass
class _Total:
    """Totals over several images."""

    images: int = 0
    pixels: int = 0
    covered: int = 0
    square_micrometres: float = 0.0
    by_class: Counter[int] = field(default_factory=Counter)
    areas: _Values = field(default_factory=_Values)
    areas_um2: _Values = field(default_factory=_Values)
    intensities: dict[str, _Values] = field(default_factory=dict)
    # Number of images for which a value is known; values not known for all are left out.
    known: Counter[str] = field(default_factory=Counter)


class Summary:
    """Collects images one by one and keeps a row for each.

    class_names: by class index; if there are several, each has a column of counts.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self._rows: list[Row] = []
        self._folders: dict[str, _Total] = {}
        self._all = _Total()

    @property
    def objects(self) -> int:
        """The number of objects in all images."""
        return sum(self._all.by_class.values())

    @property
    def by_class(self) -> list[int]:
        """The number of objects per class."""
        return [self._all.by_class[index] for index in range(len(self.class_names))]

    def add(self, name: str, height: int, width: int, numbers: ImageNumbers | None, classes: np.ndarray) -> None:
        """Add an image.

        Args:
            name: its file name, with slashes.
            height, width: in pixels.
            numbers: None if its objects are boxes without masks.
            classes: (N,) of its objects, counted if there are no numbers.
        """
        folder = str(PurePosixPath(name.replace("\\", "/")).parent)
        image = _Total()
        for total in (image, self._folders.setdefault(folder, _Total()), self._all):
            _add(total, height * width, numbers, classes)
        row = self._row("image", name, image)
        if numbers is not None and len(numbers.areas):  # exact for a single image
            row["median_area_px"] = number_cell(np.median(numbers.areas))
            if numbers.pixel_size is not None:
                row["median_area_um2"] = number_cell(np.median(numbers.areas) * math.prod(numbers.pixel_size))
            row |= {f"intensity_median{name}": number_cell(np.median(one)) for name, one in numbers.intensities.items()}
        self._rows.append(row)

    def _row(self, kind: str, name: str, total: _Total) -> Row:
        cells = sum(total.by_class.values())
        row: Row = {"kind": kind, "name": name, "images": total.images, "cells": cells}
        if len(self.class_names) > 1:
            row |= {f"cells_{name}": total.by_class[index] for index, name in enumerate(self.class_names)}
        row["density_per_megapixel"] = number_cell(cells / total.pixels * 1e6 if total.pixels else math.nan)
        if total.known["um2"] == total.images:
            row["density_per_mm2"] = number_cell(cells / total.square_micrometres * _SQUARE_MICROMETRES)
        if total.known["masks"] == total.images:
            row["coverage"] = number_cell(total.covered / total.pixels if total.pixels else math.nan)
            row["median_area_px"] = number_cell(total.areas.median())
            if total.known["um2"] == total.images:
                row["median_area_um2"] = number_cell(total.areas_um2.median())
        for suffix, values in total.intensities.items():
            if total.known[f"intensity{suffix}"] == total.images and values.count:
                row[f"intensity_mean{suffix}"] = number_cell(values.total / values.count)
                row[f"intensity_median{suffix}"] = number_cell(values.median())
        return row

    def rows(self) -> list[Row]:
        """Return the rows of the images, of their folders if there are several, and of all images together."""
        folders = []
        if len(self._folders) > 1:
            folders = [self._row("folder", name, total) for name, total in sorted(self._folders.items())]
        return [*self._rows, *folders, *([self._row("all", "", self._all)] if len(self._rows) > 1 else [])]

    def write(self, path: Path) -> None:
        """Write all rows as a CSV file; an existing one is replaced."""
        rows = self.rows()
        columns = columns_of(rows) or ["kind", "name", "images", "cells"]
        write_csv(path, [columns, *([row.get(name, "") for name in columns] for row in rows)], "the summary")

    def text(self) -> str:
        """Return the rows as text: of the first images, and of all folders."""
        rows = self.rows()
        shown = [*rows[:SHOWN], *(row for row in rows[SHOWN:] if row["kind"] != "image")]
        columns = {
            "cells": "cells",
            "density_per_mm2": "per mm2",
            "density_per_megapixel": "per megapixel",
            "coverage": "coverage",
            "median_area_um2": "median um2",
            "median_area_px": "median pixels",
            "intensity_mean": "intensity",
        }
        texts = [{column: str(row.get(column, "")) for column in columns} for row in shown]  # "" is unknown, unlike 0
        known = {column: title for column, title in columns.items() if any(row[column] for row in texts)}
        for better, other in (("density_per_mm2", "density_per_megapixel"), ("median_area_um2", "median_area_px")):
            if all(row[better] for row in texts if row[other]) and better in known:
                known.pop(other, None)
        cells = [[_title(row), *(_short(row.get(column)) for column in known)] for row in shown]
        left_out = len(self._rows) - min(len(self._rows), SHOWN)
        table = text_table([["image", *known.values()], *cells])
        return f"{table}\n({left_out} more images are in the file)" if left_out else table


def _add(total: _Total, pixels: int, numbers: ImageNumbers | None, classes: np.ndarray) -> None:
    total.images += 1
    total.pixels += pixels
    total.by_class.update((classes if numbers is None else numbers.classes).tolist())
    if numbers is None:
        return
    total.known["masks"] += 1
    total.covered += numbers.covered
    total.areas.add(numbers.areas)
    if numbers.pixel_size is not None:
        total.known["um2"] += 1
        total.square_micrometres += pixels * math.prod(numbers.pixel_size)
        total.areas_um2.add(numbers.areas * math.prod(numbers.pixel_size))
    for suffix, values in numbers.intensities.items():
        total.known[f"intensity{suffix}"] += 1
        total.intensities.setdefault(suffix, _Values()).add(values)


def _title(row: Mapping[str, object]) -> str:
    return {"image": f"{row['name']}", "folder": f"folder {row['name']}", "all": f"all {row['images']} images"}[
        str(row["kind"])
    ]


def _short(value: object) -> str:
    if isinstance(value, str):
        return f"{float(value):.4g}" if value else "-"
    return "-" if value is None else f"{value:,}"
