"""Qualities of masks through views, several models, tiles, thresholds and given boxes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from detseg.coco.dataset import ImageRecord
from detseg.coco.predictions_file import write_predictions
from detseg.config import load_config
from detseg.curation.synthetic import make_image
from detseg.engines.build import build_model
from detseg.fusion.options import FusionOptions
from detseg.fusion.postprocess import Postprocess
from detseg.inference.combine import combine
from detseg.inference.external_boxes import read_boxes
from detseg.inference.image_list import ImageList
from detseg.inference.predictor import Predictor
from detseg.inference.tiling import Tiling
from detseg.inference.tta import TestTimeAugmentation
from detseg.inference.views import SYMMETRIES, parse_views
from detseg.runs.checkpoint import save_checkpoint
from detseg.structures.predictions import Predictions

SIZE = (64, 96)


@pytest.fixture(scope="module")
def judge(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of `small_run` and a quality head, whose outputs are spread over (0, 1)."""
    keys = {"ENABLED": True, "CONV_DIM": 8, "FC_DIM": 8}
    words = [word for name, value in keys.items() for word in (f"MODEL.ROI_MASK_HEAD.QUALITY.{name}", value)]
    cfg = load_config(small_run / "config.yaml", words)
    torch.manual_seed(3)
    model = build_model(cfg)
    of_run = torch.load(small_run / "checkpoints" / "best.pth", weights_only=True)
    model.load_state_dict(of_run["model"], strict=False)
    torch.nn.init.normal_(model.roi_heads.quality_head.predictor.weight, std=5.0)
    path = tmp_path_factory.mktemp("weights") / "judge.pth"
    save_checkpoint(path, {**of_run, "model": model.state_dict(), "config": cfg.flatten()})
    return path


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return make_image((5, 5), *SIZE, 8)[0]


def load(path: Path, *views: str, mode: str = "merge_then_mask", others: tuple[Predictor, ...] = ()) -> Predictor:
    predictor = Predictor.from_checkpoint(path)
    if not views and not others:
        return predictor
    fusion = FusionOptions(method="wbf", threshold=0.65, masks="mean")
    return combine([predictor, *others], settings=TestTimeAugmentation(parse_views(views or ["none"]), mode, fusion))


def test_the_score_is_class_score_times_quality(judge, small_run, image):
    plain, found = Predictor.from_run(small_run, postprocess=False)(image), load(judge)(image)
    assert np.ptp(found.quality) > 0.1
    np.testing.assert_allclose(np.sort(found.class_scores), np.sort(plain.scores), rtol=1e-4)
    assert (np.diff(found.scores) <= 0).all()
    assert {rle["counts"] for rle in found.rles} == {rle["counts"] for rle in plain.rles}


def test_the_qualities_of_views_are_averaged(judge, image):
    boxes = np.array([[10, 12.5, 31, 40], [40.25, 8, 52, 33.5], [0, 30, 20, 50]], np.float32)
    given = Predictions(1, "", *SIZE, boxes, np.ones(3), np.arange(3))
    mirror = SYMMETRIES["h"]
    one = load(judge)(image, boxes=given).quality
    turned = load(judge)(np.ascontiguousarray(mirror.array(image)), boxes=mirror.predictions(given)).quality
    both = load(judge, "none", "h")(image, boxes=given)
    assert np.abs(one - turned).max() > 1e-4
    np.testing.assert_allclose(both.quality, (one + turned) / 2, atol=1e-5)
    np.testing.assert_allclose(both.scores, both.quality, rtol=1e-6)


@pytest.mark.parametrize("mode", ["merge_then_mask", "fuse"])
def test_views_rank_by_the_product(judge, image, mode):
    found = load(judge, "flips", mode=mode)(image)
    assert len(found) > 3
    assert ((found.quality > 0) & (found.quality <= 1)).all()
    assert (np.diff(found.scores) <= 0).all()
    assert (found.scores <= found.quality + 1e-6).all()


def test_of_several_models_those_that_judge_do(judge, small_run, image):
    silent = Predictor.from_run(small_run, postprocess=False)
    boxes = Predictions(1, "", *SIZE, [[10, 12, 31, 40]], [0.5], [0])
    alone, both = load(judge)(image, boxes=boxes), load(judge, others=(silent,))(image, boxes=boxes)
    assert both.quality.tolist() == pytest.approx(alone.quality.tolist(), abs=1e-6)
    assert np.isnan(silent(image, boxes=boxes).quality).all()


def test_thresholds_are_of_the_score_that_is_kept(judge, image):
    everything = load(judge)(image)
    threshold = float(np.median(everything.scores))
    predictor = load(judge)
    predictor.postprocess = Postprocess(score_threshold=threshold, resolve_overlaps=False)
    kept = predictor(image)
    assert kept.scores.tolist() == everything.scores[everything.scores >= np.float32(threshold)].tolist()
    assert 0 < len(kept) < len(everything)


def test_boxes_of_a_file_with_qualities_get_those_of_their_new_masks(judge, image, tmp_path):
    found = load(judge)(image)
    write_predictions(tmp_path / "boxes.json", [dataclasses.replace(found, file_name="a.png")], load(judge).classes)
    images = ImageList([ImageRecord(1, "a.png", Path("a.png"), 0, 0, {})], {})
    boxes = read_boxes(tmp_path / "boxes.json", images, load(judge).classes)(images.records[0], *SIZE)
    again = load(judge)(image, boxes=boxes)
    np.testing.assert_allclose(again.quality, found.quality, atol=1e-4)
    np.testing.assert_allclose(again.scores, found.scores, atol=1e-4)


def test_tiles_keep_them(judge, image):
    predictor = load(judge)
    predictor.tiling = Tiling("always", tile=64, overlap=24)
    found = predictor(image)
    assert len(found) > 0
    np.testing.assert_allclose(found.scores, found.class_scores * found.quality, rtol=1e-6)
    boxes = Predictions(1, "", *SIZE, [[10, 12, 31, 40], [60, 10, 90, 50]], [0.5, 1], [0, 0])
    given = predictor(image, boxes=boxes)
    np.testing.assert_allclose(given.scores, boxes.scores * given.quality, rtol=1e-6)
