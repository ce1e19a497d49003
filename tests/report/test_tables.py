"""Tables of an evaluation, on two images whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from detseg.evaluation.ground_truth import GroundTruth, ImageTruth
from detseg.fusion.postprocess import Postprocess
from detseg.report.tables import (
    class_mask,
    confusion_rows,
    image_rows,
    named_rows,
    precision_recall_rows,
    threshold_rows,
)
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec

NAMES = ["round", "long"]


def square(x: int, y: int, side: int = 4) -> dict:
    return rle_codec.encode_crop(np.ones((side, side), dtype=bool), x, y, 20, 20)


def predicted(image_id: int, rles: list[dict], scores: list[float], classes: list[int]) -> Predictions:
    boxes = rle_codec.bounding_boxes(rles).astype(np.float32).reshape(-1, 4)
    return Predictions(image_id, f"{image_id}.png", 20, 20, boxes, np.array(scores), np.array(classes), rles=rles)


@pytest.fixture
def truth() -> GroundTruth:
    images = [
        ImageTruth(1, "1.png", 20, 20, [square(0, 0), square(10, 10)], np.array([0, 1])),
        ImageTruth(2, "2.png", 20, 20, [square(0, 0)], np.array([0])),
    ]
    return GroundTruth(list(NAMES), images)


@pytest.fixture
def found() -> list[Predictions]:
    """Of the first image both objects, one as the wrong class; of the second a false one only, of low score."""
    return [
        predicted(1, [square(0, 0), square(10, 10)], [0.9, 0.8], [0, 0]),
        predicted(2, [square(14, 0)], [0.3], [1]),
    ]


def test_the_worst_image_comes_first(truth: GroundTruth, found: list[Predictions]) -> None:
    rows = image_rows(truth, found, Postprocess())
    assert [(row["file_name"], row["object_ap"]) for row in rows] == [("2.png", 0.0), ("1.png", 1.0)]
    assert rows[0]["false_positives"] == rows[0]["false_negatives"] == 1


def test_precision_and_recall_by_threshold(truth: GroundTruth, found: list[Predictions]) -> None:
    rows = precision_recall_rows(truth, found, Postprocess(score_threshold=0.99))
    every = [(row["threshold"], row["precision"], row["recall"]) for row in rows if row["class"] == "all"]
    assert every == [
        (pytest.approx(0.9), 1.0, pytest.approx(1 / 3)),
        (pytest.approx(0.8), 1.0, pytest.approx(2 / 3)),
        (pytest.approx(0.3), pytest.approx(2 / 3), pytest.approx(2 / 3)),
    ]
    of_round = [(row["precision"], row["recall"]) for row in rows if row["class"] == "round"]
    assert of_round == [(1.0, 0.5), (0.5, 0.5)], "an object of the other class is no hit of this one"


def test_object_ap_by_threshold(truth: GroundTruth, found: list[Predictions]) -> None:
    rows = threshold_rows(truth, found, Postprocess())
    assert [row["object_ap"] for row in rows] == [0.25, 0.5, 0.5]


def test_the_confusion_of_classes(truth: GroundTruth, found: list[Predictions]) -> None:
    numbers = {(row["true"], row["predicted"]): row["number"] for row in confusion_rows(truth, found, Postprocess())}
    assert numbers[("round", "round")] == numbers[("long", "round")] == 1
    assert numbers[("background", "long")] == numbers[("round", "background")] == 1
    assert sum(numbers.values()) == 4
    assert ("background", "background") not in numbers


def test_nothing_at_all() -> None:
    empty = GroundTruth(list(NAMES), [])
    for rows in (image_rows, precision_recall_rows, threshold_rows):
        assert rows(empty, [], Postprocess()) == []
    assert all(row["number"] == 0 for row in confusion_rows(empty, [], Postprocess()))
    assert named_rows({}, "per_class") == []
    assert named_rows({"per_group": {"a": {"object_ap": 0.5}}}, "per_group") == [{"name": "a", "object_ap": 0.5}]


def test_class_masks_put_later_objects_on_top() -> None:
    mask = class_mask([square(0, 0), square(2, 2)], np.array([0, 1]), 20, 20)
    assert mask.dtype == np.uint8
    assert (mask[0, 0], mask[3, 3], mask[5, 5], mask[10, 10]) == (1, 2, 2, 0)
