"""Shared pixels, meeting boxes and regions, against full-size masks and tables of all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from detseg.structures import overlaps
from detseg.structures import rle as rle_codec
from detseg.structures.boxes import box_intersection
from detseg.structures.overlaps import PackedMasks, are_disjoint, count_bits, find_regions, meeting_boxes, shared_pixels
from detseg.structures.runs import Runs, chunks_of

SHAPES = st.tuples(st.integers(0, 6), st.integers(1, 20), st.integers(1, 20))
SEEDS = st.integers(0, 2**32 - 1)


def random_masks(seed: int, *shape: int) -> np.ndarray:
    """Random pixels: holes, several runs a column, runs over whole columns, empty masks."""
    random = np.random.default_rng(seed)
    return random.random(shape) < random.random((shape[0], 1, 1))


def runs_of(masks: np.ndarray) -> Runs:
    return rle_codec.read_runs([rle_codec.encode_mask(mask) for mask in masks])


def table_of(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.einsum("ahw,bhw->ab", masks.astype(np.int64), others.astype(np.int64))


@pytest.mark.parametrize("at_once", [1, 7, 2**19])
@given(SHAPES, SEEDS)
@settings(deadline=None)
def test_overlaps_are_those_of_full_masks(at_once, shape, seed):
    masks = random_masks(seed, *shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlaps, "AT_ONCE", at_once)
        found = shared_pixels(runs_of(masks))
    table = np.triu(table_of(masks, masks), 1)
    expected = [tuple(pair) for pair in np.argwhere(table).tolist()]
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected, "sorted, each once"
    assert found.pixels.tolist() == table[table > 0].tolist()
    assert found.first_areas.tolist() == found.second_areas.tolist() == masks.sum(axis=(1, 2)).tolist()
    assert are_disjoint(runs_of(masks)) == (len(found) == 0)


@given(SHAPES, st.integers(0, 6), SEEDS)
@settings(deadline=None)
def test_overlaps_of_two_sets_are_those_of_full_masks(shape, count, seed):
    masks, others = random_masks(seed, *shape), random_masks(seed + 1, count, *shape[1:])
    found = shared_pixels(runs_of(masks), runs_of(others))
    table = table_of(masks, others)
    assert np.argwhere(table).tolist() == np.stack([found.first, found.second], axis=1).tolist()
    assert found.pixels.tolist() == table[table > 0].tolist()
    unions = [np.count_nonzero(masks[a] | others[b]) for a, b in np.argwhere(table)]
    assert found.iou.tolist() == (found.pixels / np.array(unions, dtype=np.int64)).tolist()
    half = found.select(found.iou > 0.5)
    assert half.pixels.tolist() == found.pixels[found.iou > 0.5].tolist()


@given(SHAPES, SEEDS, st.tuples(*[st.integers(0, 20)] * 4))
@settings(deadline=None)
def test_runs_select_move_and_cut_as_full_masks(shape, seed, box):
    masks = random_masks(seed, *shape)
    runs = runs_of(masks)
    chosen = np.random.default_rng(seed).integers(0, max(len(masks), 1), 4 * min(len(masks), 1))
    assert rle_codec.encode_runs(runs.select(chosen)) == [rle_codec.encode_mask(masks[index]) for index in chosen]
    moved = runs.moved(3, 2, shape[1] + 4, shape[2] + 5)
    padded = np.pad(masks, ((0, 0), (2, 2), (3, 2)))
    assert rle_codec.encode_runs(moved) == [rle_codec.encode_mask(mask) for mask in padded]
    x0, y0, x1, y1 = box[0], box[1], min(box[0] + box[2], shape[2]), min(box[1] + box[3], shape[1])
    inside = np.zeros_like(masks)
    inside[:, y0:y1, x0:x1] = masks[:, y0:y1, x0:x1]
    assert rle_codec.encode_runs(runs.within((x0, y0, x1, y1))) == [rle_codec.encode_mask(mask) for mask in inside]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 6), SEEDS)
def test_bits_count_as_full_masks_do(height, width, count, seed):
    masks = random_masks(seed, count, height, width)
    bits = PackedMasks(runs_of(masks))
    first, second = (index.ravel() for index in np.indices((count, count)))
    np.testing.assert_array_equal(bits.shared_pixels(first, second), table_of(masks, masks).ravel())
    np.testing.assert_array_equal(bits.areas, masks.sum(axis=(1, 2)))
    np.testing.assert_array_equal(bits.boxes, rle_codec.bounding_boxes([rle_codec.encode_mask(m) for m in masks]))


def test_counting_bits_in_portions(monkeypatch):
    monkeypatch.setattr(overlaps, "AT_ONCE", 7)
    masks = random_masks(0, 12, 50, 60)
    first, second = (index.ravel() for index in np.indices((12, 12)))
    expected = table_of(masks, masks).ravel().tolist()
    assert PackedMasks(runs_of(masks)).shared_pixels(first, second).tolist() == expected


def test_ones_are_counted_without_numpy_2(monkeypatch):
    words = np.random.default_rng(1).integers(0, 2**64, 500, dtype=np.uint64)
    expected = [int(word).bit_count() for word in words]
    assert count_bits(words).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert count_bits(words).tolist() == expected


@pytest.mark.parametrize("at_once", [1, 50, 2**19])
@pytest.mark.parametrize("seed", range(4))
def test_every_pair_of_boxes_that_meets_is_found_once(seed, at_once, monkeypatch):
    monkeypatch.setattr(overlaps, "AT_ONCE", at_once)
    random = np.random.default_rng(seed)
    corners = random.integers(0, 60, (80, 2)) / (1 if seed % 2 else 4)
    # Some without area, one over everything, several equal.
    sides = np.where(random.random((80, 1)) < 0.1, 0, random.integers(1, 12, (80, 2)))
    boxes = np.concatenate([corners, corners + sides], axis=1)
    boxes[5], boxes[6] = [0, 0, 100, 100], boxes[7]
    groups = random.integers(0, 3, 80) * 5
    found = [
        pair
        for portion in meeting_boxes(boxes, groups)
        for pair in zip(portion.first.tolist(), portion.second.tolist(), strict=True)
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


@given(arrays(np.bool_, st.tuples(st.integers(0, 6), st.just(7), st.just(6))))
def test_regions_are_the_pixels_on_which_the_same_masks_lie(masks):
    regions = find_regions(runs_of(masks))
    wanted = {}
    for y, x in np.ndindex(7, 6):
        on_pixel = tuple(np.flatnonzero(masks[:, y, x]).tolist())
        if on_pixel:
            wanted[on_pixel] = wanted.get(on_pixel, 0) + 1
    found = {}
    for region in np.unique(regions.entry_region):
        found[tuple(regions.entry_mask[regions.entry_region == region].tolist())] = int(regions.areas[region])
    assert found == wanted
