"""Masks and scores from mask probabilities, and duplicates by mask IoU, alone and within the postprocess."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fusion_cases import random_members
from scoring_cases import SIZE, predictions_of, rectangle

from detseg.errors import DataError
from detseg.fusion.fuse import fuse
from detseg.fusion.options import FusionOptions
from detseg.fusion.postprocess import Postprocess
from detseg.fusion.soft_masks import mask_quality, rescore, threshold_masks
from detseg.fusion.suppression import suppress_duplicates
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import soft_mask_window


def with_soft_mask(scores=(0.8,)):
    """A box of 4 x 2 pixels at (3, 5): its left half has the probability 200 / 255, its right half 100 / 255."""
    soft = np.array([[200, 200, 100, 100]] * 2, dtype=np.uint8)
    count = len(scores)
    box, mask = [3, 5, 7, 7], rectangle(3, 5, 5, 7)
    return Predictions(1, "1.png", *SIZE, [box] * count, scores, np.zeros(count), [mask] * count, [soft] * count)


def test_a_lower_threshold_makes_a_larger_mask():
    found = with_soft_mask()
    assert threshold_masks(found, np.array([0.3])).rles == [rectangle(3, 5, 7, 7)]
    assert threshold_masks(found, np.array([200 / 255])).rles == [rectangle(3, 5, 5, 7)]
    assert threshold_masks(found, np.array([np.inf])) is found
    gone = threshold_masks(found, np.array([0.9]))
    assert rle_codec.area(gone.rles).tolist() == [0]
    assert len(Postprocess(mask_threshold=0.9).apply(found)) == 0


def test_a_changed_mask_brings_its_box_and_soft_mask():
    small = dataclasses.replace(with_soft_mask(), rles=[rectangle(3, 5, 7, 7)])
    changed = threshold_masks(small, np.array([0.5]))
    assert changed.boxes.tolist() == [[3, 5, 5, 7]]
    assert changed.soft_masks[0].tolist() == [[200, 200]] * 2


def test_quality_is_the_mean_probability_inside_the_mask():
    assert mask_quality(with_soft_mask()) == pytest.approx([200 / 255])
    whole = dataclasses.replace(with_soft_mask(), rles=[rectangle(3, 5, 7, 7)])
    assert mask_quality(whole) == pytest.approx([150 / 255])
    # Two columns of the mask lie outside of the soft mask.
    wide = dataclasses.replace(with_soft_mask(), rles=[rectangle(3, 5, 9, 7)])
    assert mask_quality(wide) == pytest.approx([100 / 255])
    empty = dataclasses.replace(with_soft_mask(), rles=[rle_codec.encode_mask(np.zeros(SIZE, dtype=bool))])
    assert mask_quality(empty) == 0


@pytest.mark.parametrize("seed", range(3))
def test_quality_as_written_down_plainly(seed):
    member = random_members(seed)[0]
    wanted = []
    for box, rle, soft in zip(member.boxes, member.rles, member.soft_masks, strict=True):
        x0, y0, x1, y1 = soft_mask_window(box, member.height, member.width)
        full = np.zeros((member.height, member.width))
        full[y0:y1, x0:x1] = soft / 255
        wanted.append(full[rle_codec.decode(rle)].mean())
    np.testing.assert_allclose(mask_quality(member), wanted, rtol=1e-12)


def test_rescoring():
    found = with_soft_mask([0.8, 0.4])
    assert rescore(found, 0) is found
    np.testing.assert_allclose(rescore(found, 2).scores, found.scores * (200 / 255) ** 2, rtol=1e-6)
    # 0.8 x 200 / 255 is 0.63, 0.4 x 200 / 255 is 0.31.
    assert len(Postprocess(mask_quality=1, score_threshold=0.62, resolve_overlaps=False).apply(found)) == 1
    assert len(Postprocess(mask_quality=1, score_threshold=0.64, resolve_overlaps=False).apply(found)) == 0
    assert fuse([found], FusionOptions(mask_quality=1)).scores == pytest.approx([0.8 * 200 / 255])


def test_without_soft_masks_or_predictions():
    bare = predictions_of([rectangle(0, 0, 5, 5)])
    for settings in (Postprocess(mask_threshold=0.5), Postprocess(mask_quality=1)):
        assert settings.needs_soft_masks
        with pytest.raises(DataError, match=r"have no mask probabilities.*predict --soft-masks"):
            settings.apply(bare)
        assert len(settings.apply(predictions_of([]))) == 0
    assert not Postprocess(classes=["a"], mask_threshold={"a": None}).needs_soft_masks
    assert Postprocess(classes=["a", "b"], mask_threshold={"a": None, "b": 0.4}).needs_soft_masks


def plain_suppression(predictions, thresholds):
    masks = [rle_codec.decode(rle) for rle in predictions.rles]
    kept = []
    for index in np.argsort(-predictions.scores, kind="stable"):
        for better in kept:
            if predictions.classes[index] != predictions.classes[better]:
                continue
            shared, whole = (masks[index] & masks[better]).sum(), (masks[index] | masks[better]).sum()
            if shared / whole > thresholds[better]:
                break
        else:
            kept.append(index)
    return sorted(kept)


@pytest.mark.parametrize("seed", range(5))
def test_suppression_as_written_down_plainly(seed):
    member = random_members(seed, objects=30)[0]
    thresholds = np.where(member.classes == 0, 0.2, 0.05)
    kept = suppress_duplicates(member, thresholds)
    assert kept.scores.tolist() == member.scores[plain_suppression(member, thresholds)].tolist()
    settings = Postprocess(classes=["a", "b"], nms_iou={"a": 0.2, "b": 0.05}, resolve_overlaps=False)
    assert settings.apply(member).scores.tolist() == kept.scores.tolist()
    assert len(suppress_duplicates(member, np.full(len(member), np.inf))) == len(member)


@pytest.mark.parametrize(
    "wrong", [{"mask_threshold": 1.5}, {"nms_iou": "x"}, {"mask_quality": -1}, {"mask_quality": None}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(DataError, match=next(iter(wrong))):
        Postprocess(**wrong)
