"""Outlines along the edges of pixels: they enclose exactly the pixels, and are what OGC calls valid."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from detseg.coco.masks import fill_polygons
from detseg.formats.outlines import trace_polygons

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9))


def inside_by_centres(rings: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Say of every pixel's centre whether a ray to the right crosses the rings an odd number of times."""
    inside = np.zeros((height, width), dtype=bool)
    for y in range(height):
        for x in range(width):
            crossings = 0
            for ring in rings:
                for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                    is_crossed = x0 == x1 and x0 > x + 0.5 and min(y0, y1) < y + 0.5 < max(y0, y1)
                    crossings += bool(is_crossed)
            inside[y, x] = crossings % 2
    return inside


def signed_area(ring: np.ndarray) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


@given(MASKS)
def test_filling_the_outlines_gives_the_mask_back(mask: np.ndarray) -> None:
    polygons = trace_polygons(mask)
    assert np.array_equal(inside_by_centres([ring for polygon in polygons for ring in polygon], *mask.shape), mask)
    crop, x0, y0 = fill_polygons(polygons, *mask.shape)
    filled = np.zeros_like(mask)
    filled[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop
    assert np.array_equal(filled, mask)


@given(MASKS)
def test_rings_turn_at_every_point_come_to_none_twice_and_holes_run_the_other_way(mask: np.ndarray) -> None:
    total = 0.0
    for polygon in trace_polygons(mask):
        for number, ring in enumerate(polygon):
            assert len(set(map(tuple, ring.tolist()))) == len(ring)
            steps = np.roll(ring, -1, axis=0) - ring
            assert ((steps == 0).sum(axis=1) == 1).all()
            assert ((steps[:, 0] == 0) != (np.roll(steps, 1, axis=0)[:, 0] == 0)).all()
            assert (signed_area(ring) > 0) == (number == 0)
            total += signed_area(ring)
    assert total == mask.sum()


@given(MASKS, st.integers(0, 50), st.integers(0, 50))
def test_a_polygon_is_a_part_of_pixels_with_common_edges_at_its_place(mask: np.ndarray, x0: int, y0: int) -> None:
    seen = np.zeros((y0 + mask.shape[0], x0 + mask.shape[1]), dtype=int)
    for polygon in trace_polygons(mask, x0, y0):
        part = inside_by_centres(polygon, *seen.shape)
        rows, columns = np.nonzero(part)
        reached = {(rows[0], columns[0])}
        pending = list(reached)
        while pending:
            y, x = pending.pop()
            for place in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                is_new = place not in reached and 0 <= place[0] < part.shape[0] and 0 <= place[1] < part.shape[1]
                if is_new and part[place]:
                    reached.add(place)
                    pending.append(place)
        assert len(reached) == part.sum()
        seen += part
    assert np.array_equal(seen[y0:, x0:] > 0, mask)
    assert seen.max(initial=0) <= 1


def test_known_outlines() -> None:
    square = trace_polygons(np.ones((2, 3), bool), 10, 20)
    assert sorted(map(tuple, square[0][0].tolist())) == [(10, 20), (10, 22), (13, 20), (13, 22)]
    frame = np.ones((5, 5), bool)
    frame[2, 2] = False
    (rings,) = trace_polygons(frame)
    assert sorted(map(tuple, rings[1].tolist())) == [(2, 2), (2, 3), (3, 2), (3, 3)]
    # Two pixels that share a corner are two polygons; a hole that touches the border in a corner stays a hole.
    assert len(trace_polygons(np.eye(2, dtype=bool))) == 2
    touching = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    (rings,) = trace_polygons(touching)
    assert [len(ring) for ring in rings] == [6, 4]
    assert trace_polygons(np.zeros((3, 3), bool)) == []
