"""INPUT.PIXEL_SIZE: the size of an image at the network, one for training and prediction."""

from __future__ import annotations

import numpy as np
import pytest

from detseg.data.augment.policy import TrainPolicy
from detseg.data.augment.random_geometry import RandomCrop
from detseg.data.preprocess import network_size, size_at_pixel_size
from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample, parse_pixel_size, parse_pixel_size_text, pixel_size_field


@pytest.mark.parametrize(
    ("pixel_size", "target", "expected"),
    [
        (0.5, 0.5, (60, 90)),
        (0.25, 0.5, (30, 45)),
        (1.0, 0.5, (120, 180)),
        ([0.25, 0.5], 0.5, (30, 90)),  # y, x
        (0.001, 1.0, (1, 1)),
        (0.25, 0.0, (60, 90)),
        (None, 0.0, (60, 90)),
    ],
)
def test_the_size_at_a_pixel_size(pixel_size: object, target: float, expected: tuple[int, int]) -> None:
    facts = {} if pixel_size is None else {"pixel_size": pixel_size}
    assert size_at_pixel_size(60, 90, facts, target, source="a.tif") == expected
    options = {"pixel_size": target, "longest": 10_000, "source": "a.tif"}
    assert network_size(60, 90, facts, short=0, **options) == expected
    # The shorter edge comes afterwards and decides the size; what is left is the shape.
    short = network_size(60, 90, facts, short=120, **options)
    assert min(short) == 120
    assert short[0] / short[1] == pytest.approx(expected[0] / expected[1])


def test_an_unknown_size_an_absurd_one_and_a_broken_one_are_refused() -> None:
    with pytest.raises(DataError, match=r"a\.tif: its pixel size is unknown.*--pixel-size"):
        size_at_pixel_size(60, 90, {}, 0.5, source="a.tif")
    with pytest.raises(DataError, match="would enlarge it to 60000000 x 90000000"):
        size_at_pixel_size(60, 90, {"pixel_size": 500_000.0}, 0.5, source="a.tif")
    for value in (0, -1, "0.5", True, [0.5], [0.5, 0.5, 0.5], [0.5, 0], float("nan"), {}):
        with pytest.raises(DataError, match="expected micrometres"):
            size_at_pixel_size(60, 90, {"pixel_size": value}, 0.5, source="a.tif")


def test_sizes_as_texts_and_fields() -> None:
    assert parse_pixel_size_text("0.5", "x") == (0.5, 0.5)
    assert parse_pixel_size_text(" 0.5, 0.25 ", "x") == (0.5, 0.25)
    for text in ("", "half", "0.5 µm", "1 2 3", "0", "inf"):
        with pytest.raises(DataError, match="x: the pixel size"):
            parse_pixel_size_text(text, "x")
    for size in ((0.5, 0.5), (0.25, 0.5)):
        assert parse_pixel_size(pixel_size_field(size), "x") == size
    assert pixel_size_field((0.1 + 0.2, 0.3)) == 0.3


def sample_of(pixel_size: object) -> Sample:
    """Return a sample of 40 x 60 pixels with one object of 20 x 20, on which the image is bright."""
    labels = np.zeros((40, 60), np.int32)
    labels[10:30, 20:40] = 1
    image = (labels[:, :, None] * 200).astype(np.uint8)
    metadata = {} if pixel_size is None else {"pixel_size": pixel_size}
    return Sample(
        image=image,
        layers=LabelLayers.from_label_image(labels),
        classes=np.zeros(1, np.int64),
        ignore=None,
        image_id=1,
        file_name="a.tif",
        metadata=metadata,
    )


def test_training_sees_the_size_that_prediction_sees_and_masks_go_along() -> None:
    for pixel_size in (0.25, 1.0, [1.0, 0.25]):
        sample = sample_of(pixel_size)
        seen = TrainPolicy(pixel_size=0.5).geometry(sample, np.random.default_rng(0))
        expected = network_size(40, 60, sample.metadata, pixel_size=0.5, short=0, longest=1333, source="a.tif")
        assert (seen.height, seen.width) == expected
        bright = seen.image[:, :, 0] > 100
        assert (bright == seen.layers.mask(0)).mean() > 0.99
    with pytest.raises(DataError, match="pixel size is unknown"):
        TrainPolicy(pixel_size=0.5).geometry(sample_of(None), np.random.default_rng(0))


def test_crops_are_cut_in_pixels_of_that_size() -> None:
    policy = TrainPolicy(pixel_size=0.5, crop=RandomCrop(size=(16, 16)))
    # The whole image is 80 x 120 at this size: the crop shows 8 x 8 of its pixels.
    geometry = policy.draw_geometry(40, 60, np.random.default_rng(3), size=(80, 120))
    assert (geometry.height, geometry.width) == (16, 16)
    np.testing.assert_allclose(np.diag(geometry.matrix), [0.5, 0.5, 1.0])
    about_objects = TrainPolicy(pixel_size=0.5, crop=RandomCrop(size=(16, 16), on_objects=1.0))
    for seed in range(5):
        seen = about_objects.geometry(sample_of(1.0), np.random.default_rng(seed))
        assert len(seen.layers) == 1
