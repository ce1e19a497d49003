"""The chosen score threshold is the best there is, and means what it says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scoring_cases import predictions_of, random_case, rectangle, truth_of

from detseg.evaluation.evaluate import align, evaluate
from detseg.evaluation.ground_truth import GroundTruth
from detseg.fusion.postprocess import Postprocess
from detseg.tuning.score_curves import score_curves
from detseg.tuning.thresholds import choose_score_threshold


def object_ap_at(ground_truth, predictions, threshold, settings=None):
    settings = dataclasses.replace(settings or Postprocess(), score_threshold=threshold)
    return evaluate(ground_truth, settings.apply_all(predictions), coco=False)["object_ap"]


def test_known_answer():
    # Right ones at 0.9 and 0.6, wrong ones at 0.7 and 0.3: best is to keep all above 0.3.
    objects = [rectangle(0, 0, 10, 10), rectangle(20, 0, 30, 10)]
    found = [objects[0], rectangle(40, 0, 45, 5), objects[1], rectangle(40, 20, 45, 25)]
    ground_truth = GroundTruth(["cell"], [truth_of(objects)])
    predictions = [predictions_of(found, scores=[0.9, 0.7, 0.6, 0.3])]
    choice = choose_score_threshold(ground_truth, predictions)
    assert choice.threshold == 0.45
    assert choice.object_ap == pytest.approx(2 / 3)
    np.testing.assert_allclose(choice.curve, [[0.9, 1 / 2], [0.7, 1 / 3], [0.6, 2 / 3], [0.3, 2 / 4]], rtol=1e-6)


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("settings", [None, Postprocess(min_area=25, keep_largest_component=True)])
@pytest.mark.parametrize("seed", range(5))
def test_the_curve_equals_evaluating_at_every_threshold(seed, settings, crowds):
    ground_truth, predictions = random_case(seed, images=4, crowds=crowds)
    choice = choose_score_threshold(ground_truth, predictions, postprocess=settings)
    for threshold, object_ap in choice.curve:
        assert object_ap == pytest.approx(object_ap_at(ground_truth, predictions, threshold, settings), abs=1e-12)
    assert choice.object_ap == choice.curve[:, 1].max()
    at_choice = object_ap_at(ground_truth, predictions, choice.threshold, settings)
    assert at_choice == pytest.approx(choice.object_ap, abs=1e-12)
    assert type(choice.threshold) is float


def test_a_score_threshold_given_before_is_ignored():
    ground_truth, predictions = random_case(1)
    strict = Postprocess(score_threshold=0.95, resolve_overlaps=False)
    assert (
        choose_score_threshold(ground_truth, predictions, postprocess=strict).threshold
        == choose_score_threshold(ground_truth, predictions).threshold
    )


def test_of_equally_good_thresholds_the_highest_is_taken():
    ground_truth = GroundTruth(["cell"], [truth_of([rectangle(0, 0, 10, 10)])])
    predictions = [predictions_of([rectangle(30, 30, 40, 40)] * 3, scores=[0.9, 0.5, 0.2])]
    choice = choose_score_threshold(ground_truth, predictions)
    assert choice.object_ap == 0
    assert 0.2 < choice.threshold <= 0.9


def test_scores_that_differ_in_the_last_bit_are_told_apart():
    high = np.float32(0.5)
    low = np.nextafter(high, np.float32(0))
    ground_truth = GroundTruth(["cell"], [truth_of([rectangle(0, 0, 10, 10)])])
    predictions = [predictions_of([rectangle(0, 0, 10, 10), rectangle(30, 30, 40, 40)], scores=[high, low])]
    choice = choose_score_threshold(ground_truth, predictions)
    assert float(low) < choice.threshold <= float(high)
    assert object_ap_at(ground_truth, predictions, choice.threshold) == choice.object_ap == 1


def test_nothing_to_choose_from():
    ground_truth = GroundTruth(["cell"], [truth_of([rectangle(0, 0, 10, 10)])])
    choice = choose_score_threshold(ground_truth, [])
    assert (choice.threshold, choice.object_ap, choice.curve.shape) == (0.5, 0, (0, 2))
    nothing = choose_score_threshold(GroundTruth(["cell"], []), [])
    assert (nothing.threshold, nothing.object_ap) == (0.5, None)
    assert choose_score_threshold(GroundTruth(["cell"], [truth_of([])]), []).object_ap == 1


@pytest.mark.parametrize("seed", range(4))
def test_the_curve_of_a_class_is_that_of_its_predictions_alone(seed):
    ground_truth, predictions = random_case(seed, images=4)
    together, *of_classes = score_curves(ground_truth, align(ground_truth, predictions))
    assert [together.name, *(curve.name for curve in of_classes)] == ["all", "kind 0", "kind 1"]
    for index, curve in enumerate(of_classes):
        alone = [image.select(image.classes == index) for image in predictions]
        for threshold, object_ap in curve.object_ap:
            settings = Postprocess(score_threshold=threshold)
            metrics = evaluate(ground_truth, settings.apply_all(alone), coco=False)
            assert object_ap == pytest.approx(metrics["per_class"][curve.name]["object_ap"], abs=1e-12)


def test_a_class_that_nobody_predicts():
    ground_truth = GroundTruth(["a", "b"], [truth_of([rectangle(0, 0, 10, 10)])])
    predictions = [predictions_of([rectangle(0, 0, 10, 10)], scores=[0.8])]
    _, predicted, not_predicted = score_curves(ground_truth, align(ground_truth, predictions))
    np.testing.assert_allclose(predicted.object_ap, [[0.8, 1]])
    assert not_predicted.object_ap.shape == (0, 2)
