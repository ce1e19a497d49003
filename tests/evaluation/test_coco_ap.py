"""COCO AP: the precision array of pycocotools, at the same number of detections."""

from __future__ import annotations

import contextlib
import copy
import io
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scoring_cases import predictions_of, random_case, rectangle, truth_of, without_masks

from detseg.evaluation.coco_ap import average_precision, coco_annotations, coco_ap, coco_precision


def pycocotools_precision(truth, found, kind, max_detections):
    """Return (T, R, K) of pycocotools for all areas."""
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for dataset in (truth, found):
            side = COCO()
            side.dataset = copy.deepcopy(dataset)
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, iouType=kind)
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0, 0]


@pytest.mark.parametrize("max_detections", [3, 2000])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_precision_equals_pycocotools(seed, kind, max_detections):
    ground_truth, predictions = random_case(seed, images=5, classes=3, crowds=seed % 2 == 1, objects=20)
    truth, found = coco_annotations(ground_truth.images, predictions, 3)
    expected = pycocotools_precision(truth, found, kind, max_detections)
    assert expected.max() > 0, "the case should have hits"
    # pycocotools adds 2.2e-16 to every denominator, which can change the last bit.
    np.testing.assert_allclose(coco_precision(truth, found, kind, max_detections), expected, rtol=0, atol=3e-16)


def test_pycocotools_serves_where_faster_coco_eval_is_missing(monkeypatch, capsys):
    ground_truth, predictions = random_case(1, images=3, classes=2, crowds=True, objects=10)
    expected = coco_ap(ground_truth.images, predictions, 2)
    for name in ("faster_coco_eval", "faster_coco_eval.core", "faster_coco_eval.core.coco"):
        monkeypatch.setitem(sys.modules, name, None)
    found = coco_ap(ground_truth.images, predictions, 2)
    assert expected[0]["coco_segm_ap"] > 0
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other)
    assert capsys.readouterr().out == ""


def test_more_than_a_hundred_detections_count():
    objects = [rectangle(x, y, x + 2, y + 2) for x in range(0, 48, 3) for y in range(0, 38, 3)]
    assert len(objects) > 200
    truths, predictions = [truth_of(objects)], [predictions_of(objects)]
    assert coco_ap(truths, predictions, 1)[0]["coco_segm_ap"] == pytest.approx(1)
    assert coco_ap(truths, predictions, 1, max_detections=100)[0]["coco_segm_ap"] < 0.5


def test_no_detection_is_left_out_without_a_word(caplog):
    size = (1200, 1200)
    objects = [rectangle(x, y, x + 10, y + 10, size) for x in range(0, 1200, 20) for y in range(0, 1200, 20)]
    truths, predictions = [truth_of(objects, size=size)], [predictions_of(objects, size=size)]
    assert len(objects) == 3600
    result = coco_ap(truths, predictions, 1)[0]
    assert result["coco_segm_ap"] == result["coco_bbox_ap"] == pytest.approx(1)
    assert caplog.messages == []
    coco_ap(truths, predictions, 1, max_detections=2000)
    assert "the best 2000 detections of an image and class, as was asked; an image has 3600" in caplog.text


def test_known_answer():
    # One of two objects found, first in the list; then a false alarm: precision 1 up to recall 0.5, then 0.
    truths = [truth_of([rectangle(0, 0, 10, 10), rectangle(20, 20, 30, 30)])]
    predictions = [predictions_of([rectangle(0, 0, 10, 10), rectangle(40, 0, 45, 5)])]
    result = coco_ap(truths, predictions, 1)[0]
    assert result["coco_segm_ap"] == result["coco_bbox_ap"] == pytest.approx(51 / 101)


def test_no_predictions_at_all_is_legal():
    truths = [truth_of([rectangle(0, 0, 10, 10)], classes=[0])]
    rows = coco_ap(truths, [predictions_of([])], 2)
    assert rows[0]["coco_segm_ap"] == rows[0]["coco_bbox_ap"] == 0
    assert rows[1]["coco_segm_ap"] == 0
    assert rows[2]["coco_segm_ap"] is None, "a class without truth has no AP"


@pytest.mark.parametrize("found", [[], [rectangle(0, 0, 5, 5)]])
def test_no_truth_has_no_score(found):
    rows = coco_ap([truth_of([])], [predictions_of(found)], 1)
    assert set(rows[0].values()) == {None}
    assert set(rows[1].values()) == {None}


def test_no_images_has_no_score():
    assert set(coco_ap([], [], 1)[0].values()) == {None}


def test_boxes_alone_have_box_ap_only():
    objects = [rectangle(0, 0, 10, 10)]
    result = coco_ap([truth_of(objects)], [without_masks(predictions_of(objects))], 1)[0]
    assert result["coco_bbox_ap"] == pytest.approx(1)
    assert result["coco_segm_ap"] is None


def test_image_ids_may_be_texts_and_zero():
    objects = [rectangle(0, 0, 10, 10)]
    truths = [truth_of(objects, image_id="a"), truth_of(objects, image_id=0)]
    predictions = [predictions_of(objects, image_id="a"), predictions_of(objects, image_id=0)]
    assert coco_ap(truths, predictions, 1)[0]["coco_segm_ap"] == pytest.approx(1)


def test_the_mean_leaves_out_classes_without_truth():
    precision = np.full((10, 101, 2), -1.0)
    precision[:, :, 0] = 0.25
    assert average_precision(precision) == {"ap": 0.25, "ap50": 0.25, "ap75": 0.25}
