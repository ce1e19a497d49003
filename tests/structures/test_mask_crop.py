"""Crops of masks: the same pixels as full-size masks, wherever the crops are cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from detseg.structures.mask_crop import EMPTY, MaskCrop, boxes_of_crops, crops_of_runs, runs_of_crops, union_of

HEIGHT, WIDTH = 14, 16
SIDES = st.integers(0, 8)
CROPS = st.builds(
    MaskCrop,
    st.tuples(SIDES, SIDES).flatmap(lambda shape: arrays(np.bool_, shape)),
    st.integers(0, 8),
    st.integers(0, 6),
)


def full(crop: MaskCrop) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[crop.window] = crop.mask
    return mask


@given(CROPS, CROPS)
def test_shared_pixels_are_those_of_full_masks(first: MaskCrop, second: MaskCrop) -> None:
    assert first.shared_pixels(second) == second.shared_pixels(first) == np.count_nonzero(full(first) & full(second))
    assert first.area == np.count_nonzero(full(first))


@given(CROPS, st.tuples(*[st.integers(0, 8)] * 4))
def test_cutting_moving_and_tightening_change_no_other_pixel(crop: MaskCrop, numbers: tuple[int, ...]) -> None:
    x0, y0, width, height = numbers
    inside = np.zeros((HEIGHT, WIDTH), dtype=bool)
    inside[y0 : y0 + height, x0 : x0 + width] = True
    cut = crop.within((x0, y0, x0 + width, y0 + height))
    np.testing.assert_array_equal(full(cut) if cut.mask.size else np.zeros_like(inside), full(crop) & inside)
    np.testing.assert_array_equal(full(crop.tight()), full(crop))
    assert crop.moved(2, 1).box == tuple(np.add(crop.box, (2, 1, 2, 1)))
    tight = crop.tight()
    if crop.mask.any():
        assert tight.mask[[0, -1]].any(axis=1).all()
        assert tight.mask[:, [0, -1]].any(axis=0).all()
    else:
        assert tight is EMPTY


@given(st.lists(CROPS, max_size=5))
def test_unions_and_runs_hold_the_same_pixels(crops: list[MaskCrop]) -> None:
    together = union_of(crops)
    expected = np.logical_or.reduce([full(crop) for crop in crops], initial=False, axis=0)
    np.testing.assert_array_equal(full(together), expected)
    runs = runs_of_crops(crops, HEIGHT, WIDTH)
    assert runs.areas().tolist() == [crop.area for crop in crops]
    assert runs.boxes().tolist() == boxes_of_crops(crop.tight() for crop in crops).tolist()
    for crop, back in zip(crops, crops_of_runs(runs), strict=True):
        assert back.box == crop.tight().box
        np.testing.assert_array_equal(full(back), full(crop))
