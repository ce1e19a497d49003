"""Tuning finds what is there to find, says what it is worth on other images, and means what it writes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fusion_cases import random_members
from scoring_cases import predictions_of, random_case, rectangle, truth_of

from detseg.errors import ConfigError
from detseg.evaluation.evaluate import align, evaluate
from detseg.evaluation.ground_truth import GroundTruth, ImageTruth
from detseg.fusion.fuse import fuse
from detseg.fusion.options import FusionOptions
from detseg.fusion.postprocess import Postprocess
from detseg.tuning.space import Coordinate, State, check_settings, make_coordinates
from detseg.tuning.thresholds import choose_score_threshold
from detseg.tuning.trials import ObjectOutcome, Trials
from detseg.tuning.tuning import compare, coordinate_search, curves, optuna_search, random_folds, tune

NAMES = ("kind 0", "kind 1")


def trials_of(truth, predictions, metric="object_ap"):
    return Trials(truth, [align(truth, predictions)], metric)


def start_of(truth, **settings):
    return State(Postprocess(classes=tuple(truth.class_names), **settings))


def specks(images=6):
    """Every image has two cells, found well, and four specks, found with high scores, that are none."""
    truths, found = [], []
    for number in range(images):
        cells = [rectangle(0, 0, 10, 10 + number), rectangle(20, 0, 30, 12)]
        dirt = [rectangle(40, 5 * row, 43, 5 * row + 3) for row in range(4)]
        truths.append(truth_of(cells, image_id=number))
        found.append(predictions_of([*cells, *dirt], scores=[0.6, 0.7, 0.9, 0.8, 0.95, 0.65], image_id=number))
    return GroundTruth(["cell"], truths), found


def test_min_area_only_finds_the_specks():
    truth, found = specks()
    trials, start = trials_of(truth, found), start_of(truth)
    images = np.arange(len(truth.images))
    coordinates = make_coordinates(["min_area"], truth, start, classes=None)
    best = coordinate_search(trials, start, coordinates, images)
    assert trials.score(start, images) == pytest.approx(1 / 3)
    assert trials.score(best, images) == 1
    assert 9 < best.postprocess.min_area <= 100
    assert dataclasses.replace(best.postprocess, min_area=0) == start.postprocess


@pytest.mark.parametrize("metric", ["object_ap", "mean_f1", "precision", "per_class.kind 1.object_ap50"])
@pytest.mark.parametrize("seed", range(2))
def test_the_file_gives_the_very_number_reported(seed, metric, tmp_path):
    truth, predictions = random_case(seed, images=6, objects=25)
    trials, start = trials_of(truth, predictions, metric), start_of(truth)
    coordinates = make_coordinates(
        ["score_threshold", "min_area", "max_area", "nms_iou", "min_visible_fraction"], truth, start, classes=NAMES
    )
    images = np.arange(len(truth.images))
    result = tune(
        trials,
        lambda chosen: start,
        lambda chosen: coordinate_search(trials, start, coordinates, chosen),
        random_folds(len(images), 3),
        bootstrap=20,
    )
    result.after.postprocess.save(tmp_path / "post.yaml")
    loaded = Postprocess.load(tmp_path / "post.yaml")
    metrics = evaluate(truth, loaded.apply_all(predictions), coco=False)
    found = metrics["per_class"]["kind 1"]["object_ap50"] if "." in metric else metrics[metric]
    assert found == pytest.approx(result.in_sample.after.value, abs=1e-12)
    assert result.in_sample.gain.value >= 0
    assert result.in_sample.gain.low <= result.in_sample.gain.value <= result.in_sample.gain.high


def test_cross_fitted_scores_are_of_settings_chosen_on_other_folds():
    truth, predictions = random_case(3, images=6, objects=25)
    trials, start = trials_of(truth, predictions), start_of(truth)
    coordinates = make_coordinates(["score_threshold", "min_area"], truth, start, classes=NAMES)
    folds = ["a", "b", "a", "c", "b", "c"]
    seen = []

    def search(images):
        seen.append(images.tolist())
        return coordinate_search(trials, start, coordinates, images)

    result = tune(trials, lambda images: start, search, folds, bootstrap=0)
    assert seen == [[0, 1, 2, 3, 4, 5], [1, 3, 4, 5], [0, 2, 3, 5], [0, 1, 2, 4]]
    # Apply every fold's own settings to its images, and score them together.
    applied = [result.by_fold[fold].postprocess.apply(image) for fold, image in zip(folds, predictions, strict=True)]
    wanted = evaluate(truth, applied, coco=False)["object_ap"]
    assert result.cross_fitted.after.value == pytest.approx(wanted, abs=1e-12)
    assert result.cross_fitted.before.value == result.in_sample.before.value
    assert result.cross_fitted.gain.low is None


def test_one_image_has_no_cross_fitted_score():
    truth, found = specks(1)
    trials, start = trials_of(truth, found), start_of(truth)
    result = tune(trials, lambda images: start, lambda images: start, random_folds(1, 5), bootstrap=10)
    assert result.cross_fitted is None
    assert result.in_sample.gain.value == 0
    assert result.in_sample.gain.low is None


def test_the_one_threshold_is_that_of_training():
    truth, predictions = random_case(2, images=5)
    trials, start = trials_of(truth, predictions), start_of(truth)
    images = np.arange(len(truth.images))
    choice = choose_score_threshold(truth, predictions)
    assert trials.exact_threshold(start, images) == choice.threshold
    found = coordinate_search(trials, start, make_coordinates(["score_threshold"], truth, start, classes=None), images)
    assert trials.score(found, images) == pytest.approx(choice.object_ap, abs=1e-12)
    part = np.array([0, 3, 4])
    alone = GroundTruth(truth.class_names, [truth.images[index] for index in part])
    wanted = choose_score_threshold(alone, [predictions[index] for index in part])
    assert trials.exact_threshold(start, part) == wanted.threshold


@pytest.mark.parametrize(
    "settings", [{"keep_largest_component": True}, {"resolve_overlaps": False}, {"overlap_policy": "probability"}]
)
def test_settings_that_the_table_does_not_know_are_applied(settings):
    truth, predictions = random_case(4, images=3)
    trials, start = trials_of(truth, predictions), start_of(truth, score_threshold=0.4, **settings)
    wanted = evaluate(truth, start.postprocess.apply_all(predictions), coco=False)["object_ap"]
    assert trials.score(start, np.arange(3)) == pytest.approx(wanted, abs=1e-12)


def test_coco_ap_can_be_the_target():
    truth, predictions = random_case(1, images=4)
    trials, start = trials_of(truth, predictions, "coco_segm_ap"), start_of(truth, score_threshold=0.3)
    wanted = evaluate(truth, start.postprocess.apply_all(predictions))["coco_segm_ap"]
    assert trials.score(start, np.arange(4)) == pytest.approx(wanted, abs=1e-12)
    # Images may be drawn twice.
    assert trials.outcome(start).score(np.array([0, 0, 1])) is not None


def member_case(images=3):
    """Members of several images, and a truth that another one sees."""
    truths, members = [], [[], []]
    for number in range(images):
        one, two, true = random_members(number, members=3)
        for member, found in zip(members, (one, two), strict=True):
            member.append(dataclasses.replace(found, image_id=number, file_name=f"{number}.png"))
        truths.append(ImageTruth(number, f"{number}.png", 60, 70, true.rles, true.classes))
    return GroundTruth(list(NAMES), truths), members


def test_settings_of_a_fusion_are_tuned_with_the_others():
    truth, members = member_case()
    trials = Trials(truth, members, "object_ap")
    start = State(Postprocess(classes=NAMES), FusionOptions(overlap="mask_iou"))
    names = ["score_threshold", "fusion.threshold", "fusion.min_members", "fusion.weights", "fusion.agreement"]
    coordinates = make_coordinates(names, truth, start, classes=None, members=2)
    assert [item.name for item in coordinates if "weights" in item.name] == [
        "fusion.weights of 0",
        "fusion.weights of 1",
    ]
    images = np.arange(3)
    best = coordinate_search(trials, start, coordinates, images, 2)
    assert trials.score(best, images) > trials.score(start, images)
    fused = [fuse(image, best.fusion) for image in zip(*members, strict=True)]
    wanted = evaluate(truth, best.postprocess.apply_all(fused), coco=False)["object_ap"]
    assert trials.score(best, images) == pytest.approx(wanted, abs=1e-12)


def test_mask_thresholds_and_quality_are_tuned():
    truth, (member, _) = member_case()
    trials = Trials(truth, [member], "object_ap")
    start = start_of(truth)
    coordinates = make_coordinates(["mask_threshold", "mask_quality"], truth, start, classes=NAMES)
    assert [item.name for item in coordinates] == [
        "mask_threshold of kind 0",
        "mask_threshold of kind 1",
        "mask_quality",
    ]
    best = coordinate_search(trials, start, coordinates, np.arange(3), 2)
    wanted = evaluate(truth, best.postprocess.apply_all(member), coco=False)["object_ap"]
    assert trials.score(best, np.arange(3)) == pytest.approx(wanted, abs=1e-12)


def test_thresholds_follow_scores_that_mean_something_else():
    # Boxes alone cannot tell cells from dirt, masks can; at the old threshold rescored cells would be lost.
    truths, found = [], []
    for number in range(4):
        cells = [rectangle(0, 0, 10, 10), rectangle(20, 0, 30, 10)]
        dirt = [rectangle(40, 0, 44, 4)]
        truths.append(truth_of(cells, image_id=number))
        image = predictions_of([*cells, *dirt], scores=[0.6, 0.7, 0.9], image_id=number)
        soft = [np.full((10, 10), 230, np.uint8)] * 2 + [np.full((4, 4), 130, np.uint8)]
        found.append(dataclasses.replace(image, soft_masks=soft))
    truth = GroundTruth(["cell"], truths)
    trials, start = trials_of(truth, found), start_of(truth, score_threshold=0.58)
    names = ["score_threshold", "mask_quality"]
    best = coordinate_search(trials, start, make_coordinates(names, truth, start, classes=None), np.arange(4))
    assert best.postprocess.mask_quality > 0
    assert trials.score(best, np.arange(4)) == 1


def one_kind_an_image(mixed: bool):
    """Images of one kind each, of which the second has dirt; `mixed`: some objects are taken for the other kind."""
    truths, found = [], []
    cells = [rectangle(0, 0, 10, 10), rectangle(20, 0, 30, 10), rectangle(20, 20, 30, 30)]
    dirt = [rectangle(40, 0, 44, 4), rectangle(40, 20, 44, 24)]
    for number in range(6):
        kind = number % 2
        truths.append(truth_of(cells, [kind] * 3, image_id=number))
        scores = [[0.4, 0.42, 0.3], [0.8, 0.9, 0.7, 0.45, 0.4]][kind]
        classes = [[0, 0, int(mixed)], [1, 1, 1, 1, int(not mixed)]][kind]
        found.append(predictions_of([*cells, *dirt][: len(scores)], scores, classes, image_id=number))
    return GroundTruth(list(NAMES), truths), found


@pytest.mark.parametrize("search", ["coordinate", "optuna"])
def test_the_class_of_the_image_is_tuned(search):
    truth, found = one_kind_an_image(mixed=True)
    trials, start = trials_of(truth, found), start_of(truth, score_threshold=0.35)
    coordinates = make_coordinates(["score_threshold", "image_class"], truth, start, classes=NAMES)
    images = np.arange(6)
    if search == "coordinate":
        alone = coordinate_search(trials, start, coordinates[:-1], images)
        best = coordinate_search(trials, start, coordinates, images)
        assert trials.score(alone, images) < trials.score(best, images) == 1
    else:
        pytest.importorskip("optuna")
        best = optuna_search(trials, start, coordinates, images, 60, seed=1)
    assert best.postprocess.image_class != "keep"
    wanted = evaluate(truth, best.postprocess.apply_all(found), coco=False)["object_ap"]
    assert trials.score(best, images) == pytest.approx(wanted, abs=1e-12)
    points = dict(curves(trials, best, coordinates)[-1].points)
    assert points[best.postprocess.image_class] == trials.score(best, images)


def test_the_class_of_the_image_stays_out_where_it_gains_nothing():
    truth, found = one_kind_an_image(mixed=False)
    trials, start = trials_of(truth, found), start_of(truth)
    coordinates = make_coordinates(["score_threshold", "image_class"], truth, start, classes=NAMES)
    best = coordinate_search(trials, start, coordinates, np.arange(6))
    assert (best.postprocess.image_class, trials.score(best, np.arange(6))) == ("keep", 1)


def test_optuna_finds_a_good_setting():
    pytest.importorskip("optuna")
    truth, found = specks()
    trials, start = trials_of(truth, found), start_of(truth)
    names = ["score_threshold", "min_area", "max_area"]
    coordinates = make_coordinates(names, truth, start, classes=None)
    best = optuna_search(trials, start, coordinates, np.arange(6), 40, seed=1)
    assert trials.score(best, np.arange(6)) > 0.9
    assert optuna_search(trials, start, coordinates, np.arange(6), 40, seed=1) == best


def test_intervals_cover_the_value_and_are_repeatable():
    random = np.random.default_rng(0)
    before, gains = random.random(40), random.normal(0.1, 0.05, 40)
    outcomes = ObjectOutcome(before, np.ones(40)), ObjectOutcome(before + gains, np.ones(40))
    found = compare(*outcomes, 40, bootstrap=500)
    assert found == compare(*outcomes, 40, bootstrap=500)
    assert found.gain.value == pytest.approx(gains.mean())
    # The half width of a 95 % interval of a mean is 1.96 standard errors.
    assert found.gain.high - found.gain.low == pytest.approx(2 * 1.96 * gains.std() / 40**0.5, rel=0.15)


def test_a_curve_holds_the_chosen_value():
    truth, found = specks()
    trials, start = trials_of(truth, found), start_of(truth, min_area=50)
    coordinates = make_coordinates(["min_area", "max_area"], truth, start, classes=None)
    low, high = curves(trials, start, coordinates)
    assert dict(low.points)[50] == 1
    assert (low.chosen, high.chosen) == (50, None)
    assert high.points[0] == (None, 1.0)


def test_values_around_one():
    score = Coordinate("score_threshold", None, (0.1, 0.9))
    assert score.near(0.5, 1) == (0.475, 0.525)
    assert score.near(0.5, 2) == (0.4875, 0.5125)
    assert score.near(None, 1) == ()
    assert Coordinate("min_area", None, (0, 100)).near(100, 1) == (75, 88, 112, 125)
    assert Coordinate("mask_quality", None, (0.0, 1.0)).near(1.0, 1) == ()


def test_random_folds_are_equal_in_size():
    folds = random_folds(11, 4, seed=3)
    assert sorted(np.bincount(folds).tolist()) == [2, 3, 3, 3]
    assert folds == random_folds(11, 4, seed=3) != random_folds(11, 4, seed=4)
    assert random_folds(2, 5) in ([0, 1], [1, 0])


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["min_size"], {"fusion": True, "soft_masks": True}, "no setting 'min_size' to tune; there are: score_thr"),
        (["fusion.threshold"], {"fusion": False, "soft_masks": True}, "give --fusion FILE"),
        (["mask_threshold"], {"fusion": False, "soft_masks": False}, "predict --soft-masks"),
    ],
)
def test_settings_that_cannot_be_tuned(names, options, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(names, **options)


def test_metrics_that_do_not_exist():
    truth, found = specks(1)
    for metric, message in (("ap", "no metric 'ap'"), ("per_class.x.object_ap", "no class 'x'; there are: cell")):
        with pytest.raises(ConfigError, match=message):
            trials_of(truth, found, metric)
