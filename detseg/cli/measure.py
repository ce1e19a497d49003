"""`detseg measure`: counts, sizes and shapes of objects by image and condition, and tests between conditions."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detseg.evaluation.conditions import Difference
    from detseg.formats.objects import ObjectsFile
    from detseg.report.conditions import Conditions

DESCRIPTION = (
    "Measure the objects of a COCO or Predictions file: tables of objects, images and conditions, and the "
    "distribution of sizes. With --group-by, conditions are compared by rank tests between experimental "
    "units (images, or what --unit names), never between objects, because objects of one image are not "
    "independent repetitions."
)
FILES = ("objects.csv", "images.csv", "conditions.csv", "tests.csv", "sizes.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", required=True, metavar="FILE", help="COCO or Predictions file, .json or .json.gz")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help=f"folder for {', '.join(FILES)}")
    parser.add_argument(
        "--group-by",
        metavar="FIELD",
        help="condition of each image: a field of the file's images (group, plate, ...), csv:FILE:COLUMN, or folder",
    )
    parser.add_argument(
        "--unit",
        metavar="FIELD",
        help="experimental unit, given like --group-by: the well, plate or animal that a condition was "
        "applied to; its images give one value together (default: every image is a unit)",
    )
    parser.add_argument(
        "--measures",
        nargs="+",
        metavar="NAME",
        help="measures to test (default: objects_per_image area): objects_per_image, density, area, "
        "equivalent_diameter, perimeter, major_axis, minor_axis, eccentricity, circularity, solidity; "
        "choose them before you look at the data, because Holm's correction counts all of them",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.0,
        metavar="X",
        help="measure only predictions with at least this score",
    )
    parser.add_argument(
        "--pixel-size", metavar="UM", help='micrometres per pixel, 0.5 or "0.5 0.4" (y, x); default: from the file'
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def run(arguments: argparse.Namespace) -> None:
    """Measure, write the tables, and print conditions and tests."""
    from detseg.errors import ConfigError
    from detseg.evaluation.conditions import differences, kruskal_wallis
    from detseg.files.atomic import check_free, folder_for
    from detseg.files.table import write_csv
    from detseg.formats.measurements import write_tables
    from detseg.formats.objects import open_objects
    from detseg.report.conditions import MEASURES
    from detseg.report.sizes import draw_size_distributions, size_percentiles

    asked = list(dict.fromkeys(arguments.measures or ["objects_per_image", "area"]))
    if unknown := [name for name in asked if name not in MEASURES]:
        raise ConfigError(f"--measures {unknown[0]}: there is no such measure; there are: {', '.join(MEASURES)}")
    if not 0 <= arguments.score_threshold <= 1:
        raise ConfigError(f"--score-threshold is {arguments.score_threshold}; expected 0 to 1")
    source = open_objects(arguments.input)
    files = {name: arguments.output / name for name in FILES if arguments.group_by or name != "tests.csv"}
    check_free(*files.values(), overwrite=arguments.overwrite)
    tables, conditions = _measure(arguments, source)
    values = {name: conditions.values(name) for name in asked}
    found = differences(values, arguments.seed)
    overall = {name: kruskal_wallis(of_conditions) for name, of_conditions in values.items()}
    sizes = {name: conditions.sizes(conditions.images_of(name), "equivalent_diameter") for name in conditions.units}
    header, *rows = conditions.condition_rows()
    header += [f"diameter_{conditions.length_unit}_{name}" for name in ("D10", "D50", "D90")]
    rows = [row + [f"{value:.7g}" for value in size_percentiles(sizes[row[0]]).values()] for row in rows]
    with folder_for(arguments.output):
        write_tables(files["objects.csv"], tables)
        write_csv(files["images.csv"], conditions.image_rows(), "the table of images")
        write_csv(files["conditions.csv"], [header, *rows], "the table of conditions")
        if "tests.csv" in files:
            write_csv(files["tests.csv"], _test_rows(conditions, found, overall), "the table of tests")
        length = "micrometres" if conditions.length_unit == "um" else "pixels"
        draw_size_distributions(files["sizes.png"], sizes, f"equivalent diameter, {length}")
    print(_condition_text(conditions, header, rows))
    if arguments.group_by:
        print(f"\n{_test_text(conditions, found, overall, arguments.unit)}")
    print("\nWritten: " + ", ".join(str(path) for path in files.values()))


def _measure(arguments: argparse.Namespace, source: ObjectsFile) -> tuple[list[dict[str, Any]], Conditions]:
    """Return the table of objects for each image that has any, and the images by condition and unit."""
    import dataclasses

    import numpy as np

    from detseg.formats.measurements import measure_image
    from detseg.progress import ProgressBar
    from detseg.report.conditions import Conditions, MeasuredImage, image_values
    from detseg.structures.sample import parse_pixel_size_text

    size = parse_pixel_size_text(arguments.pixel_size, "--pixel-size") if arguments.pixel_size else None
    groups = image_values(source.images, arguments.group_by, "--group-by")
    units = image_values(source.images, arguments.unit, "--unit") if arguments.unit else source.names
    tables, images = [], []
    bar = ProgressBar(source, desc="measuring", unit="image", total=len(source))
    for objects, group, unit in zip(bar, groups, units, strict=True):
        if objects.scores is not None:
            objects = objects.select(objects.scores >= np.float32(arguments.score_threshold))
        objects = dataclasses.replace(objects, pixel_size=size or objects.pixel_size)
        table = measure_image(objects, source.class_names)
        images.append(MeasuredImage.of(objects, table, group, unit))
        count = len(table["id"])
        if count:
            tables.append({"image": table["image"], "condition": [group] * count, "unit": [unit] * count, **table})
    return tables, Conditions(images)


def _condition_text(conditions: Conditions, header: list[str], rows: list[list[Any]]) -> str:
    """Return the table of conditions as text: counts, median area and diameters."""
    from detseg.files.table import text_table

    shown = [
        "units",
        "images",
        "objects",
        "objects_per_image_median",
        f"{conditions.columns['area']}_median",
        *header[-3:],
    ]
    places = [header.index(name) for name in shown]
    lines = [[row[0], *(_short(float("nan" if row[place] == "" else row[place])) for place in places)] for row in rows]
    return text_table([["condition", *shown], *lines])


def _test_rows(conditions: Conditions, found: list[Difference], overall: dict[str, float]) -> list[list[object]]:
    """overall: p-value of each measure over all conditions."""
    from detseg.formats.measurements import number_cell

    header = ["measure", "first", "second", "units_first", "units_second", "median_first", "median_second"]
    header += ["difference", "low_95", "high_95", "rank_biserial", "p_mann_whitney", "p_holm", "p_kruskal_wallis"]
    rows: list[list[object]] = [header]
    for one in found:
        values = (*one.medians, one.difference, one.low, one.high, one.rank_biserial, one.p, one.p_holm)
        numbers = [number_cell(value) for value in (*values, overall[one.measure])]
        rows.append([conditions.columns[one.measure], one.first, one.second, *one.units, *numbers])
    return rows


def _test_text(conditions: Conditions, found: list[Difference], overall: dict[str, float], unit: str | None) -> str:
    from detseg.files.table import text_table

    if not found:
        return "There is only one condition: nothing to compare."
    rows = [["measure", "second - first", "difference", "95 % interval", "rank-biserial", "p", "p (Holm)"]]
    for one in found:
        interval = "-" if math.isnan(one.low) else f"{one.low:+.4g} to {one.high:+.4g}"
        name = f"{one.second} - {one.first} ({one.units[1]}, {one.units[0]})"
        numbers = map(_short, (one.rank_biserial, one.p, one.p_holm))
        rows.append([conditions.columns[one.measure], name, f"{one.difference:+.4g}", interval, *numbers])
    lines = [text_table(rows, left=(0, 1))]
    if len(conditions.units) > 2:
        told = ", ".join(f"{conditions.columns[name]} p {_short(value)}" for name, value in overall.items())
        lines.append(f"Kruskal-Wallis over all conditions: {told}")
    lines.append(
        f"Medians over experimental units ({f'by {unit}' if unit else 'images'}; numbers in brackets), Mann-Whitney's "
        f"test, Holm's correction over {len(found)} comparisons. Objects are not units: many of them in few units "
        "prove nothing."
    )
    if not unit:
        lines.append(
            "If several images are of one well, plate or animal, name it with --unit: images are then not units."
        )
    few = [one for one in found if one.least_p > 0.05]
    if few:
        lines.append(f"{few[0].first}, {few[0].second}: so few units cannot give a p below {few[0].least_p:.2g}.")
    return "\n".join(lines)


def _short(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"
