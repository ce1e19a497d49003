"""Measurements of objects by condition: a row per image, values per experimental unit, and summaries per condition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from detseg.errors import ConfigError, DataError, list_problems
from detseg.formats.image_fields import ImageColumn
from detseg.formats.measurements import number_cell, shape_column
from detseg.formats.objects import ImageObjects

COUNT, DENSITY = "objects_per_image", "density"
# Measures of every object; an image or unit has the median over its objects.
SHAPES = (
    "area",
    "equivalent_diameter",
    "perimeter",
    "major_axis",
    "minor_axis",
    "eccentricity",
    "circularity",
    "solidity",
)
MEASURES = (COUNT, DENSITY, *SHAPES)
FOLDER = "folder"
ALL = "all"


@dataclass
class MeasuredImage:
    """One image: names of condition and unit, its pixels, square micrometres (NaN if unknown) and measures of its N
    objects, each (N,) float64, by the column names of `measure_image`.
    """

    name: str
    condition: str
    unit: str
    pixels: int
    square_micrometres: float
    shapes: dict[str, np.ndarray]
    count: int

    @classmethod
    def of(cls, objects: ImageObjects, table: Mapping[str, Sequence[str]], condition: str, unit: str) -> MeasuredImage:
        """table: the result of `measure_image` for the objects."""
        pixels = objects.height * objects.width
        micrometres = math.nan if objects.pixel_size is None else pixels * math.prod(objects.pixel_size)
        columns = {shape_column(name, unit) for name in SHAPES for unit in ("px", "um")}
        shapes = {name: np.array(table[name], dtype=np.float64) for name in table if name in columns}
        return cls(objects.file_name, condition, unit, pixels, micrometres, shapes, len(table["id"]))


@dataclass
class Conditions:
    """Images grouped by condition, and within it by unit.

    length_unit: um if all images have a pixel size, else px for all. columns: measure -> its name with the unit.
    units: condition -> unit -> its images, conditions sorted.
    """

    images: list[MeasuredImage]
    length_unit: str = field(init=False)
    columns: dict[str, str] = field(init=False)
    units: dict[str, dict[str, list[MeasuredImage]]] = field(init=False)

    def __post_init__(self) -> None:
        known = bool(self.images) and not any(math.isnan(image.square_micrometres) for image in self.images)
        self.length_unit = "um" if known else "px"
        self.columns = {COUNT: COUNT, DENSITY: "density_per_mm2" if known else "density_per_megapixel"}
        self.columns |= {name: shape_column(name, self.length_unit) for name in SHAPES}
        self.units = {name: {} for name in sorted({image.condition for image in self.images})}
        for image in self.images:
            self.units[image.condition].setdefault(image.unit, []).append(image)

    def images_of(self, condition: str) -> list[MeasuredImage]:
        return [image for images in self.units[condition].values() for image in images]

    def value(self, images: Sequence[MeasuredImage], measure: str) -> float:
        """Return a measure over images: objects per image or area, or the median over all objects; NaN if none."""
        count = sum(image.count for image in images)
        if measure == COUNT:
            return count / len(images)
        if measure == DENSITY:
            area = sum(image.square_micrometres if self.length_unit == "um" else image.pixels for image in images)
            return count / area * 1e6
        sizes = self.sizes(images, measure)
        return float(np.median(sizes)) if len(sizes) else math.nan

    def sizes(self, images: Sequence[MeasuredImage], measure: str) -> np.ndarray:
        """Return a measure (N,) of all objects of the images; measure: one of SHAPES."""
        column = self.columns[measure]
        return np.concatenate([np.zeros(0), *(image.shapes[column] for image in images if image.count)])

    def values(self, measure: str) -> dict[str, np.ndarray]:
        """Return the values (U,) of the units of every condition."""
        return {
            name: np.array([self.value(images, measure) for images in units.values()])
            for name, units in self.units.items()
        }

    def image_rows(self) -> list[list[Any]]:
        """Return the table of imageswith its header; measures of objects are medians per image."""
        header = ["image", "condition", "unit", "objects", *(self.columns[name] for name in MEASURES[1:])]
        return [
            header,
            *(
                [image.name, image.condition, image.unit, image.count]
                + [number_cell(self.value([image], name)) for name in MEASURES[1:]]
                for image in self.images
            ),
        ]

    def condition_rows(self) -> list[list[Any]]:
        """Return the table of conditionswith its header: median and quartiles of every measure over the units."""
        header = ["condition", "units", "images", "objects"]
        header += [f"{self.columns[name]}_{part}" for name in MEASURES for part in ("median", "q25", "q75")]
        rows: list[list[Any]] = [header]
        values = {measure: self.values(measure) for measure in MEASURES}
        for name, units in self.units.items():
            images = self.images_of(name)
            row = [name, len(units), len(images), sum(image.count for image in images)]
            for measure in MEASURES:
                known = values[measure][name]
                known = known[~np.isnan(known)]
                parts = np.percentile(known, [50, 25, 75]) if len(known) else [math.nan] * 3
                row += [number_cell(part) for part in parts]
            rows.append(row)
        return rows


def image_values(images: Sequence[Any], source: str | None, option: str) -> list[str]:
    """Return the value of a field for every image, as text.

    images: with `metadata`, such as records of a COCO file and entries of a Predictions file. source: an image field;
    `csv:FILE:COLUMN`, a table with a row per image whose first column has its name, with or without folder and suffix;
    `folder`, the folder in the image's name, unless it is a field; None for "all".

    Raises DataError if images lack it.
    """
    if source is None:
        return [ALL] * len(images)
    problems: list[str] = []
    if source.startswith("csv:"):
        path, _, column_name = source.removeprefix("csv:").rpartition(":")
        if not path or not column_name:
            raise ConfigError(f"{option} {source}: expected the name of a field, or csv:FILE:COLUMN")
        column = ImageColumn(Path(path), None, column_name, problems)
        values = [column.of_file(image.file_name) or None for image in images]
    elif source == FOLDER and not any(FOLDER in image.metadata for image in images):
        values = [str(PurePosixPath(image.file_name.replace("\\", "/")).parent) for image in images]
    else:
        values = [image.metadata.get(source) for image in images]
    problems += [
        f"{image.file_name}: has no {source}" for image, value in zip(images, values, strict=True) if value is None
    ]
    if problems:
        known = sorted({name for image in images for name in image.metadata})
        raise DataError(
            f"{option} {source}: some images lack it:\n{list_problems(problems)}\ntheir fields: "
            f"{', '.join(known) or 'none'}; csv:FILE:COLUMN uses a table, folder the folder of each image"
        )
    return [str(value) for value in values]
