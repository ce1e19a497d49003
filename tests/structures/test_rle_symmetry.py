"""Masks mirrored and transposed as run-lengths: what decoding, NumPy and encoding give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detseg.errors import DataError
from detseg.structures import rle as rle_codec
from detseg.structures.rle import mirror_rles, transpose_rles


@st.composite
def masks(draw):
    """(N, H, W) bool: noise of any density, so empty, full and whole-column runs occur."""
    count, height, width = draw(st.integers(0, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return random.random((count, height, width)) < draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))


@given(masks(), st.booleans(), st.booleans())
def test_mirrored_runs_are_those_of_the_mirrored_mask(masks, flip_x, flip_y):
    rles = [rle_codec.encode_mask(mask) for mask in masks]
    expected = [rle_codec.encode_mask(m[:: -1 if flip_y else 1, :: -1 if flip_x else 1]) for m in masks]
    height, width = masks.shape[1:]
    mirrored = mirror_rles(rles, height, width, flip_x=flip_x, flip_y=flip_y)
    assert mirrored == expected
    assert mirror_rles(mirrored, height, width, flip_x=flip_x, flip_y=flip_y) == rles


@given(masks())
def test_transposed_runs_are_those_of_the_transposed_mask(masks):
    rles = [rle_codec.encode_mask(mask) for mask in masks]
    transposed = transpose_rles(rles, *masks.shape[1:])
    assert transposed == [rle_codec.encode_mask(mask.T) for mask in masks]
    assert transpose_rles(transposed, *masks.shape[:0:-1]) == rles


def test_a_broken_run_length_is_named():
    good = rle_codec.encode_mask(np.ones((3, 4), bool))
    with pytest.raises(DataError, match="mask 1"):
        mirror_rles([good, {"size": [3, 4], "counts": b"99"}], 3, 4, flip_x=True)
