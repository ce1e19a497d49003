"""Views: how they are written, and what they do to intensities."""

from __future__ import annotations

import numpy as np
import pytest

from detseg.errors import ConfigError
from detseg.inference.views import SYMMETRIES, IntensityChange, detectron2_views, equalise, parse_views


def names(*words: str) -> list[str]:
    return [view.name for view in parse_views(words)]


def test_views_are_read_and_sets_expanded_without_repetition():
    assert names("flips") == ["none", "h", "v", "hv"]
    assert len(names("eight")) == 8
    assert names("flips", "h", "none") == ["none", "h", "v", "hv"]
    assert names("h+clahe", "clahe=2+h") == ["h+clahe=2"]
    assert names("flips+scale=1.5") == ["none+scale=1.5", "h+scale=1.5", "v+scale=1.5", "hv+scale=1.5"]
    (view,) = parse_views(["rot90+brightness=-0.1+contrast=1.2+short=600"])
    assert view.symmetry == SYMMETRIES["rot90"]
    assert view.intensity_change == IntensityChange(brightness=-0.1, contrast=1.2)
    assert view.short == 600


def test_detectron2s_views_are_its_sizes_each_with_its_mirror_image():
    views = detectron2_views([400, 500], 4000, flip=True)
    assert [(view.short, view.longest, view.symmetry.flip_x) for view in views] == [
        (400, 4000, False),
        (400, 4000, True),
        (500, 4000, False),
        (500, 4000, True),
    ]
    assert len(detectron2_views([400, 500], 4000, flip=False)) == 2


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("flop", "antitranspose"),
        ("", "flips"),
        ("scale=0", "0.1 to 10"),
        ("scale=much", "'much'"),
        ("scale", "scale=a number"),
        ("short=3.5", "whole number"),
        ("h+v", "twice"),
        ("clahe+clahe=3", "twice"),
        ("h=2", "no number"),
        ("brightness=nan", "nan"),
    ],
)
def test_words_that_are_no_views_are_refused(word, named):
    with pytest.raises(ConfigError, match=named):
        parse_views([word])


def test_at_least_one_view_is_needed():
    with pytest.raises(ConfigError, match="at least one"):
        parse_views([])


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_equalising_raises_local_contrast_and_keeps_type_and_range(dtype, channels):
    random = np.random.default_rng(0)
    high = 255.0 if dtype != "uint16" else 65535.0
    image = (random.random((64, 80, channels)) * 0.1 * high).astype(dtype)
    equal = equalise(image, 3.0, (0.0, high))
    assert equal.dtype == image.dtype
    assert equal.shape == image.shape
    assert equal.min() >= 0
    assert equal.max() <= high
    assert equal.std() > 1.5 * image.std()
    assert np.array_equal(equalise(image, 3.0, (1.0, 1.0)), image), "an image of one value stays"


def test_brightness_and_contrast_change_the_image():
    image = np.full((8, 8, 1), 100, np.uint8)
    assert (IntensityChange(brightness=0.1)(image, (0.0, 255.0)) == 126).all()
    assert IntensityChange()(image, (0.0, 255.0)) is image
