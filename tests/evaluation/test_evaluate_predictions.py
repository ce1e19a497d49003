"""`evaluate`: its keys, its refusals, and the scores that training reports."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from scoring_cases import predictions_of, random_case, rectangle, truth_of, without_masks

from detseg.errors import DataError
from detseg.evaluation.evaluate import align, count_all, evaluate, image_table, write_image_table
from detseg.evaluation.ground_truth import GroundTruth
from detseg.fusion.postprocess import Postprocess
from detseg.tuning.thresholds import evaluate_tuned

KEYS = ["object_ap", "object_ap50", "object_ap75", "mean_f1", "coco_bbox_ap", "coco_segm_ap"]


def test_keys_and_types():
    ground_truth, predictions = random_case(1, images=4, classes=3)
    metrics = evaluate(ground_truth, predictions)
    assert {*KEYS, "per_class", "images", "objects", "predictions"} <= set(metrics)
    assert list(metrics["per_class"]) == ["kind 0", "kind 1", "kind 2"]
    for scores in metrics["per_class"].values():
        assert {*KEYS, "objects", "predictions", "precision", "recall"} <= set(scores)
    assert metrics["images"] == 4
    assert metrics["objects"] == sum(len(image.rles) for image in ground_truth.images)
    assert metrics["predictions"] == sum(map(len, predictions))
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@pytest.mark.parametrize("images", [0, 1])
def test_nothing_at_all_is_plain_json(images):
    ground_truth = GroundTruth(["cell"], [truth_of([])] * images)
    metrics = evaluate(ground_truth, [])
    assert metrics["object_ap"] == (1 if images else None)
    assert metrics["per_class"]["cell"]["object_ap"] is None
    assert metrics["coco_segm_ap"] is None
    json.dumps(metrics, allow_nan=False)


def test_images_without_predictions_count_as_empty():
    objects = [rectangle(0, 0, 10, 10)]
    ground_truth = GroundTruth(["cell"], [truth_of(objects, image_id=1), truth_of(objects, image_id=2)])
    metrics = evaluate(ground_truth, [predictions_of(objects, image_id=2)])
    assert metrics["object_ap"] == 0.5
    assert metrics["coco_segm_ap"] == pytest.approx(51 / 101)


def test_boxes_alone_get_box_ap_and_counts():
    objects = [rectangle(0, 0, 10, 10)]
    ground_truth = GroundTruth(["a", "b"], [truth_of(objects)])
    metrics = evaluate(ground_truth, [without_masks(predictions_of(objects))])
    assert metrics["coco_bbox_ap"] == pytest.approx(1)
    assert metrics["object_ap"] is None
    assert metrics["coco_segm_ap"] is None
    assert (metrics["objects"], metrics["predictions"], metrics["images"]) == (1, 1, 1)
    assert metrics["per_class"]["b"]["images"] == 0


def test_wrong_predictions_are_refused():
    ground_truth = GroundTruth(["cell"], [truth_of([rectangle(0, 0, 10, 10)], image_id=7)])
    ours = [rectangle(0, 0, 10, 10)]
    cases = {
        "there is no image 8.png": [predictions_of(ours, image_id=8)],
        "twice": [predictions_of(ours, image_id=7)] * 2,
        "original size": [predictions_of([], image_id=7, size=(20, 20))],
        "class 1": [predictions_of(ours, classes=[1], image_id=7)],
    }
    for message, predictions in cases.items():
        with pytest.raises(DataError, match=message):
            evaluate(ground_truth, predictions)


def test_wrong_truth_is_refused():
    with pytest.raises(DataError, match="twice"):
        GroundTruth(["cell"], [truth_of([]), truth_of([])])
    with pytest.raises(DataError, match="class 3"):
        GroundTruth(["cell"], [truth_of([rectangle(0, 0, 5, 5)], classes=[3])])
    with pytest.raises(DataError, match="size"):
        truth_of([rectangle(0, 0, 5, 5)], size=(20, 20))
    with pytest.raises(DataError, match="same number"):
        truth_of([rectangle(0, 0, 5, 5)], classes=[0, 0])


def test_groups_of_images():
    objects = [rectangle(0, 0, 10, 10)]
    ground_truth = GroundTruth(
        ["cell"],
        [truth_of(objects, image_id=1, metadata={"kind": "a"}), truth_of(objects, image_id=2, metadata={"kind": "b"})],
    )
    metrics = evaluate(ground_truth, [predictions_of(objects, image_id=1)], group_by="kind")
    assert metrics["per_group"]["a"]["object_ap"] == 1
    assert metrics["per_group"]["b"]["object_ap"] == 0
    with pytest.raises(DataError, match=r"'colour'.*kind"):
        evaluate(ground_truth, [], group_by="colour")


def test_the_table_of_images_averages_to_the_score(tmp_path):
    ground_truth, predictions = random_case(3, images=5)
    aligned = align(ground_truth, predictions)
    path = tmp_path / "images.csv"
    write_image_table(path, image_table(ground_truth, aligned, count_all(ground_truth, aligned)))
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file_name"] for row in rows] == [image.file_name for image in ground_truth.images]
    mean = np.mean([float(row["object_ap"]) for row in rows])
    assert mean == pytest.approx(evaluate(ground_truth, predictions, coco=False)["object_ap"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(DataError, match="folder"):
        write_image_table(tmp_path / "missing" / "images.csv", [])


def test_training_reports_coco_of_all_and_objects_above_the_threshold():
    ground_truth, predictions = random_case(5, images=6)
    metrics, settings = evaluate_tuned(ground_truth, predictions)
    raw = evaluate(ground_truth, predictions)
    assert metrics["coco_segm_ap"] == raw["coco_segm_ap"]
    assert metrics["per_class"]["kind 1"]["coco_bbox_ap"] == raw["per_class"]["kind 1"]["coco_bbox_ap"]
    assert metrics["predictions_above_floor"] == raw["predictions"]
    applied = evaluate(ground_truth, settings.apply_all(predictions))
    for key in ("object_ap", "object_ap50", "mean_f1", "predictions"):
        assert metrics[key] == applied[key]
    assert metrics["object_ap"] >= raw["object_ap"]
    assert settings == Postprocess(classes=["kind 0", "kind 1"], score_threshold=metrics["score_threshold"])
    json.dumps(metrics, allow_nan=False)


def test_a_given_threshold_is_used_as_it_is():
    ground_truth, predictions = random_case(5)
    metrics, settings = evaluate_tuned(ground_truth, predictions, score_threshold=0.7, coco=False)
    assert metrics["score_threshold"] == settings.score_threshold == 0.7
    assert metrics["predictions"] <= sum((image.scores >= 0.7).sum() for image in predictions)


def test_training_without_any_prediction():
    ground_truth = GroundTruth(["cell"], [truth_of([rectangle(0, 0, 10, 10)])])
    metrics, _ = evaluate_tuned(ground_truth, [])
    assert metrics["object_ap"] == 0
    assert metrics["coco_segm_ap"] == 0
    assert metrics["score_threshold"] == 0.5


def test_training_with_boxes_alone():
    objects = [rectangle(0, 0, 10, 10)]
    metrics, _ = evaluate_tuned(GroundTruth(["cell"], [truth_of(objects)]), [without_masks(predictions_of(objects))])
    assert metrics["coco_bbox_ap"] == pytest.approx(1)
    assert metrics["object_ap"] is None
