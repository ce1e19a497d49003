"""Object AP and mean F1: answers worked out by hand, and a brute-force reference over full-size masks."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scoring_cases import predictions_of, random_case, rectangle, truth_of, without_masks

from detseg.errors import DataError
from detseg.evaluation.object_ap import IOU_THRESHOLDS, count_objects, match_pairs, summarize_objects
from detseg.structures import rle as rle_codec
from detseg.structures.overlaps import shared_pixels


def scores_of(truth, predictions, classes=1, row=0):
    return summarize_objects([count_objects(truth, predictions, classes)], row)


def test_perfect_predictions_score_one():
    objects = [rectangle(0, 0, 5, 5), rectangle(10, 10, 20, 20)]
    scores = scores_of(truth_of(objects), predictions_of(objects))
    assert scores["object_ap"] == scores["object_ap50"] == scores["object_ap75"] == scores["mean_f1"] == 1
    assert (scores["true_positives"], scores["false_positives"], scores["false_negatives"]) == (2, 0, 0)


def test_known_answer():
    # IoU 80/100 with the first object; the second is missed; one prediction is invented.
    truth = truth_of([rectangle(0, 0, 10, 10), rectangle(20, 20, 30, 30)])
    predictions = predictions_of([rectangle(0, 0, 8, 10), rectangle(40, 0, 45, 5)])
    scores = scores_of(truth, predictions)
    # A hit at 0.50 ... 0.75, not at 0.80 (equal is not greater): six thresholds with 1 / 3 and four with 0.
    assert scores["object_ap"] == pytest.approx(6 / 10 / 3)
    assert scores["object_ap50"] == scores["object_ap75"] == pytest.approx(1 / 3)
    assert scores["mean_f1"] == pytest.approx(6 / 10 * 2 / (2 + 1 + 1))
    assert scores["precision"] == scores["recall"] == 0.5


@pytest.mark.parametrize("twentieths", range(10, 20))
def test_an_iou_equal_to_the_threshold_is_no_hit(twentieths):
    truth, predictions = truth_of([rectangle(0, 0, 20, 1)]), predictions_of([rectangle(0, 0, twentieths, 1)])
    hits = count_objects(truth, predictions, 1).hits[0]
    assert hits.tolist() == [int(twentieths > 10 + step) for step in range(10)]


def test_empty_images_follow_the_competitions():
    nothing, something = [], [rectangle(0, 0, 5, 5)]
    assert scores_of(truth_of(nothing), predictions_of(nothing))["object_ap"] == 1
    assert scores_of(truth_of(nothing), predictions_of(something))["object_ap"] == 0
    assert scores_of(truth_of(something), predictions_of(nothing))["object_ap"] == 0
    empty = scores_of(truth_of(nothing), predictions_of(nothing))
    assert empty["precision"] is None
    assert empty["recall"] is None
    assert empty["mean_f1"] == 1


def test_the_foreground_iou_counts_shared_pixels_once_none_of_a_crowd_and_asks_for_no_object():
    # Two halves of one object, which overlap, and half of the prediction below lies in a crowd region.
    truth = truth_of([rectangle(0, 0, 10, 10), rectangle(30, 0, 50, 40)], crowd=[False, True])
    halves = [rectangle(0, 0, 6, 10), rectangle(4, 0, 10, 10)]
    assert scores_of(truth, predictions_of(halves))["foreground_iou"] == 1
    across = predictions_of([*halves, rectangle(20, 0, 40, 10)])
    assert scores_of(truth, across)["foreground_iou"] == pytest.approx(100 / 200)
    # The mean over images; one without any foreground scores 1, a class only where it occurs.
    counts = [count_objects(truth, across, 2), count_objects(truth_of([]), predictions_of([]), 2)]
    assert summarize_objects(counts)["foreground_iou"] == pytest.approx(0.75)
    assert summarize_objects(counts, 1)["foreground_iou"] == pytest.approx(0.5)
    assert summarize_objects(counts, 2)["foreground_iou"] is None


def test_count_errors_are_of_numbers_and_not_of_places_and_leave_crowds_out():
    boxes = [rectangle(x, 0, x + 8, 8) for x in (0, 10, 20, 30)]
    elsewhere = rectangle(0, 20, 8, 28)
    cases = [
        (truth_of(boxes), predictions_of(boxes[:2])),  # two too few
        (truth_of(boxes[:2]), predictions_of([boxes[0], elsewhere])),  # one missed, one invented: the number is right
        (truth_of([]), predictions_of(boxes[:3])),  # three too many, no part of anything
        (truth_of([*boxes[:2], elsewhere], crowd=[False, False, True]), predictions_of([*boxes[:3], elsewhere])),
    ]
    counts = [count_objects(*case, 2) for case in cases]
    scores = summarize_objects(counts)
    assert scores["count_error"] == pytest.approx((2 + 0 + 3 + 1) / 4)
    assert scores["relative_count_error"] == pytest.approx((2 / 4 + 0 + 1 / 2) / 3)
    assert summarize_objects(counts, 1) == scores
    unknown = summarize_objects(counts, 2)
    assert (unknown["count_error"], unknown["relative_count_error"]) == (None, None)
    empty = summarize_objects(counts[2:3])
    assert (empty["count_error"], empty["relative_count_error"]) == (3, None)


def test_no_image_at_all_has_no_score():
    scores = summarize_objects([])
    assert scores["object_ap"] is None
    assert scores["mean_f1"] is None
    assert scores["images"] == scores["objects"] == 0


def test_doubled_predictions_are_one_hit_and_false_alarms():
    truth = truth_of([rectangle(0, 0, 10, 10)])
    predictions = predictions_of([rectangle(0, 0, 10, 10)] * 5, scores=[0.5] * 5)
    assert scores_of(truth, predictions)["object_ap"] == pytest.approx(1 / 5)


def test_matching_is_maximum_where_masks_overlap():
    # The first prediction fits both objects, the second only the first object: greedy by IoU would lose one.
    objects = [rectangle(0, 0, 10, 10), rectangle(0, 0, 10, 14)]
    found = [rectangle(0, 0, 10, 11), rectangle(0, 0, 10, 7)]
    truth, predictions = truth_of(objects), predictions_of(found)
    assert count_objects(truth, predictions, 1).hits[0, 0] == 2
    for order in permutations(range(2)):
        assert count_objects(truth, predictions.select(np.array(order)), 1).hits[0, 0] == 2


def test_classes_are_scored_alone_and_over_all():
    truth = truth_of([rectangle(0, 0, 10, 10), rectangle(20, 20, 30, 30)], classes=[0, 1])
    predictions = predictions_of([rectangle(0, 0, 10, 10), rectangle(20, 20, 30, 30)], classes=[0, 0])
    counts = count_objects(truth, predictions, 3)
    assert summarize_objects([counts])["object_ap"] == 1, "over all objects the class does not matter"
    assert summarize_objects([counts], 1)["object_ap"] == 0.5
    assert summarize_objects([counts], 2)["object_ap"] == 0
    third = summarize_objects([counts], 3)
    assert third["object_ap"] is None
    assert third["images"] == 0


def test_a_class_averages_over_the_images_where_it_occurs():
    here, there = [rectangle(0, 0, 10, 10)], [rectangle(20, 20, 30, 30)]
    counts = [
        count_objects(truth_of(here, [0]), predictions_of(here, classes=[0]), 2),
        count_objects(truth_of(there, [1]), predictions_of(there, classes=[1]), 2),
        count_objects(truth_of([]), predictions_of(here, classes=[0]), 2),
    ]
    # Class 0: right in the first image, invented in the third, not in the second.
    assert summarize_objects(counts, 1)["object_ap"] == 0.5
    assert summarize_objects(counts, 1)["images"] == 2
    assert summarize_objects(counts, 2)["object_ap"] == 1
    assert summarize_objects(counts)["object_ap"] == pytest.approx(2 / 3)


def test_predictions_in_a_crowd_count_neither_way():
    truth = truth_of([rectangle(0, 0, 10, 10), rectangle(20, 0, 50, 40)], crowd=[False, True])
    predictions = predictions_of([rectangle(0, 0, 10, 10), rectangle(22, 5, 30, 10), rectangle(40, 30, 45, 35)])
    scores = scores_of(truth, predictions)
    assert scores["object_ap"] == 1
    assert (scores["objects"], scores["predictions"], scores["false_positives"]) == (1, 3, 0)


def test_boxes_alone_are_refused():
    with pytest.raises(DataError, match="have no masks"):
        count_objects(truth_of([]), without_masks(predictions_of([rectangle(0, 0, 5, 5)])), 1)


def brute_force_hits(truth_masks, found_masks, threshold):
    """The largest number of pairs one-to-one with IoU > threshold, by trying every assignment recursively."""
    fits = [
        [np.logical_and(a, b).sum() > threshold * np.logical_or(a, b).sum() + 1e-12 for b in truth_masks]
        for a in found_masks
    ]

    def best(row, free):
        if row == len(fits):
            return 0
        options = [1 + best(row + 1, free - {column}) for column in free if fits[row][column]]
        return max([best(row + 1, free), *options])

    return best(0, frozenset(range(len(truth_masks))))


@pytest.mark.parametrize("overlaps", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_counts_equal_brute_force(seed, overlaps):
    ground_truth, predictions = random_case(seed, overlaps=overlaps)
    for truth, found in zip(ground_truth.images, predictions, strict=True):
        counts = count_objects(truth, found, 2)
        for row, chosen in enumerate([[0, 1], [0], [1]]):
            objects = [rle_codec.decode(truth.rles[i]) for i in np.flatnonzero(np.isin(truth.classes, chosen))]
            masks = [rle_codec.decode(found.rles[i]) for i in np.flatnonzero(np.isin(found.classes, chosen))]
            expected = [brute_force_hits(objects, masks, threshold) for threshold in IOU_THRESHOLDS]
            assert counts.hits[row].tolist() == expected
            assert (counts.hits + counts.misses)[row].tolist() == [len(objects)] * 10
            assert (counts.hits + counts.false_alarms)[row].tolist() == [len(masks)] * 10


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_predictions_does_not_matter(seed):
    ground_truth, predictions = random_case(seed, images=1, crowds=True)
    shuffled = predictions[0].select(np.random.default_rng(seed).permutation(len(predictions[0])))
    first, second = (count_objects(ground_truth.images[0], found, 2) for found in (predictions[0], shuffled))
    assert np.array_equal(first.hits, second.hits)
    assert np.array_equal(first.false_alarms, second.false_alarms)


@pytest.mark.parametrize(("found", "objects"), [(0, 0), (0, 2), (2, 0)])
def test_pairs_of_nothing(found, objects):
    runs, others = (rle_codec.read_runs([rectangle(0, 0, 5, 5)] * count) for count in (found, objects))
    pairs = shared_pixels(runs, others)
    assert len(pairs.iou) == 0
    assert match_pairs(pairs, 0.5).tolist() == [-1] * found


def test_empty_masks_hit_nothing():
    empty = rle_codec.encode_mask(np.zeros((40, 50), dtype=bool))
    assert scores_of(truth_of([empty]), predictions_of([empty]))["object_ap"] == 0


def test_a_published_kind_of_case_dsb():
    """Three nuclei: one right, one split into halves, one merged with debris to IoU 0.6."""
    truth = truth_of([rectangle(0, 0, 10, 10), rectangle(20, 0, 30, 10), rectangle(0, 20, 6, 30)])
    found = [rectangle(0, 0, 10, 10), rectangle(20, 0, 25, 10), rectangle(25, 0, 30, 10), rectangle(0, 20, 10, 30)]
    scores = scores_of(truth, predictions_of(found))
    # The halves have IoU exactly 0.5: no hits. The merged one is a hit at 0.50 and 0.55.
    assert scores["object_ap"] == pytest.approx((2 * 2 / 5 + 8 * 1 / 6) / 10)
    assert scores["object_ap50"] == pytest.approx(2 / 5)
    assert scores["object_ap75"] == pytest.approx(1 / 6)
