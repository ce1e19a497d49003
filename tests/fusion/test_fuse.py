"""Fusion against the same methods written down plainly, and what it promises about order, repetition and nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fusion_cases import (
    PlainPool,
    plain_groups,
    plain_mask,
    plain_score,
    plain_soft_nms,
    random_members,
)

from detseg.errors import DataError
from detseg.fusion.fuse import fuse
from detseg.fusion.options import FusionOptions
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import soft_mask_windows

WEIGHTS = [2.0, 1.0, 1.0, 0.5]


def same(first: Predictions, second: Predictions) -> bool:
    """Whether two lists hold the same objects, in any order."""
    if len(first) != len(second) or (first.rles is None) != (second.rles is None):
        return False
    keys = []
    for one in (first, second):
        masks = [rle["counts"] for rle in one.rles] if one.rles is not None else [b""] * len(one)
        keys.append(sorted(zip(one.boxes.tolist(), one.scores.tolist(), one.classes.tolist(), masks, strict=True)))
    return all(
        a[2:] == b[2:] and np.allclose(a[0], b[0], atol=1e-4) and abs(a[1] - b[1]) < 1e-6
        for a, b in zip(*keys, strict=True)
    )


def decoded(predictions: Predictions) -> list[np.ndarray]:
    return [rle_codec.decode(rle) for rle in predictions.rles]


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("overlap", ["box_iou", "mask_iou", "intersection_over_smaller"])
@pytest.mark.parametrize("masks", ["best", "vote", "mean"])
@pytest.mark.parametrize("seed", range(3))
def test_nms_equals_the_plain_version(seed, masks, overlap, across):
    members = random_members(seed, soft=seed != 1)
    options = FusionOptions(overlap=overlap, masks=masks, across_classes=across, threshold=0.4)
    pool = PlainPool(members, WEIGHTS)
    groups = sorted(plain_groups(pool, options), key=lambda group: -pool.rows[group[0]]["score"])
    fused = fuse(members, options, WEIGHTS)
    assert fused.scores.tolist() == pytest.approx([plain_score(pool, group, "max") for group in groups], abs=1e-6)
    assert fused.classes.tolist() == [pool.rows[group[0]]["class"] for group in groups]
    for group, mask in zip(groups, decoded(fused), strict=True):
        np.testing.assert_array_equal(mask, plain_mask(pool, group, options))


@pytest.mark.parametrize("rule", ["max", "mean", "avg", "box_and_model_avg", "absent_model_aware_avg"])
@pytest.mark.parametrize("seed", range(3))
def test_wbf_on_masks_equals_the_plain_version(seed, rule):
    members = random_members(seed)
    options = FusionOptions(method="wbf", overlap="mask_iou", masks="mean", scores=rule)
    pool = PlainPool(members, WEIGHTS)
    groups = plain_groups(pool, options)
    groups.sort(key=lambda group: -np.float32(plain_score(pool, group, rule)))
    fused = fuse(members, options, WEIGHTS)
    assert fused.scores.tolist() == pytest.approx([plain_score(pool, group, rule) for group in groups], abs=1e-6)
    windows = soft_mask_windows(fused.boxes, fused.height, fused.width)
    for index, group in enumerate(groups):
        rows = [pool.rows[number] for number in group]
        mean = np.average([row["box"] for row in rows], axis=0, weights=[row["score"] for row in rows])
        mask = plain_mask(pool, group, options)
        np.testing.assert_array_equal(decoded(fused)[index], mask)
        inside = (fused.boxes[index][:2] <= mean[:2] + 1e-4).all() and (fused.boxes[index][2:] >= mean[2:] - 1e-4).all()
        assert inside, "a mean box was made smaller"
        x0, y0, x1, y1 = windows[index]
        assert not mask[:y0].any()
        assert not mask[y1:].any()
        assert not mask[:, :x0].any()
        assert not mask[:, x1:].any()
        np.testing.assert_array_equal(fused.soft_masks[index] >= 128, mask[y0:y1, x0:x1])


@pytest.mark.parametrize("decay", ["gaussian", "linear"])
@pytest.mark.parametrize("overlap", ["box_iou", "mask_iou"])
@pytest.mark.parametrize("seed", range(4))
def test_soft_nms_equals_the_plain_version(seed, overlap, decay):
    members = random_members(seed)
    low = 0.05 if seed % 2 else 0.0
    options = FusionOptions(method="soft_nms", overlap=overlap, decay=decay, threshold=0.3, min_decayed_score=low)
    pool = PlainPool(members, [1, 1, 1, 1])
    expected = sorted((score for score in plain_soft_nms(pool, options) if score >= low), reverse=True)
    assert fuse(members, options).scores.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("method", ["nms", "soft_nms", "wbf"])
@pytest.mark.parametrize("overlap", ["box_iou", "mask_iou", "intersection_over_smaller"])
def test_the_order_of_the_members_does_not_matter(method, overlap):
    members = random_members(5, members=4)
    options = FusionOptions(method=method, overlap=overlap, masks="best" if method == "soft_nms" else "mean")
    expected = fuse(members, options, WEIGHTS)
    for order in ([3, 1, 0, 2], [2, 3, 1, 0]):
        shuffled = fuse([members[index] for index in order], options, [WEIGHTS[index] for index in order])
        assert same(expected, shuffled)


@pytest.mark.parametrize("overlap", ["box_iou", "mask_iou", "intersection_over_smaller"])
@pytest.mark.parametrize("seed", range(3))
def test_nms_is_idempotent(seed, overlap):
    options = FusionOptions(overlap=overlap, threshold=0.3)
    once = fuse(random_members(seed), options)
    assert same(fuse([once], options), once)


@pytest.mark.parametrize("masks", ["best", "vote", "mean"])
@pytest.mark.parametrize("method", ["nms", "wbf"])
def test_identical_members_give_one_of_them(method, masks):
    one = fuse(random_members(2), FusionOptions(overlap="mask_iou", threshold=0.2))
    options = FusionOptions(method=method, overlap="mask_iou", masks=masks, threshold=0.2)
    fused = fuse([one] * 3, options)
    assert same(fused, one)
    for index in range(len(one) if masks != "vote" else 0):
        np.testing.assert_array_equal(fused.soft_masks[index], one.soft_masks[index])


@pytest.mark.parametrize("method", ["nms", "wbf"])
def test_one_member_without_overlaps_stays_as_it_is(method):
    one = fuse(random_members(3), FusionOptions(overlap="intersection_over_smaller", threshold=0.0))
    assert same(fuse([one], FusionOptions(method=method)), one)


def judged(seed: int, qualities: list[float], scores: list[float]) -> list[Predictions]:
    """Members that each found the one object, with masks a pixel wider from member to member."""
    members = []
    for member, (quality, score) in enumerate(zip(qualities, scores, strict=True)):
        rle = rle_codec.encode_crop(np.ones((20, 20 + member), dtype=bool), 10, 10, 60, 70)
        one = Predictions(7, "a.png", 60, 70, [[10, 10, 30 + member, 30]], [score], [0], [rle])
        members.append(dataclasses.replace(one, quality=[quality]))
    return members


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"method": "nms"}, 0.5),  # of the mask that stays
        ({"method": "wbf"}, 0.5),
        ({"method": "nms", "masks": "vote"}, (2 * 0.5 + 0.8 + 0.9) / 4),
        ({"method": "wbf", "masks": "mean"}, (2 * 0.9 * 0.5 + 0.3 * 0.8 + 0.6 * 0.9) / 2.7),
    ],
)
def test_the_quality_is_that_of_the_mask(options, expected):
    members = judged(0, [0.5, 0.8, 0.9], [0.9, 0.3, 0.6])
    fused = fuse(members, FusionOptions(**options), [2.0, 1.0, 1.0])
    assert fused.quality.tolist() == pytest.approx([expected])


def test_a_quality_is_of_the_members_that_tell_one():
    members = judged(0, [np.nan, 0.8, 0.6], [0.9, 0.3, 0.6])
    assert np.isnan(fuse(members, FusionOptions()).quality).all(), "the mask that stays was never judged"
    assert fuse(members, FusionOptions(masks="vote")).quality.tolist() == pytest.approx([0.7])
    assert np.isnan(fuse(judged(0, [np.nan] * 2, [0.9, 0.3]), FusionOptions(masks="vote")).quality).all()
    decayed = fuse(members, FusionOptions(method="soft_nms"))
    assert sorted(decayed.quality.tolist()[1:]) == pytest.approx([0.6, 0.8])
    assert np.isnan(decayed.quality[0])


def test_nothing_is_legal():
    members = random_members(0)
    nothing = Predictions.empty(7, "a.png", 60, 70)
    for method in ("nms", "soft_nms", "wbf"):
        for overlap in ("box_iou", "mask_iou", "intersection_over_smaller"):
            options = FusionOptions(method=method, overlap=overlap)
            fused = fuse([nothing, nothing], options)
            assert len(fused) == 0
            assert fused.rles == []
            assert len(fuse([members[0].select(np.zeros(0, dtype=int)), members[1]], options)) > 0
    boxes = Predictions.empty(7, "a.png", 60, 70, masks=False)
    assert fuse([boxes], FusionOptions(method="wbf")).rles is None


def test_what_shows_nothing_is_left_out():
    full = random_members(0)[0]
    hollow = dataclasses.replace(full, rles=[*full.rles[:-1], rle_codec.encode_mask(np.zeros((60, 70), bool))])
    lost = rle_codec.encode_mask(np.zeros((60, 70), bool))["counts"]
    fused = fuse([hollow], FusionOptions(threshold=0.99))
    assert all(rle["counts"] != lost for rle in fused.rles)
    flat = dataclasses.replace(full, boxes=full.boxes * [1, 0, 1, 0], rles=None, soft_masks=None)
    assert len(fuse([flat], FusionOptions())) == 0


def test_members_with_and_without_masks():
    members = random_members(1, members=3, bare=(0,), classes=1)
    dropped = fuse(members, FusionOptions(threshold=0.4))
    filled = fuse(members, FusionOptions(threshold=0.4, without_mask="rectangle"))
    pool = PlainPool(members, [1, 1, 1])
    options = FusionOptions(threshold=0.4)
    groups = sorted(plain_groups(pool, options), key=lambda group: -pool.rows[group[0]]["score"])
    masks = [plain_mask(pool, group, options) for group in groups]
    assert any(mask is None for mask in masks), "the case has no object that only boxes show"
    for found, expected in zip(decoded(dropped), [mask for mask in masks if mask is not None], strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected, group in zip(decoded(filled), masks, groups, strict=True):
        x0, y0, x1, y1 = soft_mask_windows(pool.rows[group[0]]["box"], 60, 70)[0]
        if expected is None:
            assert found[y0:y1, x0:x1].all()
            assert np.count_nonzero(found) == (y1 - y0) * (x1 - x0)
        else:
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("overlap", ["mask_iou", "intersection_over_smaller"])
def test_boxes_are_compared_where_a_mask_is_missing(overlap):
    members = random_members(4, members=3, bare=(1,), classes=1)
    options = FusionOptions(overlap=overlap, threshold=0.45, without_mask="rectangle")
    pool = PlainPool(members, [1, 1, 1])
    groups = plain_groups(pool, options)
    assert fuse(members, options).scores.tolist() == pytest.approx(
        sorted((pool.rows[group[0]]["score"] for group in groups), reverse=True)
    )


def test_one_detection_of_a_member_counts():
    members = random_members(8, members=3, classes=1, bare=(1,))
    options = FusionOptions(method="wbf", overlap="mask_iou", masks="mean", scores="mean", one_per_member=True)
    pool = PlainPool(members, [1, 1, 1])
    groups = []
    for group in plain_groups(pool, options):
        seen = [pool.rows[index]["member"] for index in group]
        groups.append([index for place, index in enumerate(group) if seen.index(seen[place]) == place])
    assert sum(map(len, groups)) < len(pool.rows), "no member shows an object twice"
    groups.sort(key=lambda group: -np.float32(plain_score(pool, group, "mean")))
    masks = [mask for mask in (plain_mask(pool, group, options) for group in groups) if mask is not None]
    for found, mask in zip(decoded(fuse(members, options)), masks, strict=True):
        np.testing.assert_array_equal(found, mask)
    # Boxes: a repetition of lower score changes nothing.
    first = box_member([[0, 0, 10, 10], [1, 0, 11, 10]], [0.9, 0.2])
    second = box_member([[0, 0, 10, 12]], [0.5])
    wanted = fuse([first.select(np.array([0])), second], FusionOptions(method="wbf"))
    found = fuse([first, second], FusionOptions(method="wbf", one_per_member=True))
    assert found.boxes.tolist() == wanted.boxes.tolist()
    assert found.scores.tolist() == wanted.scores.tolist()


def test_agreement_and_least_number_of_members():
    members = random_members(6, members=4, classes=1)
    options = FusionOptions(overlap="mask_iou", agreement=0.5, min_members=2)
    pool = PlainPool(members, WEIGHTS)
    expected = []
    for group in plain_groups(pool, options):
        found = sorted({pool.rows[index]["member"] for index in group})
        if len(found) >= 2:
            share = pool.weights[found].sum() / pool.weights.sum()
            expected.append(plain_score(pool, group, "max") * share**0.5)
    assert fuse(members, options, WEIGHTS).scores.tolist() == pytest.approx(sorted(expected, reverse=True), abs=1e-6)


def box_member(rows, scores, classes=None):
    classes = [0] * len(rows) if classes is None else classes
    return Predictions(7, "a.png", 60, 70, np.array(rows, dtype=np.float32), scores, classes)


def test_the_class_of_one_object_by_vote():
    box = [[10, 10, 20, 20]]
    members = [box_member(box, [score], [kind]) for score, kind in ((0.9, 0), (0.6, 1), (0.5, 1))]
    best = fuse(members, FusionOptions(across_classes=True))
    assert best.classes.tolist() == [0]
    assert len(fuse(members, FusionOptions())) == 2
    voted = fuse(members, FusionOptions(across_classes=True, cluster_class="vote"))
    assert voted.classes.tolist() == [1]
    assert voted.scores.tolist() == pytest.approx([0.9])


def test_the_class_of_the_image_by_vote():
    rows = [[0, 0, 5, 5], [10, 0, 15, 5], [20, 0, 60, 40]]
    member = box_member(rows, [0.6, 0.5, 0.9], [0, 0, 1])
    assert fuse([member], FusionOptions(image_class="drop")).classes.tolist() == [0, 0]
    assert fuse([member], FusionOptions(image_class="relabel")).classes.tolist() == [0, 0, 0]
    assert fuse([member], FusionOptions(image_class="drop", image_class_by="area")).classes.tolist() == [1]
    assert fuse([member], FusionOptions(image_class="drop", image_class_by="count")).classes.tolist() == [0, 0]


def test_settings_a_class():
    options = FusionOptions(
        classes=["a", "b"], threshold={"a": 0.9, "b": 0.1}, min_score={"a": 0.0, "b": 0.3}, min_members={"a": 1, "b": 2}
    )
    rows = [[0, 0, 10, 10], [3, 0, 13, 10]]
    first = box_member(rows * 2, [0.9, 0.8, 0.7, 0.2], [0, 0, 1, 1])
    second = box_member(rows[1:], [0.6], [1])
    fused = fuse([first, second], options)
    # Of class a both stay, as they overlap by less than 0.9; of class b, one of 0.2 is left out and two members agree.
    assert fused.classes.tolist() == [0, 0, 1]
    assert fused.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.array([np.nan])}, "has the score nan, expected a number from 0 to 1"),
        ({"scores": np.array([np.inf])}, "has the score inf"),
        ({"scores": np.array([1.5])}, "has the score 1.5"),
        ({"boxes": np.array([[0, 0, np.nan, 5]])}, "expected finite numbers"),
        ({"height": 61}, "its size is 61 x 70 pixels"),
        ({"image_id": 8}, "its image id is 8, that of member 0 7"),
    ],
)
def test_impossible_members_are_refused(change, message):
    good = box_member([[0, 0, 5, 5]], [0.5])
    with pytest.raises(DataError, match=message):
        fuse([good, dataclasses.replace(good, **change)], FusionOptions())


def test_wrong_numbers_of_members_and_weights_are_refused():
    good = box_member([[0, 0, 5, 5]], [0.5])
    with pytest.raises(DataError, match="at least one member"):
        fuse([], FusionOptions())
    with pytest.raises(DataError, match="3 weights for 2 members"):
        fuse([good, good], FusionOptions(), [1, 2, 3])
    with pytest.raises(DataError, match="weight of a member is 0"):
        fuse([good, good], FusionOptions(), [1, 0])
    with pytest.raises(DataError, match="use overlap: box_iou"):
        fuse([good], FusionOptions(overlap="mask_iou"))


def test_provenance_keeps_what_all_members_share():
    first, second = (box_member([[0, 0, 5, 5]], [0.5]) for _ in range(2))
    first.provenance, second.provenance = {"fold": 3, "checkpoint": "a"}, {"fold": 3, "checkpoint": "b"}
    assert fuse([first, second], FusionOptions()).provenance == {
        "fold": 3,
        "fused": {"members": 2, "method": "nms", "overlap": "box_iou"},
    }
