"""Resampling: what Pillow does for images, exact areas for labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detseg.data.augment.resampling import resize_image, resize_labels

RNG = np.random.default_rng(0)


def whole(labels: np.ndarray) -> tuple[float, float, float, float]:
    return (0.0, 0.0, float(labels.shape[1]), float(labels.shape[2]))


@pytest.mark.parametrize("size", [(30, 40), (11, 17), (90, 33)])
def test_images_of_8_bits_are_pillows_to_the_bit(size: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_image(image, *size), expected)
    np.testing.assert_array_equal(resize_image(image[:, :, :1], *size)[:, :, 0], expected[:, :, 0])


@pytest.mark.parametrize("size", [(30, 40), (11, 17), (90, 33)])
def test_16_bits_and_floats_agree_with_8_bits(size: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (40, 60, 2), dtype=np.uint8)
    expected = resize_image(image, *size).astype(float)
    for dtype, factor in ((np.uint16, 200), (np.float32, 1)):
        resized = resize_image(image.astype(dtype) * dtype(factor), *size)
        assert resized.dtype == dtype
        np.testing.assert_allclose(resized / float(factor), expected, atol=1.01)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 200
    shrunk = resize_image(stripes, 16, 16)
    assert abs(shrunk[:, 2:-2].astype(int) - 100).max() <= 2, (
        "every output pixel is the mean of bright and dark stripes"
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 40), st.integers(5, 40), st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_labels_of_any_resize_occur_in_the_input_and_keep_their_dtype(
    height: int, width: int, new_height: int, new_width: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, 5, (2, height, width)).astype(np.int32)
    resized = resize_labels(labels, whole(labels), new_height, new_width)
    assert resized.shape == (2, new_height, new_width)
    assert resized.dtype == np.int32
    for layer in range(2):
        assert set(np.unique(resized[layer])) <= set(np.unique(labels[layer]))


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
def test_whole_factors_take_the_majority_of_every_block(factor: int) -> None:
    labels = RNG.integers(0, 4, (1, 12 * factor, 10 * factor)).astype(np.int32)
    resized = resize_labels(labels, whole(labels), 12, 10)
    blocks = labels[0].reshape(12, factor, 10, factor).transpose(0, 2, 1, 3).reshape(12, 10, -1)
    counts = np.stack([(blocks == value).sum(axis=2) for value in range(4)], axis=2)
    expected = 3 - counts[:, :, ::-1].argmax(axis=2)  # the highest label of several as frequent
    np.testing.assert_array_equal(resized[0], expected)


def test_areas_survive_shrinking() -> None:
    yy, xx = np.mgrid[:200, :260]
    labels = np.zeros((1, 200, 260), np.int32)
    centres = [(25 + 50 * row, 22 + 43 * column) for row in range(4) for column in range(6)]
    for index, (y, x) in enumerate(centres, start=1):
        labels[0][(yy - y) ** 2 / 1.5 + (xx - x) ** 2 < 16**2] = index
    before = np.bincount(labels.ravel())[1:]
    for scale in (0.65, 0.5, 0.37, 0.21):
        height, width = round(200 * scale), round(260 * scale)
        after = np.bincount(resize_labels(labels, whole(labels), height, width).ravel(), minlength=25)[1:]
        np.testing.assert_allclose(after / (height / 200 * width / 260), before, rtol=0.08)


def test_a_line_of_one_pixel_gives_way_to_the_background_and_a_bool_region_stays_bool() -> None:
    labels = np.zeros((1, 40, 40), np.int32)
    labels[0, :, 18] = 3
    assert not resize_labels(labels, whole(labels), 10, 10).any()
    ignore = np.zeros((1, 40, 40), bool)
    ignore[0, :, :20] = True
    resized = resize_labels(ignore, whole(ignore), 10, 10)
    assert resized.dtype == bool
    np.testing.assert_array_equal(resized[0], np.arange(10) < np.full((10, 1), 5))
