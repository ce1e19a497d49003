"""Every object is kept, ignored or dropped by known rules, and it is said by which gate."""

from __future__ import annotations

import numpy as np
import pytest
from pseudo_cases import NAMES, predicted, square

from detseg.coco.pseudo_labels import DROPPED, IGNORED, KEPT
from detseg.errors import DataError
from detseg.semi_supervised.agreement import agreement_with
from detseg.semi_supervised.gates import Candidates, Gates, image_problem, judge
from detseg.semi_supervised.limits import fixed_limits


def decide(gates: Gates, scores, classes=None, agreement=None, masks=None) -> tuple[list[int], list[str]]:
    masks = masks or [square(n) for n in range(len(scores))]
    found = predicted("a.png", masks, scores, classes)
    candidates = Candidates(found, None if agreement is None else np.array(agreement))
    limits = fixed_limits(gates.for_classes(NAMES), NAMES)
    decisions, doubts = judge(candidates, gates).decide(found.scores.astype(float), *limits.of(0, found.classes))
    return decisions.tolist(), doubts


def test_a_score_on_a_limit_reaches_it() -> None:
    gates = Gates(score=0.75, ignore_score=0.25)
    decisions, doubts = decide(gates, [0.75, 0.74, 0.25, 0.24])
    assert decisions == [KEPT, IGNORED, IGNORED, DROPPED]
    assert doubts == ["", "score", "score", "score"]


def test_the_worst_gate_decides_and_all_are_named() -> None:
    gates = Gates(score=0.5, ignore_score=0.25, agreement=0.6, ignore_agreement=0.3)
    decisions, doubts = decide(gates, [0.9, 0.9, 0.9, 0.3], agreement=[0.6, 0.5, 0.2, 0.5])
    assert decisions == [KEPT, IGNORED, DROPPED, IGNORED]
    assert doubts == ["", "agreement", "agreement", "score, agreement"]


def test_an_object_of_an_unlikely_size_is_not_background() -> None:
    masks = [square(0, side=4), square(1, side=8), square(2, side=9)]
    decisions, doubts = decide(Gates(min_area=17, max_area=64), [0.9] * 3, masks=masks)
    assert decisions == [IGNORED, KEPT, IGNORED]
    assert doubts == ["area", "", "area"]


def test_gates_per_class_belong_to_names() -> None:
    gates = Gates(classes=("long", "round"), score={"round": 0.5, "long": 0.9}, ignore_score=0.1)
    decisions, _ = decide(gates.for_classes(NAMES), [0.6, 0.6], classes=[0, 1])
    assert decisions == [KEPT, IGNORED]


def test_the_quality_of_a_mask_is_a_gate_where_the_model_says_it() -> None:
    found = predicted("a.png", [square(0), square(1), square(2)], [0.9] * 3)
    found.quality = np.array([0.8, 0.5, 0.1], dtype=np.float32)
    verdict = judge(Candidates(found), Gates(quality=0.7, ignore_quality=0.3))
    assert verdict.sure.tolist() == [True, False, False]
    assert verdict.refused.tolist() == [False, False, True]
    without = judge(Candidates(predicted("a.png", [square(0)], [0.9])), Gates(quality=0.7))
    assert without.sure.tolist() == [True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": 0.2, "ignore_score": 0.3}, "ignore_score is 0.3, above score, 0.2"),
        ({"classes": ["a", "b"], "score": {"a": 0.2, "b": 0.5}, "ignore_score": 0.3}, "ignore_score is 0.3"),
        ({"agreement": 2}, "agreement is 2, expected a number from 0 to 1"),
        ({"choose": "best"}, "expected one of: fixed, counts, precision"),
        ({"iou": 0.3}, "an IoU from 0.5"),
        ({"scores": 0.3}, "unknown setting 'scores'"),
    ],
)
def test_impossible_gates_are_refused_with_the_key(settings, message) -> None:
    with pytest.raises(DataError, match=message):
        Gates.from_dict(settings)


def test_an_image_with_too_little_that_is_sure_is_left_out() -> None:
    decisions, scores = np.array([KEPT, IGNORED, IGNORED, DROPPED]), np.array([0.9, 0.5, 0.4, 0.1])
    assert image_problem(decisions, scores, Gates(min_sure_share=0.33)) is None
    assert "1 of 3 objects are sure" in image_problem(decisions, scores, Gates(min_sure_share=0.34))
    assert "1 sure objects" in image_problem(decisions, scores, Gates(min_sure=2))
    assert "mean score is 0.60" in image_problem(decisions, scores, Gates(min_image_score=0.61))
    nothing = np.zeros(0, dtype=np.int64)
    assert "no sure objects" in image_problem(nothing, np.zeros(0), Gates())
    assert image_problem(nothing, np.zeros(0), Gates(min_sure=0)) is None


def test_agreement_is_the_mean_iou_with_the_same_object_of_the_same_class() -> None:
    found = predicted("a.png", [square(0), square(1), square(2)], [0.9] * 3)
    moved = predicted("a.png", [square(0, shift=2), square(1)], [0.4, 0.4], classes=[0, 1])
    # 8 x 8 pixels moved by 2: 48 of 80 are shared.
    assert agreement_with([moved], found).tolist() == [0.6, 0, 0]
    assert agreement_with([moved, found], found).tolist() == [0.8, 0.5, 0.5]
    nothing = predicted("a.png", [], [])
    assert agreement_with([nothing], found).tolist() == [0, 0, 0]
    assert agreement_with([found], nothing).tolist() == []


def test_members_without_masks_are_refused() -> None:
    found = predicted("a.png", [square(0)], [0.9])
    boxes = predicted("a.png", [square(0)], [0.9])
    boxes.rles = None
    with pytest.raises(DataError, match="have no masks"):
        agreement_with([boxes], found)
