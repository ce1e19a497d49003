"""Matches of objects, confusions, curves by score and intervals: known answers and empty input."""

from __future__ import annotations

import numpy as np
import pytest

from detseg.errors import DataError
from detseg.evaluation.curves import score_curve
from detseg.evaluation.ground_truth import ImageTruth
from detseg.evaluation.intervals import NAMES, ImageScores, image_scores, intervals, paired_intervals
from detseg.evaluation.matches import confusion, match_image
from detseg.evaluation.object_ap import count_objects, summarize_objects
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec

SIDE = 40


def square(x: int, y: int, side: int = 8) -> dict:
    return rle_codec.encode_crop(np.ones((side, side), dtype=bool), x, y, SIDE, SIDE)


def truth_of(rles: list, classes: list[int], crowd: list[bool] | None = None) -> ImageTruth:
    return ImageTruth(1, "a.png", SIDE, SIDE, rles, np.array(classes), None if crowd is None else np.array(crowd))


def predictions_of(rles: list, classes: list[int], scores: list[float] | None = None) -> Predictions:
    boxes = rle_codec.bounding_boxes(rles).reshape(-1, 4)
    scores = scores or [0.9] * len(rles)
    return Predictions(1, "a.png", SIDE, SIDE, boxes=boxes, scores=scores, classes=classes, rles=rles)


def test_hits_false_alarms_and_misses_of_an_image() -> None:
    truth = truth_of([square(0, 0), square(20, 0), square(0, 20, 16)], [0, 1, 0], [False, False, True])
    # A hit, moved by a pixel; one of the wrong class; one far away; one inside the region to ignore.
    found = predictions_of([square(1, 0), square(30, 30), square(4, 24)], [1, 0, 0])
    matches = match_image(truth, found)
    assert matches.object_of.tolist() == [0, -1, -1]
    assert matches.iou.tolist() == pytest.approx([56 / 72, 0, 0])
    assert matches.is_false.tolist() == [False, True, False]
    assert matches.left_out.tolist() == [False, False, True]
    assert matches.is_missed.tolist() == [False, True, False]
    assert confusion([matches], 2).tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    counts = count_objects(truth, found, 2)
    ours = matches.is_hit.sum(), matches.is_false.sum(), matches.is_missed.sum()
    assert ours == (counts.hits[0, 0], counts.false_alarms[0, 0], counts.misses[0, 0])


def test_an_image_without_anything_has_no_matches() -> None:
    matches = match_image(truth_of([], []), predictions_of([], []))
    assert len(matches.object_of) == len(matches.predicted_of) == 0
    assert confusion([matches], 3).sum() == 0
    assert confusion([], 1).tolist() == [[0, 0], [0, 0]]


def test_boxes_without_masks_are_refused_by_name() -> None:
    boxes = Predictions(1, "a.png", SIDE, SIDE, boxes=[[0, 0, 5, 5]], scores=[0.5], classes=[0])
    with pytest.raises(DataError, match=r"a\.png have no masks"):
        match_image(truth_of([square(0, 0)], [0]), boxes)


def test_precision_and_recall_at_every_distinct_score() -> None:
    scores, hits = np.array([0.5, 0.9, 0.5, 0.2]), np.array([True, True, False, False])
    curve = score_curve(scores, hits, objects=4)
    assert curve.thresholds.tolist() == [0.9, 0.5, 0.2]
    assert curve.precision.tolist() == pytest.approx([1, 2 / 3, 0.5])
    assert curve.recall.tolist() == [0.25, 0.5, 0.5]
    assert curve.f1.tolist() == pytest.approx([0.4, 4 / 7, 0.5])
    # What lies in a region to ignore is not there.
    left = score_curve(scores, hits, objects=4, left_out=np.array([False, False, True, True]))
    assert left.precision.tolist() == [1, 1]
    assert len(score_curve(np.zeros(0), np.zeros(0, dtype=bool), 3).thresholds) == 0
    assert len(score_curve(scores, hits, 0).thresholds) == 0


def test_scores_of_images_are_those_of_the_summary() -> None:
    truths = [truth_of([square(0, 0), square(20, 20)], [0, 1]), truth_of([], []), truth_of([square(4, 4)], [1])]
    found = [
        predictions_of([square(1, 0), square(30, 30)], [0, 0]),
        predictions_of([], []),
        predictions_of([square(4, 4)], [1]),
    ]
    counts = [count_objects(*pair, 2) for pair in zip(truths, found, strict=True)]
    for row in range(3):
        summary = summarize_objects(counts, row)
        for name, value in zip(NAMES, image_scores(counts, row).values, strict=True):
            assert value == pytest.approx(summary[name]), (row, name)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution_where_images_are_many() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, (1, 400))
    (low, high), *_ = intervals(ImageScores(values, np.ones_like(values)))
    expected = 1.96 * values.std() / 20
    assert (high - low) / 2 == pytest.approx(expected, rel=0.05)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=0.002)


def test_a_difference_that_all_images_share_is_known_though_the_scores_are_not() -> None:
    base = np.random.default_rng(2).uniform(0, 1, (1, 50))
    one = np.ones_like(base)
    difference, ends = paired_intervals(ImageScores(base, one), ImageScores(base + 0.01, one))
    assert difference.tolist() == pytest.approx([0.01])
    assert ends[0].tolist() == pytest.approx([0.01, 0.01])


def test_scores_without_images_or_of_one_image_have_no_interval() -> None:
    assert np.isnan(intervals(ImageScores(np.zeros((2, 0)), np.zeros((2, 0))))).all()
    one = ImageScores(np.array([[0.5]]), np.array([[1.0]]))
    assert np.isnan(intervals(one)).all()
    assert one.values.tolist() == [0.5]
    undefined = ImageScores(np.zeros((1, 3)), np.zeros((1, 3)))
    assert np.isnan(undefined.values).all()
    assert np.isnan(intervals(undefined)).all()
