"""Limits of the score that are chosen: known answers by hand, and precision that holds on images not chosen on."""

from __future__ import annotations

import numpy as np
import pytest

from detseg.semi_supervised.gates import Gates
from detseg.semi_supervised.limits import NEVER, Pool, limits_by_counts, limits_by_precision, lowest_limit


def pool(scores, *, images=None, groups=None, classes=None, sure=None, refused=None, hits=None) -> Pool:
    count = len(scores)

    def column(values, default, kind):
        return np.full(count, default, dtype=kind) if values is None else np.array(values, dtype=kind)

    return Pool(
        column(images, 0, np.int64),
        column(groups, 0, np.int64),
        column(classes, 0, np.int64),
        np.array(scores, dtype=np.float64),
        column(sure, True, bool),
        column(refused, False, bool),
        None if hits is None else np.array(hits, dtype=bool),
    )


def test_the_lowest_limit_with_the_wanted_precision() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    hits = np.array([False, True, True, True, False])
    assert 0.5 < lowest_limit(scores, hits, 0.75) <= 0.6
    assert lowest_limit(scores, hits, 0.6) <= 0.5
    assert lowest_limit(scores, hits, 0.76) == NEVER
    assert lowest_limit(np.zeros(0), np.zeros(0, bool), 0.5) == NEVER


def test_equal_scores_reach_a_limit_together() -> None:
    """A limit between two objects of one score does not exist: with both, half of them are hits."""
    assert lowest_limit(np.array([0.5, 0.5]), np.array([True, False]), 0.9) == NEVER


def test_as_many_objects_are_sure_as_the_labelled_images_have() -> None:
    found = pool(
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.95, 0.35],
        groups=[0, 0, 0, 0, 0, 0, 1, 1],
        sure=[True, False, True, True, True, True, True, True],
    )
    limits = limits_by_counts(
        found, np.array([2, 1]), np.array([[1.5], [1.0]]), Gates(ignore_counts=4 / 3), ["cell"], ["a", "b"]
    )
    # 2 images x 1.5: the three best of the sure ones, 0.9, 0.7, 0.6; four of all are sure or ignored: down to 0.6.
    assert 0.5 < limits.sure[0, 0] <= 0.6
    assert limits.ignore[0, 0] == pytest.approx(limits.sure[0, 0], abs=0.1)
    assert 0.35 < limits.sure[1, 0] <= 0.95
    assert limits.of(1, np.array([0]))[0].tolist() == [limits.sure[1, 0]]
    assert [row["reached_per_image"] for row in limits.rows] == [1.5, 1.0]


def test_too_few_objects_do_not_lower_the_limit_to_nothing() -> None:
    limits = limits_by_counts(pool([0.9, 0.2]), np.array([1]), np.array([[50.0]]), Gates(), ["cell"], [""])
    assert limits.sure[0, 0] == limits.ignore[0, 0] == 0.3


def test_a_class_that_the_labelled_images_lack_has_no_sure_object() -> None:
    limits = limits_by_counts(pool([0.9]), np.array([1]), np.array([[0.0]]), Gates(), ["cell"], [""])
    assert limits.sure[0, 0] == NEVER
    assert limits.rows[0]["sure_from"] is None


def calibrated(seed: int, images: int, each: int = 20) -> tuple[Pool, np.ndarray]:
    """Objects whose score is the probability that they are true."""
    random = np.random.default_rng(seed)
    scores = random.random(images * each).round(4)
    hits = random.random(images * each) < scores
    return pool(scores, images=np.repeat(np.arange(images), each), hits=hits), np.array([hits.sum()])


def test_the_precision_that_is_told_holds_on_other_images() -> None:
    known, objects = calibrated(0, images=300)
    gates = Gates(precision=0.9, ignore_precision=0.5)
    limits = limits_by_precision(known, objects, [index % 4 for index in range(300)], gates, ["cell"])
    row = limits.rows[0]
    # Of objects with scores from t to 1 the share (1 + t) / 2 is true, 0.9 for 0.8; from 0.2 to 0.8 half of them.
    assert limits.sure[0, 0] == pytest.approx(0.8, abs=0.06)
    assert limits.ignore[0, 0] == pytest.approx(0.2, abs=0.1)
    others, _ = calibrated(1, images=2000)
    truly = others.hits[others.scores >= limits.sure[0, 0]].mean()
    assert row["precision_low"] < truly < row["precision_high"]
    assert row["precision_low"] < row["precision"] < row["precision_high"]


def test_objects_that_do_not_pass_other_gates_have_no_part_in_the_precision() -> None:
    scores, hits = [0.9, 0.8, 0.7], [True, False, True]
    known = pool(scores, images=[0, 1, 2], hits=hits, sure=[True, False, True])
    limits = limits_by_precision(known, np.array([2]), [0, 1, 2], Gates(precision=1.0), ["cell"])
    assert limits.sure[0, 0] <= 0.7
    assert limits.rows[0]["recall"] == 1


def test_true_objects_that_become_background_are_told() -> None:
    scores, hits = [0.9, 0.8, 0.6, 0.5, 0.1], [True, True, False, True, True]
    known = pool(scores, images=[0, 1, 2, 3, 4], hits=hits, refused=[False, False, False, False, True])
    row = limits_by_precision(known, np.array([8]), range(5), Gates(precision=1.0), ["cell"]).rows[0]
    # Two of eight are kept, one is ignored, one refused by another gate, four were not found at all.
    assert (row["recall"], row["missed"]) == (2 / 8, 5 / 8)


def test_without_objects_there_is_no_limit_and_no_precision() -> None:
    limits = limits_by_precision(Pool.join([]), np.array([3]), [None, None], Gates(), ["cell"])
    assert limits.sure[0, 0] == NEVER
    assert limits.rows[0]["precision"] is None
