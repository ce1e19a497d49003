"""Label layers: the same objects as a stack of full masks, at a fraction of the memory."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from detseg.errors import DataError
from detseg.structures import LabelLayers
from detseg.structures import rle as rle_codec

SHAPES = st.tuples(st.integers(0, 7), st.integers(1, 12), st.integers(1, 12))
STACKS = SHAPES.flatmap(lambda shape: arrays(np.bool_, shape))


def reference_boxes(masks: np.ndarray) -> list[list[int]]:
    boxes = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        empty = len(rows) == 0
        boxes.append([0] * 4 if empty else [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return boxes


@given(STACKS)
def test_masks_boxes_areas_and_rles_are_those_of_the_stack(masks):
    layers = LabelLayers.from_masks(masks)
    assert len(layers) == len(masks)
    assert np.array_equal(layers.masks(), masks)
    assert layers.areas().tolist() == masks.sum(axis=(1, 2)).tolist()
    assert layers.boxes().tolist() == reference_boxes(masks)
    rles = layers.to_rles()
    assert rles == [rle_codec.encode_mask(mask) for mask in masks]
    assert np.array_equal(LabelLayers.from_rles(rles, *masks.shape[1:]).masks(), masks)


@given(STACKS)
def test_layers_painted_together_are_those_placed_one_by_one(masks):
    rles = [rle_codec.encode_mask(mask) for mask in masks]
    painted = LabelLayers.from_rles(rles, *masks.shape[1:])
    assert np.array_equal(painted.layers, LabelLayers.from_masks(masks).layers)
    assert len(painted) == len(masks)


@given(STACKS, st.data())
def test_selecting_keeps_order_and_renames_ids(masks, data):
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(masks), max_size=len(masks))), dtype=bool)
    layers = LabelLayers.from_masks(masks)
    assert np.array_equal(layers.select(keep).masks(), masks[keep])
    shuffled = np.flatnonzero(keep)[::-1]
    assert np.array_equal(layers.select(shuffled).masks(), masks[shuffled])


def test_objects_that_do_not_overlap_share_one_layer():
    masks = np.zeros((100, 20, 20), dtype=bool)
    for index in range(100):
        masks[index, 2 * (index // 10) : 2 * (index // 10) + 2, 2 * (index % 10) : 2 * (index % 10) + 2] = True
    assert LabelLayers.from_masks(masks).num_layers == 1


def test_three_mutually_overlapping_objects_need_three_layers():
    layers = LabelLayers.from_masks(np.ones((3, 4, 4), dtype=bool))
    assert layers.num_layers == 3
    assert layers.layer_index().tolist() == [0, 1, 2]
    assert layers.select(np.array([2])).num_layers == 1


def test_a_label_image_is_compacted_in_ascending_order_and_keeps_components_together():
    labels = np.array([[7, 0, 7], [0, 65535, 0], [2**31 - 1, 0, 0]], dtype=np.uint32)
    layers = LabelLayers.from_label_image(labels)
    assert layers.layers[0].tolist() == [[1, 0, 1], [0, 2, 0], [3, 0, 0]]
    assert layers.areas().tolist() == [2, 1, 1]
    full = LabelLayers.from_label_image(np.array([[5, 2**40], [5, 2**41]]))
    assert full.layers[0].tolist() == [[1, 2], [1, 3]], "an image without background must not lose its first object"


@pytest.mark.parametrize(
    "labels", [np.zeros((2, 2)), np.array([[-1, 0]]), np.zeros((2, 2, 3), dtype=int)], ids=["float", "negative", "rgb"]
)
def test_what_is_no_label_image_is_refused(labels):
    with pytest.raises(DataError, match="label image"):
        LabelLayers.from_label_image(labels)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(DataError, match=r"mask 0 .*\[4, 5\]"):
        LabelLayers.from_rles([rle_codec.encode_mask(np.ones((4, 5), dtype=bool))], 5, 4)


@pytest.mark.parametrize(
    "rle",
    [None, 5, "text", [], {}, {"size": None, "counts": "4"}, {"size": [2], "counts": "4"}, {"size": [2, 2]}],
    ids=str,
)
def test_what_is_no_rle_is_refused(rle):
    good = rle_codec.encode_mask(np.ones((2, 2), dtype=bool))
    with pytest.raises(DataError, match="mask 1"):
        LabelLayers.from_rles([good, rle], 2, 2)


JUNK = st.one_of(
    st.none(),
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63, -(2**70)]),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=6),
    st.lists(st.integers(-2, 30) | st.floats() | st.text(max_size=2), max_size=5),
)
GOOD_RLES = arrays(np.bool_, (4, 5)).map(rle_codec.encode_mask)
BAD_RLES = JUNK | st.fixed_dictionaries({}, optional={"size": st.just([4, 5]) | JUNK, "counts": JUNK})


@given(st.lists(GOOD_RLES | GOOD_RLES | BAD_RLES, max_size=4))
def test_any_rles_give_layers_with_their_masks_or_a_data_error(rles):
    try:
        layers = LabelLayers.from_rles(rles, 4, 5)
    except DataError:
        return
    assert np.array_equal(layers.masks(), np.array([rle_codec.decode(rle) for rle in rles]).reshape(-1, 4, 5))


@given(
    arrays(
        st.sampled_from([np.int8, np.uint16, np.int32, np.int64, np.uint64, np.float32, np.bool_, np.complex64]),
        st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple),
    )
)
def test_any_array_gives_layers_or_a_data_error(labels):
    try:
        layers = LabelLayers.from_label_image(labels)
    except DataError:
        return
    present = np.unique(labels[labels > 0])
    assert layers.areas().tolist() == [np.count_nonzero(labels == value) for value in present]


def test_an_image_without_objects():
    layers = LabelLayers.empty(3, 4)
    assert (len(layers), layers.num_layers, layers.to_rles()) == (0, 1, [])
    assert layers.boxes().shape == (0, 4)
    assert layers.masks().shape == (0, 3, 4)
    assert LabelLayers.from_masks(np.zeros((0, 3, 4), dtype=bool)).layers.shape == (1, 3, 4)


def test_pickled_layers_are_the_same_and_half_as_large() -> None:
    layers = LabelLayers.from_masks(np.random.default_rng(0).random((5, 40, 60)) < 0.3)
    boxes = layers.boxes()
    text = pickle.dumps(layers)
    assert len(text) < 0.6 * layers.layers.nbytes
    again = pickle.loads(text)
    assert again.layers.dtype == np.int32
    np.testing.assert_array_equal(again.layers, layers.layers)
    np.testing.assert_array_equal(again.boxes(), boxes)
    many = LabelLayers(np.arange(1, 70_001, dtype=np.int32).reshape(1, 700, 100), 70_000)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(many)).layers, many.layers)


@given(st.integers(0, 2**20), st.lists(st.integers(0, 9), unique=True, max_size=10))
def test_what_is_known_of_objects_stays_true_when_they_are_selected(seed: int, keep: list[int]) -> None:
    masks = np.random.default_rng(seed).random((10, 6, 7)) < 0.15
    layers = LabelLayers.from_masks(masks)
    layers.boxes()
    selected = layers.select(np.array(keep, dtype=np.int64))
    fresh = LabelLayers(selected.layers, len(keep))
    np.testing.assert_array_equal(selected.boxes(), fresh.boxes())
    np.testing.assert_array_equal(selected.areas(), fresh.areas())
    np.testing.assert_array_equal(selected.layer_index(), fresh.layer_index())
    np.testing.assert_array_equal(selected.masks(), masks[keep])
