"""The containers refuse what does not fit together, and are legal when empty."""

from __future__ import annotations

import numpy as np
import pytest

from detseg.errors import DataError
from detseg.structures import LabelLayers, Predictions, Sample
from detseg.structures import rle as rle_codec
from detseg.structures.boxes import box_iou, clip_boxes
from detseg.structures.predictions import soft_mask_window


def make_predictions(count: int) -> Predictions:
    rles = [rle_codec.encode_crop(np.ones((1, 1), dtype=bool), index, 0, 5, 6) for index in range(count)]
    boxes = [[index, 0, index + 1, 1] for index in range(count)]
    return Predictions(1, "a.png", 5, 6, boxes, np.linspace(1, 0.5, count), np.arange(count), rles)


def test_selecting_predictions_keeps_every_list_in_step():
    chosen = make_predictions(4).select(np.array([3, 1]))
    assert chosen.classes.tolist() == [3, 1]
    assert rle_codec.bounding_boxes(chosen.rles).tolist() == chosen.boxes.tolist()
    assert len(make_predictions(3).select(np.zeros(3, dtype=bool))) == 0


def test_scores_contain_the_quality_of_masks_once():
    plain = make_predictions(4)
    assert np.isnan(plain.quality).all()
    assert plain.class_scores.tolist() == plain.scores.tolist()
    quality = np.float32([0.5, np.nan, 0, 1])
    judged = plain.with_quality(quality)
    assert judged.scores.tolist() == [plain.scores[0] / 2, plain.scores[1], 0, plain.scores[3]]
    np.testing.assert_allclose(judged.class_scores[[0, 1, 3]], plain.scores[[0, 1, 3]], rtol=1e-6)
    other = judged.with_quality(np.full(4, 0.25))
    np.testing.assert_allclose(other.scores[[0, 1, 3]], plain.scores[[0, 1, 3]] / 4, rtol=1e-6)
    best = judged.best_first()
    assert best.classes.tolist() == [1, 0, 3, 2], "of equal scores, the earlier one first"
    assert best.quality.tolist()[1:] == [0.5, 1, 0]
    boxes = judged.without_masks()
    assert (boxes.rles, np.isnan(boxes.quality).all()) == (None, True)
    assert boxes.class_scores.tolist() == judged.class_scores.tolist()


def test_predictions_of_unequal_lengths_or_of_another_size_are_refused():
    with pytest.raises(DataError, match="unequal lengths"):
        Predictions(1, "a.png", 5, 6, np.zeros((2, 4)), [0.5], [0, 0])
    with pytest.raises(DataError, match="'quality': 1"):
        Predictions(1, "a.png", 5, 6, np.zeros((2, 4)), [0.5, 0.5], [0, 0], quality=[0.5])
    with pytest.raises(DataError, match="mask 0 has the size"):
        Predictions(1, "a.png", 6, 5, np.zeros((1, 4)), [0.5], [0], make_predictions(1).rles)


def test_predictions_are_shown_in_a_line():
    found = Predictions(1, "a.png", 4, 5, np.zeros((2, 4)), [0.25, 0.5], [0, 0])
    assert repr(found) == "Predictions('a.png', 4 x 5: 2 detections, scores 0.25 to 0.5)"
    assert repr(Predictions.empty(7, "", 4, 5)) == "Predictions('image 7', 4 x 5: 0 detections)"


def test_no_predictions_are_legal():
    nothing = Predictions.empty(1, "a.png", 5, 6)
    assert (len(nothing), nothing.boxes.shape, nothing.rles) == (0, (0, 4), [])
    assert Predictions.empty(1, "a.png", 5, 6, masks=False).rles is None


def test_the_window_of_a_soft_mask_is_the_touched_pixels_inside_the_image():
    assert soft_mask_window(np.array([1.2, -3.0, 4.0, 9.7]), 8, 10) == (1, 0, 4, 8)
    assert soft_mask_window(np.array([20.0, 2.0, 30.0, 3.0]), 8, 10) == (10, 2, 10, 3)


def test_a_sample_refuses_masks_or_classes_that_do_not_fit():
    image = np.zeros((4, 5, 3), dtype=np.uint8)
    with pytest.raises(DataError, match=r"a\.png.*masks"):
        Sample(image, LabelLayers.empty(5, 4), file_name="a.png")
    with pytest.raises(DataError, match="1 objects, but 0 classes"):
        Sample(image, LabelLayers.from_masks(np.ones((1, 4, 5))))
    with pytest.raises(DataError, match="channels"):
        Sample(image[..., 0])
    with pytest.raises(DataError, match="`ignore` is"):
        Sample(image, ignore=np.zeros((4, 5)))


def test_boxes_known_answers():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 5, 9]], dtype=np.float32)
    assert box_iou(boxes, boxes).tolist() == [[1, pytest.approx(1 / 7), 0], [pytest.approx(1 / 7), 1, 0], [0, 0, 0]]
    assert box_iou(boxes[:0], boxes).shape == (0, 3)
    assert clip_boxes(np.array([[-1, -1, 9, 9]]), 4, 5).tolist() == [[0, 0, 5, 4]]
