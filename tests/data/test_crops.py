"""Crops on objects and on rare classes, padding, and large-scale jitter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.config import load_config
from detseg.data.augment.policy import TrainPolicy
from detseg.data.augment.random_geometry import RandomAffine, RandomCrop
from detseg.errors import ConfigError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample


def corner_cells() -> Sample:
    """A large image with two cells far from each other, of classes 0 and 1, and a second layer."""
    layers = np.zeros((2, 400, 500), np.int32)
    layers[0, 20:40, 30:55] = 1
    layers[1, 350:380, 440:470] = 2
    return Sample(np.zeros((400, 500, 1), np.uint8), LabelLayers(layers, 2), np.array([0, 1]), None, 1, "a.png")


@pytest.mark.parametrize("after_resize", [False, True])
@pytest.mark.parametrize("affine", [RandomAffine(), RandomAffine(rotation=180)])
def test_a_crop_on_objects_shows_one_whole(after_resize: bool, affine: RandomAffine) -> None:
    sample = corner_cells()
    areas = sample.layers.areas()
    crop = RandomCrop("absolute", (96, 96), after_resize=after_resize, on_objects=1.0)
    policy = TrainPolicy(crop=crop, flip="both", rotate90=True, affine=affine)
    places = set()
    for seed in range(40):
        seen = policy(sample, np.random.default_rng(seed))
        assert len(seen.layers) == 1
        # Turned about its own middle, an object at the crop's edge may lose a corner.
        assert seen.layers.areas()[0] >= areas[seen.classes[0]] * (0.75 if affine.is_on else 1)
        places.add((int(seen.classes[0]), tuple(seen.layers.boxes()[0])))
    assert {kind for kind, _ in places} == {0, 1}
    assert len(places) > 20, "not always in the middle"


def test_a_crop_on_objects_is_zoomed_as_any_other() -> None:
    for zoom in (0.5, 2.0):
        crop = RandomCrop("absolute", (96, 96), after_resize=True, on_objects=1.0)
        policy = TrainPolicy(min_sizes=(600,), crop=crop, scales=(zoom, zoom))
        seen = policy(corner_cells(), np.random.default_rng(0))
        kind = int(seen.classes[0])
        assert seen.layers.areas()[0] == pytest.approx(corner_cells().layers.areas()[kind] * (1.5 * zoom) ** 2, rel=0.1)


def test_an_object_larger_than_the_crop_fills_it() -> None:
    labels = np.zeros((300, 300), np.int32)
    labels[50:250, 60:240] = 1
    sample = Sample(np.zeros((300, 300, 1), np.uint8), LabelLayers.from_label_image(labels), np.array([0]))
    policy = TrainPolicy(crop=RandomCrop("absolute", (64, 64), on_objects=1.0))
    for seed in range(20):
        assert policy(sample, np.random.default_rng(seed)).layers.areas().tolist() == [64 * 64]


def test_rare_classes_are_preferred_by_their_counts() -> None:
    for power, counts, weights in (
        (0.0, [100, 1, 0], ()),
        (1.0, [100, 1, 0], (0.01, 1.0, 0.0)),
        (0.5, [100, 4], (0.1, 0.5)),
    ):
        assert RandomCrop(balance_power=power).for_counts(counts).class_weights == weights
    layers = np.zeros((1, 60, 2000), np.int32)
    for index in range(1, 51):
        layers[0, 20:30, 40 * index - 20 : 40 * index - 10] = index
    classes = np.array([0] * 49 + [1])
    sample = Sample(np.zeros((60, 2000, 1), np.uint8), LabelLayers(layers, 50), classes)
    shares = []
    for power in (0.0, 1.0):
        crop = RandomCrop("absolute", (40, 30), on_objects=1.0, balance_power=power).for_counts([49, 1])
        seen = [TrainPolicy(crop=crop)(sample, np.random.default_rng(seed)).classes for seed in range(200)]
        shares.append(np.mean([1 in one for one in seen]))
    assert shares[0] < 0.08
    assert 0.4 < shares[1] < 0.6


def test_images_without_objects_and_objects_without_pixels_are_cropped_anywhere() -> None:
    policy = TrainPolicy(crop=RandomCrop("absolute", (20, 30), on_objects=1.0, class_weights=(0.0, 1.0)))
    image = np.zeros((50, 50, 1), np.uint8)
    lost = LabelLayers(np.zeros((1, 50, 50), np.int32), 1)
    for sample in (
        Sample(image, LabelLayers.empty(50, 50)),
        Sample(image),
        Sample(image, lost, np.array([1])),
        Sample(image, lost, np.array([0])),
    ):
        assert policy(sample, np.random.default_rng(0)).image.shape == (20, 30, 1)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.floats(0.1, 2.0), st.integers(0, 2**32 - 1))
def test_padded_crops_have_their_size_and_show_the_whole_of_smaller_images(
    height: int, width: int, zoom: float, seed: int
) -> None:
    layers = LabelLayers.from_masks(np.ones((1, height, width), bool))
    sample = Sample(np.full((height, width, 1), 9, np.uint8), layers, np.array([0]))
    crop = RandomCrop("absolute", (64, 48), after_resize=True, pad=True)
    seen = TrainPolicy(crop=crop, scales=(zoom, zoom), flip="both")(sample, np.random.default_rng(seed))
    assert seen.image.shape == (64, 48, 1)
    new_height, new_width = max(int(height * zoom + 0.5), 1), max(int(width * zoom + 0.5), 1)
    assert seen.layers.areas().tolist() == [min(new_height, 64) * min(new_width, 48)]


def test_large_scale_jitter_is_a_configuration() -> None:
    """Ghiasi et al. 2020: fitted to the square, resized by 0.1 to 2.0, cropped or padded to it."""
    words = ["INPUT.MIN_SIZE_TRAIN", "[128]", "INPUT.MAX_SIZE_TRAIN", "128", "INPUT.RANDOM_SCALE", "[0.1, 2.0]"]
    words += ["INPUT.RANDOM_SCALE_SAMPLING", "uniform", "INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute"]
    words += ["INPUT.CROP.SIZE", "[128, 128]", "INPUT.CROP.AFTER_RESIZE", "True", "INPUT.CROP.PAD", "True"]
    policy = TrainPolicy.from_config(load_config(None, words))
    factors = []
    for seed in range(300):
        geometry = policy.draw_geometry(200, 400, np.random.default_rng(seed))
        assert (geometry.height, geometry.width) == (128, 128)
        factors.append(400 / 128 / abs(geometry.matrix[0, 0]))
    assert 0.08 < min(factors) < 0.2
    assert 1.9 < max(factors) < 2.05
    assert np.mean(factors) == pytest.approx(1.05, abs=0.1), "drawn evenly"


@pytest.mark.parametrize(
    "words",
    [
        ["INPUT.CROP.ON_OBJECTS", "0.5"],
        ["INPUT.CROP.PAD", "True"],
        ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.PAD", "True"],
        ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.BALANCE_POWER", "1.0"],
        ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.ON_OBJECTS", "1.5"],
        ["INPUT.BORDER", "wrap"],
        ["INPUT.MIN_VISIBLE", "2"],
        ["INPUT.RANDOM_SCALE_SAMPLING", "normal"],
        ["INPUT.RANDOM_AFFINE.STRETCH", "0.5"],
        ["INPUT.RANDOM_AFFINE.ROTATION", "-3"],
        ["INPUT.RANDOM_ELASTIC.MAGNITUDE", "9", "INPUT.RANDOM_ELASTIC.SPACING", "64"],
        ["INPUT.RANDOM_ELASTIC.SPACING", "1"],
    ],
)
def test_impossible_combinations_are_refused_when_the_configuration_is_loaded(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=words[-2].replace(".", r"\.") if "SPACING" not in words[-2] else "SPACING"):
        TrainPolicy.from_config(load_config(None, words))


def test_the_keys_reach_the_policy() -> None:
    words = ["INPUT.RANDOM_AFFINE.ROTATION", "30", "INPUT.RANDOM_AFFINE.SHEAR", "5", "INPUT.RANDOM_AFFINE.STRETCH"]
    words += ["1.2", "INPUT.RANDOM_AFFINE.TRANSLATE", "0.1", "INPUT.RANDOM_AFFINE.PROBABILITY", "0.7"]
    words += ["INPUT.RANDOM_ELASTIC.MAGNITUDE", "3", "INPUT.RANDOM_ELASTIC.SPACING", "40", "INPUT.BORDER", "reflect"]
    words += ["INPUT.MIN_VISIBLE", "0.3", "INPUT.CROP.ENABLED", "True", "INPUT.CROP.ON_OBJECTS", "0.5"]
    words += ["INPUT.CROP.BALANCE_POWER", "0.5", "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "[64, 64]"]
    policy = TrainPolicy.from_config(load_config(None, words))
    assert policy.affine == RandomAffine(0.7, 30, 5, 1.2, 0.1)
    assert (policy.elastic.magnitude, policy.elastic.spacing) == (3, 40)
    assert (policy.border, policy.min_visible) == ("reflect", 0.3)
    assert policy.crop == RandomCrop("absolute", (64, 64), on_objects=0.5, balance_power=0.5)
