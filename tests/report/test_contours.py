"""Contours lie on the borders of their objects, in the colour of their class."""

from __future__ import annotations

import numpy as np
import pytest
from scoring_cases import rectangle

from detseg.report.drawing import FRACTION_BITS, PALETTE, class_colour, draw_objects, fitting_line_width, trace
from detseg.report.drawing import typical_thickness as thickness_of
from detseg.structures import rle as rle_codec


def coloured(picture, colour, tolerance=60):
    return (np.abs(picture.astype(int) - colour).max(axis=2) < tolerance).nonzero()


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_line_follows_the_border(scale):
    height, width = 60, 80
    rle = rle_codec.encode_crop(np.ones((24, 32), dtype=bool), 20, 10, height, width)
    canvas = np.zeros((int(height * scale), int(width * scale), 3), dtype=np.uint8)
    drawn = draw_objects(canvas, [rle], [(255, 176, 0)], scale, line_width=1)
    y, x = coloured(drawn, (255, 176, 0), 120)
    expected = np.array([20, 10, 52, 34]) * scale
    assert np.abs(np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) - expected).max() <= 1 + scale / 2
    inside = drawn[int(22 * scale), int(36 * scale)]
    assert 0 < inside.max() < 60, "the inside should be tinted, not covered"
    assert not drawn[0].any()
    assert not canvas.any(), "the input was changed"


def test_holes_have_lines_and_empty_masks_none():
    ring = np.ones((20, 20), dtype=bool)
    ring[6:14, 6:14] = False
    empty = rle_codec.encode_mask(np.zeros((40, 50), dtype=bool))
    shapes = trace([rle_codec.encode_crop(ring, 3, 3, 40, 50), empty, rectangle(30, 30, 31, 31)], 2.0)
    assert [len(shape) for shape in shapes] == [2, 0, 1]
    canvas = np.zeros((80, 100, 3), dtype=np.uint8)
    assert draw_objects(canvas, [empty], [(255, 0, 0)], 2.0).max() == 0
    assert draw_objects(canvas, [rectangle(30, 30, 31, 31)], [(255, 0, 0)], 2.0)[60:62, 60:62, 0].max() > 100
    assert np.array_equal(draw_objects(canvas, [], [], 2.0), canvas)


def test_lines_stay_inside_the_picture():
    shape = trace([rectangle(0, 0, 50, 40)], 3.0)[0][0] / (1 << FRACTION_BITS)
    assert shape.min() >= 0
    assert shape[:, 0, 0].max() <= 149
    assert shape[:, 0, 1].max() <= 119


def test_touching_objects_keep_two_lines():
    canvas = np.zeros((120, 150, 3), dtype=np.uint8)
    drawn = draw_objects(
        canvas, [rectangle(5, 5, 20, 30), rectangle(20, 5, 40, 30)], [(255, 0, 0), (0, 255, 0)], 3.0, line_width=1
    )
    assert len(coloured(drawn, (255, 0, 0))[0]) > 50
    assert len(coloured(drawn, (0, 255, 0))[0]) > 50


def test_lines_get_thin_for_thin_objects():
    disc, rod = rectangle(0, 0, 20, 20), rectangle(0, 0, 48, 3)
    assert fitting_line_width(thickness_of([disc]), 1.0) == 2
    assert fitting_line_width(thickness_of([rod]), 1.0) == 1
    assert fitting_line_width(thickness_of([]), 1.0) == 2
    assert thickness_of([rle_codec.encode_mask(np.zeros((4, 4), dtype=bool))]) is None
    assert thickness_of([rod]) == pytest.approx(3, rel=0.01)


def test_every_class_has_a_colour():
    assert class_colour(0) == PALETTE[0]
    assert class_colour(len(PALETTE)) == PALETTE[0]
    assert len(set(PALETTE)) == len(PALETTE) == 8
