"""What an image goes through before the model, with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from detseg.config import load_config
from detseg.data.preprocess import ImagePreprocess, percentiles_of
from detseg.errors import ConfigError, DataError

RNG = np.random.default_rng(1)
GRAY16 = RNG.integers(100, 4000, (30, 40, 1), dtype=np.uint16)
RGB = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)


def test_without_options_gray_is_repeated_and_rgb_stays() -> None:
    preprocess = ImagePreprocess()
    np.testing.assert_array_equal(preprocess(RGB), RGB)
    assert preprocess(GRAY16).dtype == np.uint16
    np.testing.assert_array_equal(preprocess(GRAY16), np.repeat(GRAY16, 3, axis=2))


@pytest.mark.parametrize("image", [RGB, GRAY16, GRAY16.astype(np.float32) / 3])
def test_percentiles_are_numpys(image: np.ndarray) -> None:
    asked = (0.0, 0.5, 37.0, 50.0, 99.5, 100.0)
    expected = np.percentile(image, asked, method="inverted_cdf")
    np.testing.assert_array_equal(np.float32(percentiles_of(image, asked)), np.float32(expected))


def test_percentile_scaling_brings_the_percentiles_to_0_and_255() -> None:
    scaled = ImagePreprocess(scaling="percentile", percentiles=(1.0, 99.0), num_channels=1)(GRAY16)
    low, high = np.percentile(GRAY16, (1, 99), method="inverted_cdf")
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, np.clip((GRAY16 - float(low)) / (high - float(low)) * 255, 0, 255), atol=1e-3)


def test_percentile_scaling_keeps_the_colours_of_rgb_and_scales_other_channels_each() -> None:
    scaled = ImagePreprocess(scaling="percentile", percentiles=(0.0, 100.0))(RGB // 2)
    half = (RGB // 2).astype(np.float32)
    np.testing.assert_allclose(scaled, (half - half.min()) / (half.max() - half.min()) * 255, atol=1e-3)
    two = np.dstack([GRAY16, GRAY16 // 9])
    scaled = ImagePreprocess(scaling="percentile", percentiles=(0.0, 100.0), num_channels=2)(two)
    assert scaled.min(axis=(0, 1)).tolist() == [0, 0]
    assert scaled.max(axis=(0, 1)).tolist() == [255, 255]


def test_fixed_scaling_and_a_flat_image() -> None:
    scaled = ImagePreprocess(scaling="fixed", scaling_range=(0.0, 4080.0), num_channels=1)(GRAY16)
    np.testing.assert_allclose(scaled, GRAY16 / 16, atol=1e-3)
    flat = ImagePreprocess(scaling="percentile")(np.full((5, 5, 1), 77, np.uint8))
    assert np.isfinite(flat).all()
    assert flat.max() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("scaling", ["none", "percentile"])
def test_bright_background_is_turned_and_dark_background_stays(dtype: type, scaling: str) -> None:
    dark = np.full((20, 20, 1), 20, dtype)
    dark[5:9, 5:9] = 200
    preprocess = ImagePreprocess(scaling=scaling, invert="auto", percentiles=(0.0, 100.0), num_channels=1)
    plain = ImagePreprocess(scaling=scaling, percentiles=(0.0, 100.0), num_channels=1)
    np.testing.assert_array_equal(preprocess(dark), plain(dark))
    bright = (220 - dark.astype(np.float64)).astype(dtype)
    turned = preprocess(bright)
    assert turned.dtype == plain(bright).dtype
    assert turned[7, 7, 0] > turned[0, 0, 0], "the objects are the bright ones after turning"
    if scaling == "percentile":
        np.testing.assert_allclose(turned, plain(dark), atol=1e-3)


def test_grayscale_is_luma_and_channels_are_chosen_in_order() -> None:
    gray = ImagePreprocess(grayscale=True, num_channels=1)(RGB)
    np.testing.assert_array_equal(gray[:, :, 0], np.rint(RGB @ np.array([0.299, 0.587, 0.114])))
    np.testing.assert_array_equal(ImagePreprocess(channels=(2, 0), num_channels=2)(RGB), RGB[:, :, [2, 0]])


def test_channels_that_do_not_fit_are_refused_with_the_remedy() -> None:
    with pytest.raises(DataError, match=r"plate7.*2 channels.*the model has 3.*INPUT\.CHANNELS"):
        ImagePreprocess()(RGB[:, :, :2], source="plate7.tif")
    with pytest.raises(DataError, match=r"channel 3, but the image has 3"):
        ImagePreprocess(channels=(0, 3))(RGB)
    with pytest.raises(DataError, match=r"INPUT\.GRAYSCALE"):
        ImagePreprocess(num_channels=1)(RGB)
    for word in ("SCALING=percentiles", "SCALING_RANGE=[2, 1]", "INVERT=always", "CHANNELS=['']", "CHANNELS=[0, 1]"):
        with pytest.raises(ConfigError, match=word.partition("=")[0]):
            ImagePreprocess.from_config(load_config(None, [f"INPUT.{word}"]))


def test_channels_are_found_by_name_whatever_their_order_in_the_file() -> None:
    preprocess = ImagePreprocess(channels=("DAPI", "gfp"), num_channels=2)
    for names in (["GFP", "DAPI", "BF"], ["DAPI", "BF", "GFP"]):
        expected = RGB[:, :, [names.index("DAPI"), names.index("GFP")]]
        np.testing.assert_array_equal(preprocess(RGB, facts={"channel_names": names}), expected)
    # Capitals matter where names differ by them alone.
    chosen = ImagePreprocess(channels=("b",), num_channels=1)(RGB, facts={"channel_names": ["B", "b", "c"]})
    np.testing.assert_array_equal(chosen[:, :, 0], RGB[:, :, 1])


@pytest.mark.parametrize(
    ("channels", "facts", "message"),
    [
        (("Actin",), {"channel_names": ["GFP", "DAPI", "BF"]}, r"a\.tif: .*'Actin'.*GFP, DAPI, BF"),
        (("GFP",), {}, r"no names for its 3 channels"),
        (("B",), {"channel_names": ["b", "ß", "B "]}, None),
        (("x",), {"channel_names": ["X", "x ", "X"]}, "'x'"),
        ((), {"unnamed_pages": 3}, r"what its 3 pages are.*INPUT\.CHANNELS.*--axes ZYX"),
    ],
)
def test_channels_that_are_not_named_are_refused(channels: tuple, facts: dict, message: str | None) -> None:
    preprocess = ImagePreprocess(channels=channels)
    if message is None:
        assert preprocess(RGB, facts=facts).shape[2] == 3
        return
    with pytest.raises(DataError, match=message):
        preprocess(RGB, facts=facts, source="a.tif")


def test_from_config_reads_the_keys() -> None:
    cfg = load_config(None, ["INPUT.SCALING", "percentile", "INPUT.INVERT", "auto", "INPUT.CHANNELS", "[1]"])
    assert ImagePreprocess.from_config(cfg) == ImagePreprocess(channels=(1,), scaling="percentile", invert="auto")


def test_prepare_then_expand_is_the_call() -> None:
    preprocess = ImagePreprocess(scaling="percentile", invert="auto", grayscale=True)
    np.testing.assert_array_equal(preprocess.expand(preprocess.prepare(RGB)), preprocess(RGB))
