"""Measurements of objects: shapes in pixels and micrometres, also for non-square pixels, and intensities."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detseg.errors import DataError
from detseg.files.table import write_csv
from detseg.formats.objects import ImageObjects
from detseg.formats.outlines import Polygon, trace_polygons
from detseg.images.pixel_source import PixelSource
from detseg.images.reading import open_pixels, read_picture
from detseg.structures import rle as rle_codec
from detseg.structures.overlaps import covered_pixels
from detseg.structures.runs import Runs
from detseg.structures.sample import PixelSize, pixel_size_of


@dataclass(frozen=True)
class Shape:
    """The shape of one object; lengths in the unit of the pixel size that it was measured with.

    centroid_x, centroid_y: from the outer corner of the image's first pixel. perimeter: by Crofton's formula in four
    directions. equivalent_diameter: of the disk with this area. major_axis, minor_axis, eccentricity, orientation: of
    the ellipse with the same second moments; orientation in degrees from the x axis, counterclockwise on the screen,
    -90 to 90. solidity: area / area of the convex hull. circularity: 4 pi area / perimeter^2, at most 1.
    """

    area: float
    centroid_x: float
    centroid_y: float
    perimeter: float
    equivalent_diameter: float
    major_axis: float
    minor_axis: float
    eccentricity: float
    orientation: float
    solidity: float
    circularity: float


def measure_shape(
    crop: np.ndarray, x0: int, y0: int, polygons: Sequence[Polygon], pixel_size: PixelSize = (1.0, 1.0)
) -> Shape:
    """Measure a mask (h, w) bool with at least one pixel.

    Args:
        x0, y0: of the crop's upper left in the image.
        polygons: its outlines, from `trace_polygons`.
        pixel_size: (y, x); the default measures in pixels.
    """
    dy, dx = pixel_size
    rows, columns = np.nonzero(crop)
    y, x = (rows + 0.5) * dy, (columns + 0.5) * dx
    area = len(rows) * dy * dx
    major, minor, orientation = ellipse_of(y, x, pixel_size)
    perimeter = crofton_perimeter(crop, pixel_size)
    points = np.concatenate([polygon[0] for polygon in polygons]).astype(np.int32)
    hull = cv2.contourArea(cv2.convexHull(points)) * dy * dx
    return Shape(
        area=area,
        centroid_x=x0 * dx + float(x.mean()),
        centroid_y=y0 * dy + float(y.mean()),
        perimeter=perimeter,
        equivalent_diameter=2 * math.sqrt(area / math.pi),
        major_axis=major,
        minor_axis=minor,
        eccentricity=math.sqrt(max(1 - (minor / major) ** 2, 0.0)),
        orientation=orientation,
        solidity=area / hull,
        circularity=min(4 * math.pi * area / perimeter**2, 1.0),
    )


def ellipse_of(y: np.ndarray, x: np.ndarray, pixel_size: PixelSize = (1.0, 1.0)) -> tuple[float, float, float]:
    """Return major and minor axis and orientation, see `Shape`, of the ellipse with the second moments of pixels (N,).

    A pixel is a rectangle, not a point: its own moments keep a line of one pixel's width from being infinitely thin.
    """
    dy, dx = pixel_size
    xx, yy = x.var() + dx * dx / 12, y.var() + dy * dy / 12
    xy = float(((x - x.mean()) * (y - y.mean())).mean())
    middle, half = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)
    orientation = -math.degrees(0.5 * math.atan2(2 * xy, xx - yy)) + 0.0  # y points down; no -0.0
    return 4 * math.sqrt(middle + half), 4 * math.sqrt(max(middle - half, 0.0)), orientation


def crofton_perimeter(crop: np.ndarray, pixel_size: PixelSize = (1.0, 1.0)) -> float:
    """Return the length of a mask's outlines, holes included, by counting intersections with lines of four directions.

    Cauchy-Crofton formula: the length is half the integral, over directions from 0 to pi and over parallel lines, of
    the number of intersections; weights of the directions as in Legland, Kieu and Devaux, Image Anal. Stereol. 26
    (2007) 83.
    """
    dy, dx = pixel_size
    mask = np.pad(crop, 1)
    diagonal = math.hypot(dy, dx)
    angle = math.atan2(dy, dx)
    crossings = (
        # number of intersections, distance of the lines, weight of the direction
        (np.count_nonzero(mask[:, 1:] != mask[:, :-1]), dy, angle / math.pi),
        (np.count_nonzero(mask[1:] != mask[:-1]), dx, 0.5 - angle / math.pi),
        (np.count_nonzero(mask[1:, 1:] != mask[:-1, :-1]), dy * dx / diagonal, 0.25),
        (np.count_nonzero(mask[1:, :-1] != mask[:-1, 1:]), dy * dx / diagonal, 0.25),
    )
    return math.pi / 2 * sum(count * distance * share for count, distance, share in crossings)


# The table of measurements: a row per object with position and shape in pixels and micrometres, and intensities.

# Fields of a shape with a unit of length; RATIOS are the same in all units.
LENGTHS = ("centroid_x", "centroid_y", "perimeter", "equivalent_diameter", "major_axis", "minor_axis")
RATIOS = ("eccentricity", "orientation", "solidity", "circularity")
# Pixels of large images that are in memory at once.
_BAND_PIXELS = 2**22


def write_measurements(path: Path, images: Iterable[ImageObjects], class_names: Sequence[str]) -> None:
    """Write a CSV of all objects; images without objects and masks without pixels have no row. An existing file is
    replaced.

    Columns: image, id (the label of the object in label images), class, score of predictions, the fields of `Shape` and
    the bounding box in pixels (`_px`), the same in micrometres (`_um`, if the pixel size is known), and for every
    channel of the given images: mean, std, min, max and sum of the intensities in the mask.

    Raises DataError if a given image cannot be read, or its size differs from its masks'.
    """
    write_tables(path, [measure_image(objects, class_names) for objects in images if len(objects)])


def write_tables(path: Path, tables: Sequence[Mapping[str, Sequence[Any]]]) -> None:
    """Write the results of `measure_image` for several images as one CSV; missing values are empty."""
    columns = columns_of(tables) or ["image", "id", "class"]
    rows: list[Sequence[object]] = [columns]
    for table in tables:
        absent = [""] * len(table["id"])
        rows += zip(*(table.get(name, absent) for name in columns), strict=True)
    write_csv(path, rows, "the table")


def columns_of(rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the columns that any row has; those of intensities, which may differ between images, at the end."""
    columns = dict.fromkeys(name for row in rows for name in row)
    return sorted(columns, key=lambda name: name.startswith("intensity_"))


def number_cell(value: float) -> str:
    """Format a number for a table; "" for NaN."""
    return "" if math.isnan(value) else f"{value:.7g}"


def measure_image(objects: ImageObjects, class_names: Sequence[str]) -> dict[str, list[Any]]:
    """Return column -> values of one image's objects, without those that have no pixels; see `write_measurements`."""
    size, image, suffixes = objects.pixel_size, None, []
    if objects.picture is not None:
        image, facts = read_picture(objects.picture, objects.fields)
        size = _known_size(objects, image.shape[:2], facts)
        suffixes = _channel_suffixes(image.shape[2], facts)
    kept = np.flatnonzero(rle_codec.area(objects.rles)).tolist()
    table: dict[str, list[Any]] = {
        "image": [objects.file_name] * len(kept),
        "id": [index + 1 for index in kept],
        "class": [class_names[objects.classes[index]] for index in kept],
    }
    if objects.scores is not None:
        table["score"] = [f"{objects.scores[index]:.6g}" for index in kept]
    crops = rle_codec.decode_crops([objects.rles[index] for index in kept])
    for crop in crops:
        for name, value in _shape_columns(*crop, size).items():
            table.setdefault(name, []).append(f"{value:.7g}")
    if image is not None:
        inside = [image[crop.window][crop.mask].astype(np.float64) for crop in crops]
        for channel, suffix in enumerate(suffixes):
            for measure in ("mean", "std", "min", "max", "sum"):
                values = [getattr(pixels[:, channel], measure)() for pixels in inside]
                table[f"intensity_{measure}{suffix}"] = [f"{value:.7g}" for value in values]
    return table


def _known_size(objects: ImageObjects, size: tuple[int, int], facts: Mapping[str, Any]) -> PixelSize | None:
    """Return the pixel size, given or from the image file. Raises DataError for an image of another size."""
    if size != (objects.height, objects.width):
        raise DataError(
            f"{objects.picture}: has {size[0]} x {size[1]} pixels (height x width), but its masks {objects.height} x "
            f"{objects.width}; give the images that the masks were made from"
        )
    return objects.pixel_size or pixel_size_of(facts, str(objects.picture))


def _channel_suffixes(channels: int, facts: Mapping[str, Any]) -> list[str]:
    """Return the suffix of column names for every channel; empty for a single channel."""
    names = facts.get("channel_names") or range(channels)
    return [f"_{name}" for name in names] if channels > 1 else [""]


@dataclass(frozen=True)
class ImageNumbers:
    """Data for a summary on the M objects of one image with pixels, in the order of the table's rows.

    areas, classes: (M,) int64; areas in pixels. intensities: suffix of the column -> the column intensity_mean, (M,)
    float64. covered: pixels in any object. pixel_size: (y, x) micrometres, if known.
    """

    areas: np.ndarray
    classes: np.ndarray
    intensities: dict[str, np.ndarray]
    covered: int
    pixel_size: PixelSize | None


def measure_numbers(objects: ImageObjects) -> ImageNumbers:
    """Measure only areas and intensities, a fraction of the work of `measure_image`, in images of any size.

    Raises DataError as `measure_image`.
    """
    runs = rle_codec.read_runs(objects.rles)
    kept = np.flatnonzero(runs.areas())
    runs = runs.select(kept)
    areas, size = runs.areas(), objects.pixel_size
    intensities = {}
    if objects.picture is not None:
        with open_pixels(objects.picture, objects.fields) as source:
            size = _known_size(objects, (source.height, source.width), source.facts)
            sums = _sums_inside(source, runs)
            suffixes = _channel_suffixes(sums.shape[1], source.facts)
            intensities = {suffix: sums[:, channel] / areas for channel, suffix in enumerate(suffixes)}
    return ImageNumbers(areas, objects.classes[kept], intensities, covered_pixels(runs), size)


def _sums_inside(source: PixelSource, runs: Runs) -> np.ndarray:
    """Return the sum of every channel inside N masks, (N, C) float64; the image is read in bands of rows."""
    rows = max(_BAND_PIXELS // max(source.width, 1) // source.row_height, 1) * source.row_height
    total: np.ndarray | None = None
    for y in range(0, source.height, rows):
        band = source.read(y, 0, min(y + rows, source.height), source.width)
        height, width, channels = band.shape
        part = runs.within((0, y, width, y + height)).moved(0, -y, height, width)
        if total is None:
            total = np.zeros((len(runs), channels))
        for channel in range(channels):
            # In column-major order, like runs; the sum of a run is the difference of two cumulative sums.
            kind = np.int64 if band.dtype.kind == "u" else np.float64
            cumulated = np.concatenate([[0], np.cumsum(band[:, :, channel].T.ravel(), dtype=kind)])
            inside = cumulated[part.ends] - cumulated[part.starts]
            total[:, channel] += np.bincount(part.owners, weights=inside, minlength=len(runs))
    return np.zeros((len(runs), 1)) if total is None else total


def shape_column(name: str, unit: str) -> str:
    """Return the column name for a field of `Shape`, in px or um."""
    if name in RATIOS:
        return name
    return "area_um2" if (name, unit) == ("area", "um") else f"{name}_{unit}"


def _shape_columns(crop: np.ndarray, x0: int, y0: int, size: PixelSize | None) -> dict[str, float]:
    polygons = trace_polygons(crop, x0, y0)
    row: dict[str, float] = {}
    for unit, (dy, dx) in {"px": (1.0, 1.0), **({} if size is None else {"um": size})}.items():
        shape = dataclasses.asdict(measure_shape(crop, x0, y0, polygons, (dy, dx)))
        row.update({shape_column(name, unit): shape[name] for name in ("area", *LENGTHS)})
        box = {"x": x0 * dx, "y": y0 * dy, "width": crop.shape[1] * dx, "height": crop.shape[0] * dy}
        row.update({f"box_{name}_{unit}": value for name, value in box.items()})
    # From the last unit: micrometres if known, because non-square pixels change the shape.
    return row | {name: shape[name] for name in RATIOS}
