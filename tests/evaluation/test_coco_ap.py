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
from detseg.structures import rle as rle_codec


def pycocotools_precision(truth, found, kind, max_detections):
    """Return (T, R, K, A) of pycocotools, to which predictions come as results and not as annotations with areas."""
    with contextlib.redirect_stdout(io.StringIO()):
        side = COCO()
        side.dataset = copy.deepcopy(truth)
        side.createIndex()
        keys = ("image_id", "category_id", "score", kind if kind == "bbox" else "segmentation")
        results = [{key: row[key] for key in keys} for row in found["annotations"]]
        evaluation = COCOeval(side, side.loadRes(results), iouType=kind)
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0]


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


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_small_medium_and_large_objects_are_told_apart_as_by_coco(kind):
    """A ring's mask is medium, its box large; of the edges 32 and 96 both sides belong to a range."""
    sides = (10, 32, 33, 96, 97, 120)
    squares = [rectangle(0, 0, side, side, (128, 128)) for side in sides]
    ring = np.zeros((128, 128), dtype=bool)
    ring[4:124, 4:124] = True
    ring[14:114, 14:114] = False
    rles = [*squares, rle_codec.encode_mask(ring)]
    truths = [truth_of([rle], image_id=number, size=(128, 128)) for number, rle in enumerate(rles)]
    moved = [rectangle(2, 0, side + 2, side, (128, 128)) for side in sides]
    found = [
        predictions_of([rle], [0.9 - 0.1 * number], image_id=number, size=(128, 128))
        for number, rle in enumerate([*moved, rles[-1]])
    ]
    sides_of_coco = coco_annotations(truths, found, 1)
    expected = pycocotools_precision(*sides_of_coco, kind, 100)
    assert (expected[:, 0, 0] > -1).all()
    assert len(np.unique(expected[-1, 0, 0])) == 4
    np.testing.assert_allclose(coco_precision(*sides_of_coco, kind, 100), expected, rtol=0, atol=3e-16)


def test_sizes_and_classes_have_their_own_scores():
    """A small object of class 0 is found and a large one of class 1 is not."""
    small, large = rectangle(0, 0, 8, 8, (128, 128)), rectangle(10, 10, 120, 120, (128, 128))
    truth, found = truth_of([small, large], [0, 1], size=(128, 128)), predictions_of([small], size=(128, 128))
    every, first, second = coco_ap([truth], [found], 2)
    for kind in ("bbox", "segm"):
        assert [every[f"coco_{kind}_ap_{size}"] for size in ("small", "medium", "large")] == [pytest.approx(1), None, 0]
        assert (first[f"coco_{kind}_ap_small"], first[f"coco_{kind}_ap_large"]) == (pytest.approx(1), None)
        assert (second[f"coco_{kind}_ap_small"], second[f"coco_{kind}_ap_large"]) == (None, 0)


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
    assert "only the best 2000 detections per image and class (max_detections); an image has 3600" in caplog.text


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
    precision = np.full((10, 101, 2, 4), -1.0)
    precision[:, :, 0, 0] = 0.25
    scores = average_precision(precision)
    assert [scores[name] for name in ("ap", "ap50", "ap75", "ap_small")] == [0.25, 0.25, 0.25, None]
