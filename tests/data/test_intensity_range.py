"""Intensities that a model does not know are recognised; those that are merely other exposures are not."""

import logging

import numpy as np
import pytest

from detseg.data.intensity_range import IntensityRange, levels_of
from detseg.data.preprocess import ImagePreprocess
from detseg.inference.image_model import ImageModel, InputImage


def cells(top: float, dtype: str, background: float = 0.05, channels: int = 1) -> np.ndarray:
    """(64, 64, channels): a few bright squares that cover 2 % of a noisy ground."""
    rng = np.random.default_rng(0)
    image = rng.uniform(0.5, 1.0, (64, 64, channels)) * background * top
    image[8:14, 8:14] = image[40:46, 30:36] = top
    return image.astype(dtype)


KNOWN = IntensityRange.of_images([levels_of(cells(top, "uint8")) for top in (60, 150, 250)], 3)


@pytest.mark.parametrize(("top", "dtype", "where"), [(60000, "uint16", "above"), (4000, "uint16", "above")])
def test_sixteen_bits_are_far_above_eight(top, dtype, where):
    assert where in KNOWN.misfit(levels_of(cells(top, dtype)))


def test_zero_to_one_is_far_below_eight_bits():
    found = KNOWN.misfit(levels_of(cells(1.0, "float32")))
    assert "to 1, far below those of the images that the model was trained with" in found


@pytest.mark.parametrize("top", [30, 60, 255])
def test_another_exposure_is_no_misfit(top):
    assert KNOWN.misfit(levels_of(cells(top, "uint8"))) is None
    assert KNOWN.misfit(levels_of(cells(top, "uint8", channels=3))) is None


def test_one_channel_that_is_far_outside_is_enough():
    image = cells(200, "float32", channels=3)
    image[:, :, 1] *= 100
    assert "far above" in KNOWN.misfit(levels_of(image))


def test_it_is_kept_as_plain_values_and_nonsense_in_a_checkpoint_is_none():
    assert IntensityRange.from_plain(KNOWN.to_plain()) == KNOWN
    for broken in (None, [], {}, {"low": [1.0], "dark": ["a"], "bright": [2.0]}, {"low": [], "dark": [], "bright": []}):
        assert IntensityRange.from_plain(broken) is None


@pytest.mark.parametrize(
    ("mean", "std"),
    [([103.53, 116.28, 123.675], [1.0, 1.0, 1.0]), ([128.0] * 3, [64.0] * 3), ([123.675, 116.28, 103.53], [58.0] * 3)],
)
def test_eight_bits_suit_the_usual_normalizations_and_others_do_not(mean, std):
    suited = IntensityRange.of_normalization(mean, std)
    for top in (20, 255):
        assert suited.misfit(levels_of(cells(top, "uint8"))) is None
    assert "far above those of MODEL.PIXEL_MEAN" in suited.misfit(levels_of(cells(40000, "uint16")))
    assert "far below" in suited.misfit(levels_of(cells(1.0, "float32")))


def test_a_detector_warns_a_few_times_and_not_where_images_are_scaled_by_percentiles(caplog):
    image = InputImage(cells(60000, "uint16"), {}, "deep.tif")
    with caplog.at_level(logging.WARNING):
        ImageModel(None, ImagePreprocess(scaling="percentile"), intensities=KNOWN).check_intensities(image)
        ImageModel(None, ImagePreprocess()).check_intensities(image)
        assert caplog.messages == []
        detector = ImageModel(None, ImagePreprocess(), intensities=KNOWN)
        for _ in range(10):
            detector.check_intensities(image)
    assert len(caplog.messages) == 3
    assert "deep.tif" in caplog.text
    assert "INPUT.SCALING percentile" in caplog.text
