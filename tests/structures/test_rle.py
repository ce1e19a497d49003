"""Run-lengths: equal to COCO's own tool, and safe on anything that is not a run-length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from detseg.errors import DataError
from detseg.structures import rle
from detseg.structures.runs import Runs

SIDES = st.integers(1, 24)
MASKS = st.tuples(SIDES, SIDES).flatmap(lambda shape: arrays(np.bool_, shape))
LABELS = st.tuples(SIDES, SIDES).flatmap(lambda shape: arrays(np.int32, shape, elements=st.integers(0, 5)))


def coco_counts(mask: np.ndarray) -> bytes:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


@given(MASKS)
def test_text_is_the_one_of_pycocotools_and_decodes_to_the_mask(mask):
    encoded = rle.encode_mask(mask)
    assert encoded == {"size": list(mask.shape), "counts": coco_counts(mask)}
    assert np.array_equal(rle.decode(encoded), mask)


@given(MASKS, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_a_crop_encodes_as_the_mask_that_it_was_cut_from(crop, left, top, right, bottom):
    mask = np.pad(crop, ((top, bottom), (left, right)))
    encoded = rle.encode_crop(crop, left, top, *mask.shape)
    assert encoded["counts"] == coco_counts(mask)
    tight, x0, y0 = rle.decode_crop(encoded)
    back = np.zeros_like(mask)
    back[y0 : y0 + tight.shape[0], x0 : x0 + tight.shape[1]] = tight
    assert np.array_equal(back, mask)
    if mask.any():
        assert tight.any(axis=0)[[0, -1]].all(), "the crop is not tight from left to right"
        assert tight.any(axis=1)[[0, -1]].all(), "the crop is not tight from top to bottom"


@given(LABELS)
def test_labels_areas_and_boxes_of_all_objects_at_once(labels):
    rles = rle.encode_labels(labels, 6)
    assert [r["counts"] for r in rles] == [coco_counts(labels == label) for label in range(1, 7)]
    assert rle.area(rles).tolist() == coco_mask.area(rles).tolist()
    expected = coco_mask.toBbox(rles)
    expected[:, 2:] += expected[:, :2]
    expected[coco_mask.area(rles) == 0] = 0
    assert rle.bounding_boxes(rles).tolist() == expected.tolist()


@given(LABELS, st.booleans())
def test_runs_read_and_encoded_are_the_same_text_also_when_cut_in_two(labels, cut):
    rles = rle.encode_labels(labels, 6)
    runs = rle.read_runs(rles)
    if cut:
        starts, ends = runs.starts, runs.ends
        middle = (starts + ends) // 2
        kept = np.flatnonzero(np.stack([middle > starts, ends > middle], axis=1).ravel())
        runs = Runs(
            np.stack([starts, middle], axis=1).ravel()[kept],
            np.stack([middle, ends], axis=1).ravel()[kept],
            np.repeat(runs.owners, 2)[kept],
            runs.heights,
            runs.widths,
        )
    assert rle.encode_runs(runs) == rles


def test_a_few_characters_that_claim_a_mask_of_256_gigabytes_are_refused_before_memory_is_taken():
    everything = {"size": [2**19, 2**19], "counts": [0, 2**38]}
    assert rle.area([everything]).tolist() == [2**38]
    for decode in (rle.decode, rle.decode_crop):
        with pytest.raises(DataError, match="exceeds the limit"):
            decode(everything)


@pytest.mark.parametrize("counts", ["0" * 10_000, b" " * 10_000, [0] * 10_000])
def test_more_runs_than_an_image_has_pixels_are_refused_before_memory_is_taken(counts):
    with pytest.raises(
        DataError, match=r"mask 1 has 10000 characters or numbers, more than .* 32 x 32 pixels can have"
    ):
        rle.area([{"size": [2, 2], "counts": "4"}, {"size": [32, 32], "counts": counts}])


def test_long_runs_use_several_characters():
    mask = np.zeros((3000, 4000), dtype=bool)
    mask[100:200, 50:3000] = True
    mask[2999, 3999] = True
    assert rle.encode_mask(mask)["counts"] == coco_counts(mask)
    assert np.array_equal(rle.decode(rle.encode_mask(mask)), mask)


def test_lists_of_counts_are_read_as_the_compressed_form():
    assert rle.decode({"size": [2, 3], "counts": [1, 2, 3]}).tolist() == [[False, True, False], [True, False, False]]
    counts = {"size": [3, 20_000], "counts": [1, 2, 3, 4, 59990]}
    assert rle.encode_runs(rle.read_runs([counts]))[0]["counts"] == rle.compress_counts(counts["counts"])


def test_nothing_at_all():
    assert rle.encode_labels(np.zeros((4, 5), dtype=np.int32), 0) == []
    assert rle.area([]).shape == (0,)
    assert rle.bounding_boxes([]).shape == (0, 4)
    assert rle.decode_crop(rle.encode_mask(np.zeros((4, 5), dtype=bool)))[0].shape == (0, 0)
    assert rle.encode_mask(np.zeros((0, 5), dtype=bool))["size"] == [0, 5]


HOSTILE = [
    {"size": [2, 2], "counts": [1, 2]},  # too few pixels
    {"size": [2, 2], "counts": [1, 2, 3]},  # too many
    {"size": [2, 2], "counts": [5, -1]},
    {"size": [2, 2], "counts": [1.5, 2.5]},
    {"size": [2, 2], "counts": ["1", "3"]},
    {"size": [2, 2], "counts": [[1], [3]]},
    {"size": [2, 2], "counts": [2**70, 1]},
    {"size": [2, 2], "counts": None},
    {"size": [2, 2], "counts": "é"},
    {"size": [2, 2], "counts": " 1"},
    {"size": [2, 2], "counts": b"P"},  # says that more follows, and ends
    {"size": [2, 2], "counts": b"ooooooooooooooooooo0"},
    {"size": [2], "counts": b"4"},
    {"size": [-2, -2], "counts": b"4"},
    {"size": ["a", 2], "counts": b"4"},
    {"size": [float("nan"), 2], "counts": b"4"},
    {"size": [2**60, 2**60], "counts": b"4"},
    {"size": [2, 2]},
    {"counts": b"4"},
    {},
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=str)
def test_a_broken_rle_is_refused(hostile):
    with pytest.raises(DataError):
        rle.decode(hostile)


@given(st.binary(max_size=40), SIDES, SIDES)
def test_any_bytes_give_a_mask_or_a_data_error(text, height, width):
    try:
        mask = rle.decode({"size": [height, width], "counts": text})
    except DataError:
        return
    assert mask.shape == (height, width)
    # Text may hold empty runs, so that it is not the one that we would write; the mask must be the same.
    assert np.array_equal(rle.decode(rle.encode_mask(mask)), mask)


def test_a_broken_rle_among_many_is_named():
    good = rle.encode_mask(np.ones((2, 2), dtype=bool))
    with pytest.raises(DataError, match="mask 1"):
        rle.area([good, {"size": [2, 2], "counts": [1, 1]}, good])


def test_a_crop_outside_the_image_is_refused():
    with pytest.raises(DataError, match="extends beyond the image"):
        rle.encode_crop(np.ones((3, 3), dtype=bool), 8, 0, 10, 10)
