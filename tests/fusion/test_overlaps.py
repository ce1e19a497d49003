"""Overlaps: no pixel twice, the higher score wins, and cutting by score commutes with resolving."""

from __future__ import annotations

import numpy as np
import pytest
from scoring_cases import predictions_of, random_case, rectangle, without_masks

from detseg.errors import DataError
from detseg.fusion.overlaps import replace_masks, resolve_overlaps
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import soft_mask_window


def masks_of(predictions):
    return np.array([rle_codec.decode(rle) for rle in predictions.rles]).reshape(-1, 40, 50)


def same(first: Predictions, second: Predictions) -> bool:
    return (
        first.rles == second.rles
        and np.array_equal(first.scores, second.scores)
        and np.array_equal(first.classes, second.classes)
        and np.array_equal(first.boxes, second.boxes)
    )


def test_the_higher_score_keeps_the_pixels():
    predictions = predictions_of([rectangle(0, 0, 10, 10), rectangle(5, 0, 15, 10)], scores=[0.4, 0.8])
    resolved = resolve_overlaps(predictions)
    assert resolved.rles == [rectangle(0, 0, 5, 10), rectangle(5, 0, 15, 10)]
    assert resolved.boxes.tolist() == [[0, 0, 5, 10], [5, 0, 15, 10]]
    assert np.array_equal(resolved.scores, predictions.scores), "the order stays"


def test_of_equal_scores_the_earlier_wins():
    predictions = predictions_of([rectangle(0, 0, 10, 10), rectangle(5, 0, 15, 10)], scores=[0.5, 0.5])
    assert resolve_overlaps(predictions).rles == [rectangle(0, 0, 10, 10), rectangle(10, 0, 15, 10)]


def test_covered_objects_vanish_and_classes_do_not_matter():
    predictions = predictions_of([rectangle(2, 2, 5, 5), rectangle(0, 0, 10, 10)], scores=[0.4, 0.8], classes=[0, 1])
    assert resolve_overlaps(predictions).classes.tolist() == [1]


def test_a_dropped_object_leaves_its_pixels_to_others():
    # Of the second 40 % are visible, so it is dropped, and the third gets all of its own pixels.
    predictions = predictions_of(
        [rectangle(0, 0, 6, 10), rectangle(0, 0, 10, 10), rectangle(6, 0, 12, 10)], scores=[0.9, 0.8, 0.7]
    )
    resolved = resolve_overlaps(predictions, min_visible_fraction=0.5)
    assert resolved.rles == [predictions.rles[0], predictions.rles[2]]
    assert len(resolve_overlaps(predictions, min_visible_fraction=0.3)) == 3
    assert len(resolve_overlaps(predictions, min_visible_area=41)) == 2


@pytest.mark.parametrize("fraction", [0.0, 0.6])
@pytest.mark.parametrize("seed", range(6))
def test_random_cases(seed, fraction):
    _, predictions = random_case(seed, images=1, objects=25)
    predictions = predictions[0]
    resolved = resolve_overlaps(predictions, min_visible_fraction=fraction)
    masks = masks_of(resolved)
    assert masks.sum(axis=0).max(initial=0) <= 1, "a pixel belongs to two objects"
    assert masks.any(axis=(1, 2)).all(), "an empty object was kept"
    if fraction == 0:
        assert np.array_equal(masks.any(axis=0), masks_of(predictions).any(axis=0)), "a pixel was lost"
    np.testing.assert_array_equal(resolved.boxes, rle_codec.bounding_boxes(resolved.rles))
    assert same(resolve_overlaps(resolved, min_visible_fraction=fraction), resolved), (
        "resolving twice changed something"
    )
    for cut in np.unique(predictions.scores):
        cut_first = resolve_overlaps(predictions.select(predictions.scores >= cut), min_visible_fraction=fraction)
        assert same(cut_first, resolved.select(resolved.scores >= cut)), "cutting and resolving do not commute"


def test_empty_input_and_empty_masks():
    assert len(resolve_overlaps(predictions_of([]))) == 0
    empty = rle_codec.encode_mask(np.zeros((40, 50), dtype=bool))
    assert len(resolve_overlaps(predictions_of([empty, rectangle(0, 0, 3, 3)]))) == 1


def test_boxes_alone_are_refused():
    with pytest.raises(DataError, match="have no masks"):
        resolve_overlaps(without_masks(predictions_of([rectangle(0, 0, 3, 3)])))


def test_unchanged_objects_keep_their_boxes():
    predictions = predictions_of([rectangle(10, 10, 20, 20)])
    predictions.boxes[:] = [[9.5, 9.25, 20.5, 20.75]]
    assert resolve_overlaps(predictions).boxes.tolist() == [[9.5, 9.25, 20.5, 20.75]]


def test_soft_masks_follow_their_boxes():
    predictions = predictions_of([rectangle(0, 0, 10, 10), rectangle(5, 0, 15, 10)], scores=[0.9, 0.4])
    predictions.boxes = np.array([[0, 0, 10, 10], [4.5, 0, 15.5, 10]], dtype=np.float32)
    wide = np.arange(12 * 10, dtype=np.uint8).reshape(10, 12)
    predictions.soft_masks = [np.full((10, 10), 255, dtype=np.uint8), wide]
    resolved = resolve_overlaps(predictions)
    assert resolved.boxes[1].tolist() == [10, 0, 15, 10]
    # The old window began at x = 4.
    assert np.array_equal(resolved.soft_masks[1], wide[:, 6:11])
    assert len(predictions.soft_masks[1][0]) == 12, "the input was changed"


def test_a_larger_mask_pads_its_soft_mask():
    predictions = predictions_of([rectangle(10, 10, 12, 12)])
    predictions.soft_masks = [np.full((2, 2), 9, dtype=np.uint8)]
    changed = replace_masks(predictions, {0: rectangle(9, 10, 13, 13)})
    x0, y0, x1, y1 = soft_mask_window(changed.boxes[0], 40, 50)
    assert changed.soft_masks[0].shape == (y1 - y0, x1 - x0)
    assert changed.soft_masks[0].tolist() == [[0, 9, 9, 0], [0, 9, 9, 0], [0, 0, 0, 0]]
    assert predictions.rles == [rectangle(10, 10, 12, 12)]
