"""The summary of a prediction: it says of every image what the table of its objects says, and of folders of all."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from detseg.errors import DataError
from detseg.files.table import read_table
from detseg.formats import measurements
from detseg.formats.measurements import measure_image, measure_numbers
from detseg.formats.objects import ImageObjects
from detseg.formats.summary import SHOWN, Summary, _Values, summary_name
from detseg.structures import rle as rle_codec
from detseg.structures.overlaps import covered_pixels

CLASSES = ["a", "b"]


def discs(seed: int, path: Path, size: tuple[float, float] | None = None, *, side: int = 90) -> ImageObjects:
    """Objects that overlap, one of them empty, over a picture with two channels."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, : side + 7]
    masks = [(y - a) ** 2 + (x - b) ** 2 < r * r for a, b, r in random.uniform([0, 0, 3], [side, side, 20], (9, 3))]
    rles = [rle_codec.encode_mask(mask) for mask in [*masks[:4], np.zeros_like(masks[0]), *masks[4:]]]
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, random.integers(0, 60000, (side, side + 7, 2)).astype(np.uint16), planarconfig="contig")
    fields = {"plane": {"axes": "YXC"}}
    return ImageObjects(
        seed, path.name, side, side + 7, rles, random.integers(0, 2, 10), None, size, fields=fields, picture=path
    )


def rows_of(summary: Summary, path: Path) -> list[dict[str, str]]:
    summary.write(path)
    return list(csv.DictReader(path.open(newline="")))


def add(summary: Summary, name: str, objects: ImageObjects) -> None:
    summary.add(name, objects.height, objects.width, measure_numbers(objects), objects.classes)


def test_every_image_agrees_with_the_table_of_its_objects(tmp_path: Path):
    objects = discs(1, tmp_path / "i.tif", (0.5, 0.25))
    table = measure_image(objects, CLASSES)
    summary = Summary(CLASSES)
    add(summary, "i.tif", objects)
    (row,) = rows_of(summary, tmp_path / "s.csv")
    assert int(row["cells"]) == len(table["id"]) == 9, "the mask without a pixel is in neither"
    assert [int(row["cells_a"]), int(row["cells_b"])] == [table["class"].count(name) for name in CLASSES]
    for column, measure, of in (
        ("median_area_px", np.median, "area_px"),
        ("median_area_um2", np.median, "area_um2"),
        ("intensity_mean_0", np.mean, "intensity_mean_0"),
        ("intensity_median_1", np.median, "intensity_mean_1"),
    ):
        assert float(row[column]) == pytest.approx(measure([float(value) for value in table[of]]), rel=1e-6), column
    pixels = objects.height * objects.width
    union = np.any([rle_codec.decode(rle) for rle in objects.rles], axis=0)
    assert float(row["coverage"]) == pytest.approx(union.sum() / pixels), "shared pixels count once"
    assert float(row["density_per_megapixel"]) == pytest.approx(9 / pixels * 1e6)
    assert float(row["density_per_mm2"]) == pytest.approx(9 / (pixels * 0.125e-6))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_an_image_read_in_bands_gives_the_same(kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    objects = discs(2, tmp_path / "i.tif", side=300)
    tifffile.imwrite(objects.picture, tifffile.imread(objects.picture).astype(kind), rowsperstrip=16)
    whole = measure_numbers(objects)
    monkeypatch.setattr(measurements, "_BAND_PIXELS", 1)
    in_bands = measure_numbers(objects)
    for suffix, values in whole.intensities.items():
        assert in_bands.intensities[suffix] == pytest.approx(values, rel=1e-12)
        table = measure_image(objects, CLASSES)[f"intensity_mean{suffix}"]
        assert [f"{value:.7g}" for value in values] == table


def test_folders_have_rows_where_there_are_several(tmp_path: Path):
    summary = Summary(["cell"])
    images = {
        name: discs(number, tmp_path / name, (1, 1)) for number, name in enumerate(("x/1.tif", "x/2.tif", "y/3.tif"))
    }
    for name, objects in images.items():
        add(summary, name, objects)
    rows = rows_of(summary, tmp_path / "s.csv")
    assert [(row["kind"], row["name"], row["images"], row["cells"]) for row in rows] == [
        *(("image", name, "1", "9") for name in images),
        *(("folder", "x", "2", "18"), ("folder", "y", "1", "9"), ("all", "", "3", "27")),
    ]
    tables = [measure_image(images[name], ["cell"] * 2) for name in ("x/1.tif", "x/2.tif")]
    for column, measure, of in (
        ("median_area_px", np.median, "area_px"),
        ("intensity_mean_1", np.mean, "intensity_mean_1"),
        ("intensity_median_0", np.median, "intensity_mean_0"),
    ):
        together = [float(value) for table in tables for value in table[of]]
        assert float(rows[3][column]) == pytest.approx(measure(together), rel=1e-3), column
    text = summary.text()
    assert "folder x" in text
    assert "all 3 images" in text


def test_what_is_not_known_of_all_is_not_said_of_all(tmp_path: Path):
    summary = Summary(["cell"])
    add(summary, "1.tif", discs(1, tmp_path / "1.tif", (0.5, 0.5)))
    add(summary, "2.tif", discs(2, tmp_path / "2.tif"))
    summary.add("boxes.tif", 10, 10, None, np.zeros(3, np.int64))
    first, second, boxes, together = rows_of(summary, tmp_path / "s.csv")
    assert first["density_per_mm2"]
    assert second["density_per_mm2"] == together["density_per_mm2"] == boxes["coverage"] == together["coverage"] == ""
    assert (boxes["cells"], together["cells"]) == ("3", "21")


@pytest.mark.parametrize("number", [0, 1])
def test_images_without_objects(number: int, tmp_path: Path):
    summary = Summary(["cell"])
    for name in "ab"[: number + 1]:
        empty = ImageObjects(1, name, 20, 30, [], np.zeros(0, np.int64))
        add(summary, name, empty)
    rows = rows_of(summary, tmp_path / "s.csv")
    assert all((row["cells"], row["coverage"], row["median_area_px"]) == ("0", "0", "") for row in rows)
    heading = summary.text().splitlines()[0]
    assert "cells" in heading, "that there are none is what is to be seen"
    assert "median" not in heading


def test_no_image_at_all(tmp_path: Path):
    assert rows_of(Summary(["cell"]), tmp_path / "s.csv") == []


def test_names_run_nothing_and_move_no_cursor(tmp_path: Path):
    summary = Summary(["=a", "b"])
    add(summary, "=cmd|'/c calc'!A1/\x1b[2Jx.png", ImageObjects(1, "", 20, 30, [], np.zeros(0, np.int64)))
    summary.write(tmp_path / "s.csv")
    assert "\x1b" not in summary.text() + (tmp_path / "s.csv").read_text()
    (row,) = csv.reader((tmp_path / "s.csv").read_text().splitlines()[1:])
    assert row[1].startswith("'=")
    (values,) = read_table(tmp_path / "s.csv", ["name"]).rows
    assert values.values["name"].startswith("=cmd")


def test_many_images_are_not_all_printed(tmp_path: Path):
    summary = Summary(["cell"])
    for number in range(SHOWN + 5):
        add(summary, f"{number}.png", ImageObjects(number, "", 20, 30, [], np.zeros(0, np.int64)))
    assert "5 more images" in summary.text()
    assert len(summary.text().splitlines()) == SHOWN + 3


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 999])
def test_the_median_of_many(count: int):
    values, kept = np.random.default_rng(count).integers(0, 9000, count), _Values()
    for part in np.array_split(values, 3):
        kept.add(part)
    median = kept.median()
    assert math.isnan(median) if not count else median == np.median(values)


def test_memory_does_not_grow_with_objects():
    kept = _Values()
    for seed in range(20):
        kept.add(np.random.default_rng(seed).uniform(1, 1000, 5000))
    assert kept.count == 100_000
    assert len(kept.counts) < 27_001


def test_pixels_that_masks_share_count_once():
    masks = np.zeros((3, 7, 5), bool)
    masks[0, 1:5, 1:4], masks[1, 2:7, 2:5], masks[2, 3, 3] = True, True, True
    runs = rle_codec.read_runs([rle_codec.encode_mask(mask) for mask in masks])
    assert covered_pixels(runs) == masks.any(axis=0).sum()
    assert covered_pixels(rle_codec.read_runs([])) == 0


def test_another_picture_is_refused(tmp_path: Path):
    objects = discs(1, tmp_path / "i.tif")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "other.png")
    object.__setattr__(objects, "picture", tmp_path / "other.png")
    object.__setattr__(objects, "fields", {})
    with pytest.raises(DataError, match="5 x 5 pixels"):
        measure_numbers(objects)


def test_two_outputs_in_a_folder_have_two_summaries():
    names = ["a/p.json", "a/q.json.gz", "a/labels"]
    assert [summary_name(Path(name)).name for name in names] == ["p_summary.csv", "q_summary.csv", "labels_summary.csv"]
