"""Views and models put together, with the real network (small, untrained)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detseg.curation.synthetic import make_image
from detseg.data.preprocess import TestSizeOptions
from detseg.errors import ConfigError
from detseg.fusion.options import FusionOptions
from detseg.inference.combine import combine
from detseg.inference.predictor import Predictor
from detseg.inference.tta import FUSE, MERGE_THEN_MASK, TestTimeAugmentation
from detseg.inference.views import SYMMETRIES, parse_views
from detseg.models.paste import paste_masks
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions

MODES = (MERGE_THEN_MASK, FUSE)  # of models that find boxes

SIZES = [(64, 96), (61, 75)]


def load(run, *views, checkpoint="best", mode="merge_then_mask", size=0, **fusion) -> Predictor:
    predictor = Predictor.from_run(run, checkpoint=checkpoint, postprocess=False)
    predictor.detector.models[0].size = TestSizeOptions(min_size=size, max_size=1000)
    if not views:
        return predictor
    settings = TestTimeAugmentation(parse_views(views), mode, FusionOptions(**fusion))
    return combine([predictor], settings=settings)


def symmetric_cells(height: int, width: int, name: str) -> np.ndarray:
    image, _, _ = make_image((3, height), height, width, 8)
    return np.maximum(image, SYMMETRIES[name].array(image))


def sorted_by_score(predictions: Predictions) -> Predictions:
    return predictions.select(np.lexsort((rle_codec.area(predictions.rles), -predictions.scores)))


@pytest.mark.parametrize("name", ["h", "v", "hv"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resized", [0, 72])
def test_a_symmetric_image_gives_the_mirrored_answer_from_its_flip(small_run, name, size, resized):
    image = symmetric_cells(*size, name)
    plain = load(small_run, size=resized)(image)
    assert len(plain) >= 3
    # fusion leaves empty masks out
    expected = sorted_by_score(SYMMETRIES[name].predictions(plain.select(rle_codec.area(plain.rles) > 0)))
    view = sorted_by_score(load(small_run, name, mode="fuse", size=resized, threshold=1.0)(image))
    assert view.rles == expected.rles
    assert view.scores.tolist() == expected.scores.tolist()
    assert (view.boxes[:, :2] <= expected.boxes[:, :2] + 1e-3).all(), "a box is widened to hold its mask"
    assert np.abs(view.boxes - expected.boxes).max() < 0.5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resized", [0, 72])
def test_mirrored_boxes_of_a_symmetric_image_get_mirrored_masks(small_run, size, resized):
    """The mean over a group of views is the same whichever member of the group the image is turned by."""
    image = symmetric_cells(*size, "h")
    boxes = np.array([[10, 12.5, 31, 40], [40.25, 8, 52, 33.5], [0, 30, 20, 50]], np.float32)
    given = Predictions(1, "", *size, boxes, np.ones(3), np.arange(3))
    predictor = load(small_run, "flips", size=resized)
    mirror = SYMMETRIES["h"]
    masks = predictor(image, boxes=given)
    mirrored = predictor(image, boxes=mirror.predictions(given))
    assert mirrored.rles == mirror.rles(masks.rles, *size)
    assert len({rle["counts"] for rle in masks.rles}) == 3


def test_cached_features_give_what_predicting_gives(small_run):
    model = load(small_run).model
    images = [np.repeat(make_image((1, n), 64, 80, 5)[0], 3, axis=2)[:, :, :3] for n in range(2)]
    sizes = [(64, 80), (50, 61)]
    plain = model.predict(images, output_sizes=sizes, soft_masks=True)
    features = model.cache_features(images, sizes)
    boxes = features.predict(masks=False)
    for one, other in zip(boxes, plain, strict=True):
        assert np.array_equal(one.boxes, other.boxes)
        assert np.array_equal(one.scores, other.scores)
        assert one.rles is None
    masks = features.region_masks(plain)
    asked = model.predict_masks(images, plain, sizes)
    for (probabilities, _), answer, size in zip(masks, asked, sizes, strict=True):
        assert paste_masks(probabilities, answer.boxes, *size)[0] == answer.rles


@pytest.mark.parametrize("mode", MODES)
def test_the_plain_view_alone_gives_the_plain_answer(small_run, mode):
    image = make_image((5, 5), 64, 80, 6)[0]
    plain = load(small_run)(image, soft_masks=True)
    # a second view of another name keeps the combination from being left out
    one = load(small_run, "none", "none+contrast=1", mode=mode, threshold=0.999)(image, soft_masks=True)
    assert sorted(rle["counts"] for rle in one.rles) == sorted(rle["counts"] for rle in plain.rles)
    assert len(one.soft_masks) == len(one)


def test_boxes_of_one_model_and_masks_of_others(small_run):
    image = make_image((5, 6), 64, 80, 6)[0]
    first, second = load(small_run), load(small_run, checkpoint="last")
    combination = combine([first, second], boxes_of=[0], masks_of=[0, 1], weights=[3, 1])
    answer = combination(image, soft_masks=True)
    plain = first(image)
    assert len(answer) <= len(plain)
    means = [predictor(image, boxes=answer, soft_masks=True).soft_masks for predictor in (first, second)]
    for crop, one, other in zip(answer.soft_masks, *means, strict=True):
        assert np.abs(crop - (3.0 * one + other) / 4).max() <= 1, "each of them is rounded"
    models = answer.provenance["models"]
    assert [(model["weight"], model["boxes"], model["masks"]) for model in models] == [
        (3, True, True),
        (1, False, True),
    ]
    assert models[0]["checkpoint_hash"] != models[1]["checkpoint_hash"]


def test_detections_of_all_models_are_fused(small_run):
    image = make_image((5, 7), 64, 80, 6)[0]
    predictors = [load(small_run), load(small_run, checkpoint="last")]
    together = combine(predictors, settings=TestTimeAugmentation(mode="fuse", fusion=FusionOptions(threshold=1.0)))(
        image
    )
    alone = [rle["counts"] for predictor in predictors for rle in predictor(image).rles]
    assert {rle["counts"] for rle in together.rles} <= set(alone)
    assert len(together) > max(len(predictor(image)) for predictor in predictors) - 1


def test_combinations_that_cannot_be_are_refused(small_run):
    one, two = load(small_run), load(small_run)
    with pytest.raises(ConfigError, match=r"1 weights .* 2 models"):
        combine([one, two], weights=[1])
    with pytest.raises(ConfigError, match="no model 2"):
        combine([one, two], boxes_of=[2])
    with pytest.raises(ConfigError, match="greater than 0"):
        combine([one, two], weights=[1, 0])
    with pytest.raises(ConfigError, match="merge_then_mask"):
        combine([one, two], settings=TestTimeAugmentation(mode="fuse"), boxes_of=[0])
    two.classes = ("other",)
    with pytest.raises(ConfigError, match="other"):
        combine([one, two])


def test_half_precision_works_with_views(small_run):
    image = make_image((5, 8), 64, 80, 6)[0]
    predictor = Predictor.from_run(small_run, postprocess=False, precision="bfloat16")
    for mode in MODES:
        answer = combine([predictor], settings=TestTimeAugmentation(parse_views(["flips"]), mode))(image)
        assert len(answer) > 0
        assert answer.rles is not None
        assert np.isfinite(answer.scores).all()
    assert torch.is_autocast_enabled("cpu") is False


@pytest.mark.parametrize("mode", ["merge_then_mask", "fuse"])
def test_classes_of_models_are_matched_by_name(small_run, mode):
    """The same network twice, the second time with its classes in another order."""
    image, _, _ = make_image((5, 1), 64, 96, 8)
    first, alike, other = (load(small_run) for _ in range(3))
    order = [2, 0, 1]
    other.classes = [first.classes[index] for index in order]
    state = other.model.state_dict()
    rows = torch.tensor(order)
    for name, values in state.items():
        if "cls_score" in name:
            state[name] = values[[*order, len(order)]]  # background comes last
        elif "bbox_pred" in name:
            state[name] = values.unflatten(0, (len(order), 4))[rows].flatten(0, 1)
        elif "mask_head.predictor" in name:
            state[name] = values[rows]
    other.model.load_state_dict(state)
    settings = TestTimeAugmentation(parse_views(["none", "h"]), mode, FusionOptions(method="wbf"))
    expected = combine([first, alike], settings=settings)(image)
    found = combine([first, other], settings=settings)(image)
    assert len(set(expected.classes.tolist())) > 1, "one class tells nothing"
    assert found.classes.tolist() == expected.classes.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    assert found.rles == expected.rles
