"""The same weights and images in both engines; nothing is random, because sampling takes all there is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2_cases import ARCHITECTURES, disks, in_both_engines, require_detectron2, without_objects

require_detectron2()

from detseg.detectron2.segmenter import Detectron2Segmenter
from detseg.errors import DataError
from detseg.models.base import Segmenter
from detseg.structures.predictions import Predictions
from detseg.structures.sample import Sample

IMAGES = [disks(6, seed=1), disks(9, (100, 90), seed=2), without_objects()]


def with_ignored(sample: Sample, rows: slice, columns: slice) -> Sample:
    ignore = np.zeros((sample.height, sample.width), dtype=bool)
    ignore[rows, columns] = True
    return Sample(sample.image, sample.layers, sample.classes, ignore, sample.image_id, sample.file_name)


IGNORED = [
    with_ignored(IMAGES[0], slice(0, 50), slice(0, 70)),
    IMAGES[1],
    with_ignored(IMAGES[2], slice(20, 64), slice(0, 64)),
]


def losses_of(model: Segmenter, samples: list[Sample]) -> dict[str, float]:
    torch.manual_seed(0)
    return {name: loss.item() for name, loss in model.train()(samples).items()}


@pytest.mark.parametrize("samples", [IMAGES, IGNORED], ids=["plain", "ignored regions"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_agree(architecture: str, samples: list[Sample]):
    theirs, ours = in_both_engines(architecture)
    expected, found = losses_of(theirs, samples), losses_of(ours, samples)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_ignored_regions_change_every_loss():
    """The comparison above would not see two engines that both look away."""
    theirs, _ = in_both_engines("cascade")
    plain, ignored = losses_of(theirs, IMAGES), losses_of(theirs, IGNORED)
    same = [name for name in plain if abs(plain[name] - ignored[name]) < 1e-6]
    assert not same


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_predictions_agree(architecture: str):
    theirs, ours = in_both_engines(architecture)
    images, sizes = [sample.image for sample in IMAGES], [(120, 160), (100, 90), (64, 64)]
    expected = theirs.eval().predict(images, output_sizes=sizes, soft_masks=True)
    found = ours.eval().predict(images, output_sizes=sizes, soft_masks=True)
    assert any(len(one) for one in expected)
    for a, b in zip(expected, found, strict=True):
        assert len(a) == len(b)
        np.testing.assert_allclose(b.boxes, a.boxes, atol=2e-3)
        np.testing.assert_allclose(b.scores, a.scores, atol=2e-5)
        np.testing.assert_array_equal(b.classes, a.classes)
        assert all(
            np.abs(x.astype(int) - y.astype(int)).max(initial=0) <= 1
            for x, y in zip(a.soft_masks, b.soft_masks, strict=True)
        )


def test_masks_of_given_boxes_agree():
    theirs, ours = in_both_engines("FPN")
    image = IMAGES[0].image
    boxes = [np.array([[3, 4, 30, 40], [10.5, 20, 61, 70.25]], dtype=np.float32)]
    for given in (boxes, [np.zeros((0, 4), dtype=np.float32)]):
        asked = [Predictions(0, "", 192, 256, given[0], np.ones(len(given[0])), np.arange(len(given[0])) % 2)]
        (a,), (b,) = (
            model.eval().predict_masks([image], asked, [(192, 256)], soft_masks=True) for model in (theirs, ours)
        )
        np.testing.assert_allclose(a.boxes, given[0], atol=1e-3)
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-5)
        for x, y in zip(a.soft_masks, b.soft_masks, strict=True):
            assert np.abs(x.astype(int) - y.astype(int)).max() <= 1


def test_boxes_of_cached_features_are_those_of_predict():
    theirs, _ = in_both_engines("cascade")
    images = [sample.image for sample in IMAGES]
    features = theirs.eval().cache_features(images)
    for seen, predicted in zip(features.predict(masks=False), theirs.predict(images), strict=True):
        np.testing.assert_array_equal(seen.boxes, predicted.boxes)
        assert seen.rles is None


def test_the_wrapper_has_detectron2s_names_and_moves_with_its_network():
    model, ours = in_both_engines("FPN")
    assert isinstance(model, Detectron2Segmenter)
    assert model.state_dict().keys() == ours.state_dict().keys() == model.network.state_dict().keys()
    model.eval()
    assert not model.network.training
    model.train()
    assert model.network.training
    model.to(torch.float64)
    assert model.network.pixel_mean.dtype == next(model.parameters()).dtype == torch.float64


def test_images_of_other_channels_are_refused():
    theirs, _ = in_both_engines("FPN")
    with pytest.raises(DataError, match=r"INPUT.CHANNELS"):
        theirs.eval().predict([np.zeros((32, 32, 1), dtype=np.uint8)])
