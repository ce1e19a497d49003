"""Filling polygons at pixel centres: equal to a plain point-in-polygon test, exact along pixel edges, unions."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detseg.coco.masks import fill_polygon, fill_polygons, union_of

HEIGHT, WIDTH = 12, 15


def whole(crop: tuple[np.ndarray, int, int]) -> np.ndarray:
    pixels, x0, y0 = crop
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0 : y0 + pixels.shape[0], x0 : x0 + pixels.shape[1]] = pixels
    return mask


def is_inside(rings: list[np.ndarray], x: float, y: float) -> bool:
    """The even-odd rule, edge by edge."""
    inside = False
    for ring in rings:
        for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if (y1 <= y) != (y2 <= y) and x >= x1 + (y - y1) * (x2 - x1) / (y2 - y1):
                inside = not inside
    return inside


# Quarters of pixels: edges through centres and corners are as common as others.
COORDINATE = st.integers(-20, 80).map(lambda number: number / 4)
RING = st.lists(st.tuples(COORDINATE, COORDINATE), min_size=3, max_size=7).map(lambda ring: np.array(ring, float))


@given(st.lists(RING, min_size=1, max_size=3))
def test_pixels_are_those_whose_centre_is_inside(rings: list[np.ndarray]) -> None:
    expected = [[is_inside(rings, x + 0.5, y + 0.5) for x in range(WIDTH)] for y in range(HEIGHT)]
    np.testing.assert_array_equal(whole(fill_polygon(rings, HEIGHT, WIDTH)), expected)


def test_outlines_along_pixel_edges_give_these_pixels_and_no_hole_is_filled() -> None:
    outline = np.array([[2, 1], [9, 1], [9, 7], [2, 7], [2, 1]])
    hole = np.array([[4, 3], [6, 3], [6, 5], [4, 5]])
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[1:7, 2:9] = True
    expected[3:5, 4:6] = False
    np.testing.assert_array_equal(whole(fill_polygon([outline, hole], HEIGHT, WIDTH)), expected)


def test_polygons_that_overlap_are_joined_and_not_cancelled() -> None:
    first, second = np.array([[0, 0], [4, 0], [4, 4], [0, 4]]), np.array([[2, 2], [6, 2], [6, 6], [2, 6]])
    mask = whole(fill_polygons([[first], [second]], HEIGHT, WIDTH))
    assert mask.sum() == 16 + 16 - 4
    assert mask[3, 3]


def test_nothing_far_away_huge_or_thin() -> None:
    for rings in (
        [],
        [np.array([[1, 1], [5, 5]])],
        [np.array([[100, 100], [120, 100], [120, 130]])],
        [np.array([[3.6, 2], [3.9, 2], [3.9, 9], [3.6, 9]])],
    ):
        assert fill_polygon(rings, HEIGHT, WIDTH)[0].sum() == 0
    huge = np.array([[-1e18, -1e18], [1e18, -1e18], [1e18, 1e18], [-1e18, 1e18]])
    assert fill_polygon([huge], HEIGHT, WIDTH)[0].all()
    assert union_of([])[0].size == 0
