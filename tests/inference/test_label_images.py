"""Predictions as label images."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from detseg.errors import DataError
from detseg.inference.label_images import label_paths, to_label_image, write_label_image
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions


def predictions_of(masks: np.ndarray, scores: list[float]) -> Predictions:
    rles = [rle_codec.encode_mask(mask) for mask in masks]
    boxes = rle_codec.bounding_boxes(rles)
    return Predictions(1, "a.png", *masks.shape[1:], boxes, scores, [0] * len(scores), rles=rles)


def test_labels_are_the_order_of_the_detections_and_the_best_score_is_on_top():
    masks = np.zeros((3, 6, 8), bool)
    masks[0, 0:4, 0:4] = masks[1, 2:6, 2:6] = masks[2, 0, 7] = True
    labels = to_label_image(predictions_of(masks, [0.3, 0.8, 0.5]))
    expected = np.zeros((6, 8), int)
    expected[0:4, 0:4] = 1
    expected[2:6, 2:6] = 2
    expected[0, 7] = 3
    assert labels.dtype == np.uint16
    assert np.array_equal(labels, expected)


def test_no_detections_give_an_empty_image_and_many_take_32_bits():
    assert not to_label_image(Predictions.empty(1, "a.png", 5, 7)).any()
    number = 65_536
    rle = rle_codec.encode_mask(np.ones((1, 1), bool))
    many = Predictions(
        1, "", 1, 1, np.tile([0, 0, 1, 1], (number, 1)), np.ones(number), [0] * number, rles=[rle] * number
    )
    assert to_label_image(many).dtype == np.uint32


def test_boxes_alone_are_refused():
    with pytest.raises(DataError, match="boxes alone"):
        to_label_image(Predictions.empty(1, "a.png", 5, 7, masks=False))


def test_a_written_file_reads_back_and_leaves_no_temporary(tmp_path):
    masks = np.zeros((2, 40, 30), bool)
    masks[0, 3:9, 4:20] = masks[1, 20:, 25:] = True
    predictions = predictions_of(masks, [0.5, 0.6])
    write_label_image(tmp_path / "sub" / "a.tif", predictions)
    assert np.array_equal(tifffile.imread(tmp_path / "sub" / "a.tif"), to_label_image(predictions))
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.tif"]


def test_paths_keep_subfolders_and_refuse_collisions_and_ways_out(tmp_path):
    paths = label_paths(tmp_path, ["plate.1/a.b.png", "c.tif"])
    assert paths == {"plate.1/a.b.png": tmp_path / "plate.1" / "a.b.tif", "c.tif": tmp_path / "c.tif"}
    with pytest.raises(DataError, match=r"a\.png and a\.jpg"):
        label_paths(tmp_path, ["a.png", "a.jpg"])
    for name in ("../a.png", "/etc/a.png", "sub/../../a.png", "..\\a.png", "C:\\a.png"):
        with pytest.raises(DataError, match="leads out"):
            label_paths(tmp_path, [name])
