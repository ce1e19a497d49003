"""Boxes and the tiles of a grid: each is seen where the sides that cut the image are farthest."""

from __future__ import annotations

import numpy as np
import pytest

from detseg.structures.boxes import boxes_by_tile, depth_in_window


@pytest.mark.parametrize("count", [0, 1, 200])
def test_every_box_is_in_its_deepest_tile(count: int) -> None:
    rng = np.random.default_rng(0)
    rows, columns, height, width = [(0, 40), (30, 70), (60, 90)], [(0, 50), (35, 80)], 90, 80
    low = rng.uniform(0, 70, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 45, (count, 2))], axis=1).clip(0, [80, 90, 80, 90])
    tiles, others = boxes_by_tile(boxes, rows, columns, height, width)
    windows = [(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns]
    depth = np.max([depth_in_window(boxes, window, height, width) for window in windows], axis=0)
    assert sorted(np.concatenate([others, *(inside for _, _, inside in tiles)]).tolist()) == list(range(count))
    assert (depth[others] < 0).all()
    for row, column, inside in tiles:
        own = depth_in_window(boxes[inside], windows[row * len(columns) + column], height, width)
        assert np.array_equal(own, depth[inside])
        assert (own >= 0).all()
    if not count:
        assert tiles == []
