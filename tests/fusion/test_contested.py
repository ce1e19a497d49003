"""Contested pixels: by probability as a full table says, by watershed in one piece; no pixel twice, none lost."""

from __future__ import annotations

import numpy as np
import pytest
from fusion_cases import full_soft_mask, random_members
from scipy import ndimage
from scoring_cases import predictions_of, rectangle

from detseg.fusion.overlaps import resolve_overlaps, score_order, share_contested
from detseg.fusion.postprocess import Postprocess
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec


def rank_of(predictions: Predictions) -> np.ndarray:
    return np.argsort(score_order(predictions.scores))


def masks_of(predictions: Predictions) -> np.ndarray:
    size = (predictions.height, predictions.width)
    return np.array([rle_codec.decode(rle) for rle in predictions.rles]).reshape(-1, *size)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_by_probability_as_a_full_table(seed, soft):
    predictions = random_members(seed, members=1, objects=25, soft=soft)[0]
    masks, rank = masks_of(predictions), rank_of(predictions)
    labels = share_contested(predictions, "probability")
    claims = np.array([full_soft_mask(predictions, index) for index in range(len(predictions))]).astype(float) + 1
    claims = np.where(masks, claims - rank[:, None, None] * 1e-3, 0)
    expected = np.where(masks.any(axis=0), claims.argmax(axis=0) + 1, 0)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("policy", ["score", "probability", "watershed"])
@pytest.mark.parametrize("fraction", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_masks_are_disjoint_and_nothing_else_changes(seed, fraction, policy):
    predictions = random_members(seed, members=1, objects=30)[0]
    resolved = resolve_overlaps(predictions, min_visible_fraction=fraction, policy=policy)
    masks = masks_of(resolved)
    assert masks.sum(axis=0).max(initial=0) <= 1
    before = dict(zip(predictions.scores.tolist(), masks_of(predictions), strict=True))
    for score, mask in zip(resolved.scores.tolist(), masks, strict=True):
        assert mask.any()
        assert not (mask & ~before[score]).any(), "an object got pixels that were not its own"
        assert np.count_nonzero(mask) >= fraction * np.count_nonzero(before[score])
    again = resolve_overlaps(resolved, min_visible_fraction=fraction, policy=policy)
    assert again.rles == resolved.rles
    if fraction == 0:
        np.testing.assert_array_equal(masks.any(axis=0), masks_of(predictions).any(axis=0))


def bars(first: tuple[int, int], second: tuple[int, int], valley: int) -> Predictions:
    """Two bars (10 x 40 pixels) that overlap, both with probability low at the column `valley`."""
    rles = [rectangle(first[0], 0, first[1], 10), rectangle(second[0], 0, second[1], 10)]
    predictions = predictions_of(rles, scores=[0.9, 0.5])
    column = np.full(50, 250, dtype=np.uint8)
    column[valley] = 130
    predictions.soft_masks = [np.tile(column[begin:end], (10, 1)) for begin, end in (first, second)]
    return predictions


@pytest.mark.parametrize("valley", [18, 22, 26])
def test_the_watershed_meets_where_the_probability_is_low(valley):
    predictions = bars((0, 30), (15, 45), valley)
    labels = share_contested(predictions, "watershed")
    assert (labels[:10, :valley] == 1).all()
    assert (labels[:10, valley + 1 : 45] == 2).all()


def test_the_watershed_without_probabilities_meets_halfway():
    predictions = predictions_of([rectangle(0, 0, 30, 10), rectangle(14, 0, 44, 10)])
    labels = share_contested(predictions, "watershed")
    assert (labels[:10, :22] == 1).all()
    assert (labels[:10, 22:44] == 2).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_watershed_tears_neither_of_two(seed):
    predictions = random_members(seed, members=1, objects=16)[0]
    shared = masks_of(predictions)
    shared = np.einsum("ahw,bhw->ab", shared.astype(np.int32), shared.astype(np.int32))
    for first, second in zip(*np.nonzero(np.triu(shared, 1)), strict=True):
        two = predictions.select(np.array([first, second]))
        masks = masks_of(two)
        labels = share_contested(two, "watershed")
        for index, mask in enumerate(masks):
            own = ndimage.label(mask & ~masks[1 - index])[1]
            parts = ndimage.label(labels == index + 1)[1]
            assert own == 0 or parts <= own, "an object fell into more parts than those that it has alone"


def test_an_object_inside_another_keeps_its_pixels():
    predictions = predictions_of([rectangle(5, 5, 10, 10), rectangle(0, 0, 20, 20)], scores=[0.9, 0.5])
    resolved = resolve_overlaps(predictions, policy="watershed")
    assert rle_codec.area(resolved.rles).tolist() == [25, 375]


def test_who_keeps_too_little_is_dropped_and_leaves_its_pixels():
    # By score the first keeps all; by probability it loses most of itself to the second, goes, and gives back the rest.
    predictions = bars((0, 20), (4, 40), 45)
    predictions.soft_masks[0][:] = 140
    assert len(resolve_overlaps(predictions, min_visible_fraction=0.4)) == 2
    resolved = resolve_overlaps(predictions, min_visible_fraction=0.4, policy="probability")
    assert resolved.scores.tolist() == [0.5]
    assert resolved.rles == [predictions.rles[1]]


def test_torn_objects_are_repaired_by_the_postprocess():
    predictions = predictions_of([rectangle(4, 0, 6, 40), rectangle(0, 5, 12, 15)], scores=[0.5, 0.9])
    predictions.soft_masks = [np.full((40, 2), 240, np.uint8), np.full((10, 12), 200, np.uint8)]
    settings = Postprocess(overlap_policy="probability", keep_largest_component=True)
    assert rle_codec.area(settings.apply(predictions).rles).tolist() == [80, 60]
    assert rle_codec.area(Postprocess().apply(predictions).rles).tolist() == [60, 120]


def test_nothing_to_share():
    nothing = Predictions.empty(1, "a", 5, 6)
    for policy in ("score", "probability", "watershed"):
        assert len(resolve_overlaps(nothing, policy=policy)) == 0
