"""Shapes and intensities of objects: known answers, in pixels and micrometres, also of pixels that are not square."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from detseg.errors import DataError
from detseg.formats.measurements import Shape, crofton_perimeter, measure_image, measure_shape, write_measurements
from detseg.formats.objects import ImageObjects
from detseg.formats.outlines import trace_polygons
from detseg.structures import rle as rle_codec


def ellipse(height: float, width: float, degrees: float = 0.0, side: int = 201) -> np.ndarray:
    """Return a filled ellipse with axes `height` and `width`, turned counterclockwise on the screen."""
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2
    turn = math.radians(degrees)
    along, across = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
    return (2 * along / width) ** 2 + (2 * across / height) ** 2 <= 1


def shape_of(mask: np.ndarray, pixel_size: tuple[float, float] = (1.0, 1.0)) -> Shape:
    return measure_shape(mask, 0, 0, trace_polygons(mask), pixel_size)


def test_a_rectangle() -> None:
    shape = measure_shape(np.ones((4, 10), bool), 20, 30, trace_polygons(np.ones((4, 10), bool)))
    assert (shape.area, shape.centroid_x, shape.centroid_y) == (40, 25, 32)
    assert shape.solidity == 1
    assert shape.major_axis == pytest.approx(4 * math.sqrt(100 / 12))
    assert shape.minor_axis == pytest.approx(4 * math.sqrt(16 / 12))
    assert shape.eccentricity == pytest.approx(math.sqrt(1 - 0.16))
    assert shape.orientation == 0
    assert shape.equivalent_diameter == pytest.approx(2 * math.sqrt(40 / math.pi))


def test_one_pixel() -> None:
    shape = shape_of(np.ones((1, 1), bool), (0.5, 0.25))
    assert (shape.area, shape.centroid_x, shape.centroid_y) == (0.125, 0.125, 0.25)
    assert shape.eccentricity == pytest.approx(math.sqrt(0.75))
    assert 0 < shape.circularity <= 1


@pytest.mark.parametrize("degrees", [0, 17, 45, 60, 90, 133])
def test_ellipses_have_their_axes_orientation_and_perimeter(degrees: float) -> None:
    shape = shape_of(ellipse(60, 120, degrees))
    assert shape.major_axis == pytest.approx(120, rel=0.01)
    assert shape.minor_axis == pytest.approx(60, rel=0.01)
    assert shape.eccentricity == pytest.approx(math.sqrt(0.75), rel=0.01)
    wanted = degrees if degrees <= 90 else degrees - 180
    assert abs((shape.orientation - wanted + 90) % 180 - 90) < 0.5
    # Ramanujan's approximation.
    h = (60 - 30) ** 2 / (60 + 30) ** 2
    assert shape.perimeter == pytest.approx(math.pi * 90 * (1 + 3 * h / (10 + math.sqrt(4 - 3 * h))), rel=0.02)
    assert shape.solidity > 0.97


def test_a_disc_on_pixels_that_are_not_square() -> None:
    # 40 micrometres across, in pixels of 0.5 x 0.25: 80 pixels high and 160 wide.
    shape = shape_of(ellipse(80, 160), (0.5, 0.25))
    assert shape.area == pytest.approx(math.pi * 20**2, rel=0.01)
    assert shape.perimeter == pytest.approx(math.pi * 40, rel=0.02)
    assert shape.eccentricity < 0.1
    assert shape.circularity > 0.95


@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(0.1, 10))
def test_crofton_of_square_pixels_and_of_turned_masks(seed: int, dy: float, dx: float) -> None:
    mask = np.random.default_rng(seed).random((7, 9)) < 0.6
    padded = np.pad(mask, 1).astype(int)
    # The formula for square pixels, written plainly.
    straight = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    falling = np.abs(padded[1:, 1:] - padded[:-1, :-1]).sum()
    rising = np.abs(padded[1:, :-1] - padded[:-1, 1:]).sum()
    assert crofton_perimeter(mask) == pytest.approx(math.pi / 8 * (straight + (falling + rising) / math.sqrt(2)))
    assert crofton_perimeter(mask, (dy, dx)) == pytest.approx(crofton_perimeter(mask.T, (dx, dy)))
    assert crofton_perimeter(mask, (3 * dy, 3 * dx)) == pytest.approx(3 * crofton_perimeter(mask, (dy, dx)))


def objects(picture: Path | None = None, scores: np.ndarray | None = None, **fields: object) -> ImageObjects:
    """Return two rectangles of 2 x 3 and 4 x 4 pixels in an image of 20 x 30."""
    masks = np.zeros((2, 20, 30), bool)
    masks[0, 1:3, 5:8] = masks[1, 10:14, 10:14] = True
    rles = [rle_codec.encode_mask(mask) for mask in masks]
    return ImageObjects(7, "sub/a.tif", 20, 30, rles, np.array([1, 0]), scores=scores, picture=picture, **fields)


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_in_pixels(tmp_path: Path) -> None:
    write_measurements(tmp_path / "m.csv", [objects(scores=np.array([0.5, 0.25]))], ["round", "long"])
    first, second = read(tmp_path / "m.csv")
    wanted = {"image": "sub/a.tif", "id": "1", "class": "long", "score": "0.5", "area_px": "6", "centroid_x_px": "6.5"}
    wanted |= {"centroid_y_px": "2", "box_x_px": "5", "box_y_px": "1", "box_width_px": "3", "box_height_px": "2"}
    assert {name: first[name] for name in wanted} == wanted
    assert second["class"] == "round"
    assert not any(name.endswith(("_um", "_um2")) or name.startswith("intensity") for name in first)


def test_the_table_in_micrometres_and_intensities_by_channel(tmp_path: Path) -> None:
    stack = np.zeros((2, 20, 30), np.uint16)
    stack[0], stack[1] = np.arange(600).reshape(20, 30), 1000
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP"]}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata=metadata, photometric="minisblack")
    # The size comes from the image's file where nobody else says it.
    write_measurements(tmp_path / "m.csv", [objects(tmp_path / "a.ome.tif")], ["round", "long"])
    row = read(tmp_path / "m.csv")[0]
    assert float(row["area_um2"]) == pytest.approx(6 * 0.125)
    assert (row["centroid_x_um"], row["centroid_y_um"]) == ("3.25", "0.5")
    assert [row[f"box_{name}_um"] for name in ("x", "y", "width", "height")] == ["2.5", "0.25", "1.5", "0.5"]
    inside = stack[0, 1:3, 5:8]
    assert float(row["intensity_mean_DAPI"]) == inside.mean()
    assert float(row["intensity_std_DAPI"]) == pytest.approx(inside.std(), rel=1e-6)
    assert (row["intensity_min_DAPI"], row["intensity_max_DAPI"]) == ("35", "67")
    assert (row["intensity_sum_DAPI"], row["intensity_sum_GFP"]) == (str(inside.sum()), "6000")
    table = measure_image(objects(tmp_path / "a.ome.tif", pixel_size=(1.0, 1.0)), ["round", "long"])
    assert table["area_um2"] == ["6", "16"]


def test_images_of_other_channels_and_without_objects_are_in_one_table(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "gray.tif", np.full((20, 30), 7, np.uint8))
    tifffile.imwrite(tmp_path / "rgb.tif", np.full((20, 30, 3), 9, np.uint8), photometric="rgb")
    empty = ImageObjects(1, "none.tif", 20, 30, [], np.zeros(0, np.int64))
    images = [empty, objects(tmp_path / "gray.tif"), objects(tmp_path / "rgb.tif", pixel_size=(1.0, 1.0))]
    write_measurements(tmp_path / "m.csv", images, ["round", "long"])
    rows = read(tmp_path / "m.csv")
    assert [row["intensity_mean"] for row in rows] == ["7", "7", "", ""]
    assert [row["intensity_mean_2"] for row in rows] == ["", "", "9", "9"]
    assert [row["area_um2"] for row in rows] == ["", "", "6", "16"]
    assert list(rows[0])[-1].startswith("intensity")
    write_measurements(tmp_path / "none.csv", [empty], ["round", "long"])
    assert read(tmp_path / "none.csv") == []


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((30, 20), np.uint8))
    with pytest.raises(DataError, match=r"a\.tif: has 30 x 20 pixels"):
        measure_image(objects(tmp_path / "a.tif"), ["round", "long"])
