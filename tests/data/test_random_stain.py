"""INPUT.RANDOM_STAIN: mixtures of optical densities keep the ground, and change colours as the law of Beer says."""

from __future__ import annotations

import numpy as np
import pytest

from detseg.config import load_config
from detseg.data.augment.intensities import mix_stains
from detseg.data.augment.policy import TrainPolicy
from detseg.errors import ConfigError
from detseg.structures.sample import Sample

SWAP = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1.0]])


@pytest.mark.parametrize(("dtype", "high"), [(np.uint8, 255.0), (np.uint16, 65535.0), (np.float32, 1.0)])
def test_a_known_mixture(dtype: type, high: float) -> None:
    image = (np.array([[[1, 0.5, 0.25], [1, 1, 1]]]) * high).astype(dtype)
    swapped = mix_stains(image, SWAP, (0.0, high), on_dark=False)
    assert swapped.dtype == dtype
    np.testing.assert_allclose(swapped / high, [[[0.5, 1, 0.25], [1, 1, 1]]], atol=0.005)
    doubled = mix_stains(image, 2 * np.eye(3), (0.0, high), on_dark=False)
    np.testing.assert_allclose(doubled / high, [[[1, 0.25, 0.0625], [1, 1, 1]]], atol=0.005)


def test_a_dark_ground_stays_dark_and_none_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 250, (20, 30, 3), dtype=np.uint8)
    image[:5] = 0
    same = mix_stains(image, np.eye(3), (0.0, 255.0), on_dark=True)
    assert np.abs(same.astype(int) - image).max() <= 1
    mixed = mix_stains(image, np.eye(3) + rng.normal(0, 0.3, (3, 3)), (0.0, 255.0), on_dark=True)
    assert not mixed[:5].any()
    assert (mixed != image).any()
    flat = np.full((4, 4, 3), 7.0, np.float32)
    np.testing.assert_array_equal(mix_stains(flat, SWAP, (7.0, 7.0), on_dark=False), flat)


def test_gray_images_become_coloured_and_the_generator_decides_alone() -> None:
    image = np.random.default_rng(1).integers(0, 256, (16, 16, 1), dtype=np.uint8)
    policy = TrainPolicy(stain=0.3)
    first, again, other = (
        policy.photometry(Sample(image), np.random.default_rng(seed), (0.0, 255.0)).image for seed in (0, 0, 1)
    )
    assert first.shape == (16, 16, 3)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert np.ptp(first.astype(int), axis=2).max() > 5
    assert TrainPolicy().photometry(Sample(image), np.random.default_rng(0), (0.0, 255.0)).image.shape == (16, 16, 1)


@pytest.mark.parametrize(
    "words", [["INPUT.GRAYSCALE", "True"], ["MODEL.PIXEL_MEAN", "[0.0]", "MODEL.PIXEL_STD", "[1.0]"]]
)
def test_models_without_colours_are_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"INPUT\.RANDOM_STAIN.*changes colours"):
        TrainPolicy.from_config(load_config(None, ["INPUT.RANDOM_STAIN", "0.2", *words]))
