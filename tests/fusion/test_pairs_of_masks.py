"""Shared pixels and meeting boxes, against full-size masks and tables of all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.structures import bit_masks
from detseg.structures import overlaps as near_pairs
from detseg.structures import rle as rle_codec
from detseg.structures.bit_masks import BitMasks, chunks_of, count_bits, read_column_runs
from detseg.structures.boxes import box_intersection
from detseg.structures.overlaps import meeting_boxes


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 6), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_bits_count_as_full_masks_do(height, width, count, density, seed):
    # Random pixels: holes, several runs a column, runs over whole columns, empty masks.
    masks = np.random.default_rng(seed).random((count, height, width)) < density
    bits = BitMasks(read_column_runs([rle_codec.encode_mask(mask) for mask in masks]))
    first, second = (index.ravel() for index in np.indices((count, count)))
    expected = np.array([np.count_nonzero(masks[a] & masks[b]) for a, b in zip(first, second, strict=True)])
    np.testing.assert_array_equal(bits.intersections(first, second), expected)
    np.testing.assert_array_equal(bits.areas, masks.sum(axis=(1, 2)))
    np.testing.assert_array_equal(bits.boxes, rle_codec.bounding_boxes([rle_codec.encode_mask(m) for m in masks]))


def test_counting_in_portions(monkeypatch):
    monkeypatch.setattr(bit_masks, "WORDS_AT_ONCE", 7)
    masks = np.random.default_rng(0).random((12, 50, 60)) < 0.5
    bits = BitMasks(read_column_runs([rle_codec.encode_mask(mask) for mask in masks]))
    first, second = (index.ravel() for index in np.indices((12, 12)))
    expected = [np.count_nonzero(masks[a] & masks[b]) for a, b in zip(first, second, strict=True)]
    assert bits.intersections(first, second).tolist() == expected


def test_ones_are_counted_without_numpy_2(monkeypatch):
    words = np.random.default_rng(1).integers(0, 2**64, 500, dtype=np.uint64)
    expected = [int(word).bit_count() for word in words]
    assert count_bits(words).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert count_bits(words).tolist() == expected


@pytest.mark.parametrize("at_once", [1, 50, 2**19])
@pytest.mark.parametrize("seed", range(4))
def test_every_pair_of_boxes_that_meets_is_found_once(seed, at_once, monkeypatch):
    monkeypatch.setattr(near_pairs, "PAIRS_AT_ONCE", at_once)
    random = np.random.default_rng(seed)
    corners = random.integers(0, 60, (80, 2)) / (1 if seed % 2 else 4)
    # Some without area, one over everything, several equal.
    sides = np.where(random.random((80, 1)) < 0.1, 0, random.integers(1, 12, (80, 2)))
    boxes = np.concatenate([corners, corners + sides], axis=1)
    boxes[5], boxes[6] = [0, 0, 100, 100], boxes[7]
    groups = random.integers(0, 3, 80) * 5
    found = [
        pair for portion in meeting_boxes(boxes, groups) for pair in zip(*map(np.ndarray.tolist, portion), strict=True)
    ]
    table = (box_intersection(boxes, boxes) > 0) & (groups[:, None] == groups)
    assert sorted(found) == list(zip(*(index.tolist() for index in np.nonzero(np.triu(table, 1))), strict=True))


def test_no_boxes_meet_nothing():
    assert list(meeting_boxes(np.zeros((0, 4)), np.zeros(0, dtype=int))) == []
    assert list(meeting_boxes(np.array([[0, 0, 5, 5]]), np.zeros(1, dtype=int))) == []


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 12))
def test_chunks_cover_everything_in_order(counts, limit):
    chunks = chunks_of(np.array(counts, dtype=np.int64), limit)
    assert [index for chunk in chunks for index in range(chunk.start, chunk.stop)] == list(range(len(counts)))
