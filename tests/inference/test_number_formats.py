"""Only masks that are kept are computed, and `auto` is the fastest precision that finds objects as well as float32."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from threshold_segmenter import ThresholdSegmenter

from detseg import Predictor
from detseg.config import dump_config, load_config
from detseg.curation.synthetic import KINDS
from detseg.fusion.postprocess import Postprocess
from detseg.inference.precision import MEASURED, choose_precision, precisions_of
from detseg.inference.tiling import Tiling
from detseg.inference.tta import TestTimeAugmentation as Augmentation
from detseg.inference.views import parse_views
from detseg.optim import precision as formats


@pytest.fixture(autouse=True)
def processor_with_bfloat16(monkeypatch):
    monkeypatch.setattr(formats, "cpu_has_bfloat16", lambda: True)


@pytest.fixture
def predictor(small_run):
    """A predictor in float32 whose masks are decided: those of an untrained network are all near a half."""
    predictor = Predictor.from_run(small_run, postprocess=False, precision="float32")
    with torch.no_grad():
        predictor.model.roi_heads.mask_head.predictor.weight.mul_(3000)
    return predictor


def masks_computed(predictor, image) -> tuple[int, object]:
    """How many regions the mask head got for an image, and the answer."""
    counts = []
    hook = predictor.model.roi_heads.mask_head.register_forward_pre_hook(lambda _, x: counts.append(len(x[0])))
    answer = predictor(image)
    hook.remove()
    return sum(counts), answer


def assert_same(a, b) -> None:
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.scores, b.scores)
    assert a.rles == b.rles


@pytest.mark.parametrize("way", ["plain", "tiles", "merge_then_mask"])
def test_what_the_score_threshold_drops_gets_no_mask_and_the_answer_is_the_same(predictor, image_folder, way):
    image = image_folder / "b.png"
    if way == "tiles":
        predictor.tiling = Tiling(when="always", tile=64, overlap=32)
    elif way == "merge_then_mask":
        settings = Augmentation(parse_views(["none", "h"]), way)
        predictor = Predictor(predictor.detector.models[0], predictor.classes, tta=settings)
    everything, raw = masks_computed(predictor, image)
    thresholds = {name: float(np.quantile(raw.scores, 0.3 + 0.2 * index)) for index, name in enumerate(KINDS)}
    predictor.postprocess = Postprocess(classes=KINDS, score_threshold=thresholds)
    some, answer = masks_computed(predictor, image)
    assert 0 < some < everything
    if way != "tiles":  # raw tiles are stitched with what the threshold drops
        assert_same(answer, predictor.postprocess.apply(raw))


def test_all_detections_choose_the_class_of_an_image(predictor, image_folder):
    everything, raw = masks_computed(predictor, image_folder / "b.png")
    threshold = float(np.quantile(raw.scores, 0.8))
    predictor.postprocess = Postprocess(classes=KINDS, score_threshold=threshold, image_class="relabel")
    count, answer = masks_computed(predictor, image_folder / "b.png")
    assert count == everything
    assert_same(answer, predictor.postprocess.apply(raw))


def test_masks_in_bfloat16_leave_boxes_and_scores_as_they_are(predictor, image_folder):
    exact = predictor(image_folder / "b.png", soft_masks=True)
    predictor.detector.models[0].precision = "bfloat16_masks"
    fast = predictor(image_folder / "b.png", soft_masks=True)
    np.testing.assert_array_equal(fast.boxes, exact.boxes)
    np.testing.assert_array_equal(fast.scores, exact.scores)
    differences = [np.abs(a.astype(int) - b).mean() for a, b in zip(fast.soft_masks, exact.soft_masks, strict=True)]
    assert 0 < max(differences) <= 0.02 * 255
    assert predictor.model.mask_dtype is None, "the model itself stays as it was"


def test_auto_is_the_fastest_that_was_measured_to_be_as_good(predictor, monkeypatch):
    model = predictor.model
    assert precisions_of(model) == ["bfloat16", "bfloat16_masks", "float32"]
    for measured, expected in (
        ({}, "bfloat16_masks"),
        ({"float32": 0.5, "bfloat16": 0.4991}, "bfloat16"),
        ({"float32": 0.5, "bfloat16": 0.4989, "bfloat16_masks": 0.4995}, "bfloat16_masks"),
        ({"float32": 0.5, "bfloat16": 0.3, "bfloat16_masks": 0.3}, "float32"),
    ):
        assert choose_precision(model, measured) == expected
    assert choose_precision(ThresholdSegmenter(), {}) == "float32"
    monkeypatch.setattr(formats, "cpu_has_bfloat16", lambda: False)
    assert choose_precision(model, {"float32": 0.5, "bfloat16": 0.5}) == "float32"


def test_a_run_predicts_with_what_its_training_measured_and_says_so(small_run, image_folder, tmp_path):
    run = tmp_path / "001"
    shutil.copytree(small_run, run)
    assert Predictor.from_run(run)(image_folder / "a.png").provenance["precision"] == "bfloat16_masks"
    (run / "final_metrics.json").write_text(json.dumps({MEASURED: {"float32": 0.5, "bfloat16": 0.5}}))
    assert Predictor.from_run(run)(image_folder / "a.png").provenance["precision"] == "bfloat16"
    settings = load_config(run / "config.yaml", ["TEST.PRECISION", "float32"])
    (run / "config.yaml").write_text(dump_config(settings), encoding="utf-8")
    assert Predictor.from_run(run)(image_folder / "a.png").provenance["precision"] == "float32", "as it was evaluated"
    plain = Predictor.from_run(run, precision="float32")
    assert plain(image_folder / "a.png").provenance["precision"] == "float32"
    assert dataclasses.replace(plain.detector.models[0], precision="auto").precision == "bfloat16_masks"
