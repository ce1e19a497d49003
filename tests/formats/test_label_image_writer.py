"""Objects as label images: order, widths, overlaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from detseg.errors import DataError
from detseg.formats.label_images import LAYERS, REFUSE, TOP, to_label_image, write_npy, write_tiff
from detseg.formats.objects import ImageObjects
from detseg.images.reading import read_label_image, read_picture
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions


def objects_of(masks: np.ndarray, scores: list[float] | None = None, **fields: object) -> ImageObjects:
    """Return objects of the masks (N, H, W) bool, all of class 0."""
    rles = [rle_codec.encode_mask(mask) for mask in masks]
    classes = np.zeros(len(masks), dtype=np.int64)
    given_scores = None if scores is None else np.array(scores, dtype=np.float32)
    return ImageObjects(1, "a.png", *masks.shape[1:], rles, classes, scores=given_scores, **fields)


def three_masks() -> np.ndarray:
    masks = np.zeros((3, 6, 8), bool)
    masks[0, 0:4, 0:4] = masks[1, 2:6, 2:6] = masks[2, 0, 7] = True
    return masks


def test_labels_are_the_order_of_the_objects_and_the_best_score_is_on_top():
    labels = to_label_image(objects_of(three_masks(), [0.3, 0.8, 0.5]), TOP)
    expected = np.zeros((6, 8), int)
    expected[0:4, 0:4] = 1
    expected[2:6, 2:6] = 2
    expected[0, 7] = 3
    assert labels.dtype == np.uint16
    assert np.array_equal(labels, expected)


def test_without_scores_the_smallest_is_on_top_so_that_what_lies_within_another_is_seen():
    masks = np.zeros((2, 9, 9), bool)
    masks[1], masks[0, 3:5, 3:5] = True, True
    labels = to_label_image(objects_of(masks), TOP)
    assert (labels[3:5, 3:5] == 1).all()
    assert (labels == 2).sum() == 77


def test_overlaps_are_refused_with_what_is_lost_and_the_ways_out():
    with pytest.raises(DataError, match=r"a\.png: 1 of 3 objects share pixels.*4 pixels.*--overlaps top.*geojson"):
        to_label_image(objects_of(three_masks(), [0.3, 0.8, 0.5]), REFUSE)
    assert np.array_equal(np.unique(to_label_image(objects_of(three_masks()[1:]), REFUSE)), [0, 1, 2])


@given(st.integers(1, 6), st.integers(0, 10_000))
def test_layers_keep_every_pixel_of_every_object(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((count, 7, 9)) < 0.4
    masks[:, 0, 0] = True
    labels = to_label_image(objects_of(masks), LAYERS)
    for number, mask in enumerate(masks, start=1):
        assert np.array_equal((labels == number).any(axis=0), mask)


def test_no_objects_give_an_empty_image_and_many_take_32_bits():
    for overlaps in (REFUSE, TOP, LAYERS):
        assert not to_label_image(objects_of(np.zeros((0, 5, 7), bool)), overlaps).any()
    number = 65_536
    rle = rle_codec.encode_mask(np.ones((1, 1), bool))
    many = ImageObjects(1, "many.png", 1, 1, [rle] * number, np.zeros(number, np.int64), scores=np.ones(number))
    labels = to_label_image(many, TOP)
    assert labels.dtype == np.uint32
    assert labels.max() == number


def test_predictions_that_are_boxes_alone_are_refused():
    with pytest.raises(DataError, match="no masks"):
        ImageObjects.from_predictions(Predictions.empty(1, "a.png", 5, 7, masks=False))


@pytest.mark.parametrize("overlaps", [TOP, LAYERS])
def test_a_written_file_reads_back_with_its_pixel_size_and_leaves_no_temporary(tmp_path: Path, overlaps: str) -> None:
    objects = objects_of(three_masks(), pixel_size=(0.5, 0.25))
    write_tiff(tmp_path / "a.tif", objects, overlaps)
    expected = to_label_image(objects, overlaps)
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
    np.testing.assert_allclose(read_picture(tmp_path / "a.tif", {})[1]["pixel_size"], [0.5, 0.25], rtol=1e-6)
    write_npy(tmp_path / "a.npy", objects, overlaps)
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected)
    if overlaps == TOP:
        assert np.array_equal(read_label_image(tmp_path / "a.tif"), read_label_image(tmp_path / "a.npy"))
