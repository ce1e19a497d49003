"""What is shown of images of any kind."""

from __future__ import annotations

import numpy as np
import pytest

from detseg.report.drawing import MAX_SIDE, display_scale, resize_display, to_display


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [None, 1, 2, 3, 5])
def test_every_image_becomes_rgb(dtype, channels):
    shape = (20, 30) if channels is None else (20, 30, channels)
    image = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    shown = to_display(image)
    assert shown.shape == (20, 30, 3)
    assert shown.dtype == np.uint8
    assert shown.max() > 150, "the image is too dark to see"


def test_ordinary_8_bit_images_stay_as_they_are():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(to_display(image), np.repeat(image[:, :, None], 3, axis=2))


def test_dim_images_are_stretched():
    image = np.arange(256, dtype=np.uint16).reshape(16, 16) + 1000
    shown = to_display(image)
    assert shown.min() == 0
    assert shown.max() == 255
    assert (np.diff(shown[:, :, 0].ravel().astype(int)) >= 0).all(), "the order of intensities changed"
    dim = np.full((8, 8, 3), 3, dtype=np.uint8)
    dim[2:4] = 9
    assert to_display(dim).max() == 255


def test_hot_pixels_do_not_blacken_the_rest():
    image = np.random.default_rng(0).normal(100, 10, (100, 100)).astype(np.float32)
    image[5, 5] = 1e6
    assert 100 < to_display(image).mean() < 155


@pytest.mark.parametrize("value", [0, 7, np.nan, np.inf])
def test_flat_and_broken_images(value):
    image = np.full((5, 5), value, dtype=np.float32)
    assert to_display(image).tolist() == np.zeros((5, 5, 3)).tolist()


def test_scales():
    assert display_scale(256, 256) == 3
    assert display_scale(1024, 1388) == 1
    assert display_scale(40, 30) == 8
    assert display_scale(520, 704) == 1
    assert display_scale(520, 704, thickness=4) == 2
    assert display_scale(520, 704, thickness=30) == 1
    assert display_scale(8192, 4096) == MAX_SIDE / 8192


@pytest.mark.parametrize("scale", [0.25, 1, 3])
def test_resizing_keeps_the_place_of_things(scale):
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    image[20:, :20] = 255
    resized = resize_display(image, scale)
    side = int(40 * scale)
    assert resized.shape == (side, side, 3)
    assert resized[int(side * 0.75), int(side * 0.25), 0] == 255
    assert resized[int(side * 0.25), int(side * 0.75), 0] == 0
