"""Geometry: exact where it can be, aligned between image, labels and ignored region, each resampled once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.data.augment.geometric import GeometricMap, map_sample
from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 20, 31
IMAGE = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 9, (2, HEIGHT, WIDTH)).astype(np.int32)

# Steps as (what the map does, what NumPy does to an array (H, W, C)).
STEPS = {
    "horizontal": (lambda geometry: geometry.flip_horizontal(), lambda array: array[:, ::-1]),
    "vertical": (lambda geometry: geometry.flip_vertical(), lambda array: array[::-1]),
    "turn": (lambda geometry: geometry.rotate90(1), lambda array: np.rot90(array)),
    "three turns": (lambda geometry: geometry.rotate90(3), lambda array: np.rot90(array, 3)),
    "crop": (
        lambda geometry: geometry.window(2, 1, geometry.height - 3, geometry.width - 2),
        lambda array: array[2:-1, 1:-1],
    ),
}


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=5))
def test_flips_turns_and_crops_in_any_order_are_exactly_numpys(names: list[str]) -> None:
    geometry, expected = GeometricMap.identity(HEIGHT, WIDTH), IMAGE
    expected_labels = LABELS.transpose(1, 2, 0)
    for name in names:
        change_map, change_array = STEPS[name]
        geometry, expected, expected_labels = (
            change_map(geometry),
            change_array(expected),
            change_array(expected_labels),
        )
    np.testing.assert_array_equal(geometry.apply_image(IMAGE), expected)
    np.testing.assert_array_equal(geometry.apply_labels(LABELS), expected_labels.transpose(2, 0, 1))
    assert (geometry.height, geometry.width) == expected.shape[:2]


@pytest.mark.parametrize(
    ("name", "back"), [("horizontal", "horizontal"), ("vertical", "vertical"), ("turn", "three turns")]
)
def test_flips_and_turns_undo_themselves(name: str, back: str) -> None:
    geometry = STEPS[back][0](STEPS[name][0](GeometricMap.identity(HEIGHT, WIDTH)))
    np.testing.assert_array_equal(geometry.apply_image(IMAGE), IMAGE)
    np.testing.assert_allclose(geometry.matrix, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_resize_to_the_same_size_changes_nothing(dtype: type) -> None:
    geometry = GeometricMap.identity(HEIGHT, WIDTH).resize(40, 62).resize(HEIGHT, WIDTH)
    np.testing.assert_array_equal(geometry.apply_image(IMAGE.astype(dtype)), IMAGE.astype(dtype))
    np.testing.assert_array_equal(geometry.apply_labels(LABELS), LABELS)


def test_crop_resize_flip_and_turn_equal_the_steps_one_by_one() -> None:
    one = GeometricMap.identity(HEIGHT, WIDTH).window(3, 5, 12, 16).resize(30, 24).flip_horizontal().rotate90(1)
    image = GeometricMap.identity(12, 16).resize(30, 24).apply_image(IMAGE[3:15, 5:21])
    expected = np.rot90(image[:, ::-1])
    # Only along the crop's edges does the filter see what a cut image no longer has.
    np.testing.assert_array_equal(one.apply_image(IMAGE)[3:-3, 3:-3], expected[3:-3, 3:-3])
    labels = GeometricMap.identity(12, 16).resize(30, 24).apply_labels(LABELS[:, 3:15, 5:21])
    np.testing.assert_array_equal(one.apply_labels(LABELS), np.rot90(labels[:, :, ::-1], axes=(1, 2)))


@pytest.mark.parametrize("size", [(40, 62), (29, 47), (14, 20), (10, 16)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_crop_of_the_resized_image_is_that_part_of_it(size: tuple[int, int], dtype: type) -> None:
    whole = GeometricMap.identity(HEIGHT, WIDTH).resize(*size)
    part = whole.window(3, 2, 6, 9)
    image = IMAGE.astype(dtype)
    tolerance = 1.01 if dtype == np.uint8 else 1e-3  # Pillow rounds to 8 bits between rows and columns
    np.testing.assert_allclose(part.apply_image(image), whole.apply_image(image)[3:9, 2:11], atol=tolerance)
    np.testing.assert_array_equal(part.apply_labels(LABELS), whole.apply_labels(LABELS)[:, 3:9, 2:11])


def test_a_shift_of_labels_and_image_stays_the_same_when_enlarged() -> None:
    """An image that is the picture of its own labels stays so: edges of both lie at the same place."""
    labels = np.zeros((1, 16, 24), np.int32)
    labels[0, 4:11, 6:19] = 1
    image = labels[0, :, :, None].astype(np.float32) * 255
    for size in ((48, 72), (40, 55), (16, 60), (13, 20), (9, 13), (5, 8)):
        geometry = GeometricMap.identity(16, 24).resize(*size)
        resized = geometry.apply_image(image)[:, :, 0] > 127.5
        differing = (resized != (geometry.apply_labels(labels)[0] == 1)).sum()
        assert differing <= max(size) // 4, f"{differing} pixels of {size} differ"


def test_resized_pixel_centres_lie_at_a_half() -> None:
    """Enlarged by 3, every label becomes a block of 3 x 3; image pixels at block centres keep their value."""
    geometry = GeometricMap.identity(HEIGHT, WIDTH).resize(3 * HEIGHT, 3 * WIDTH)
    np.testing.assert_array_equal(geometry.apply_labels(LABELS), LABELS.repeat(3, axis=1).repeat(3, axis=2))
    np.testing.assert_array_equal(geometry.apply_image(IMAGE)[1::3, 1::3], IMAGE)


def test_an_image_of_another_size_is_refused() -> None:
    geometry = GeometricMap.identity(HEIGHT, WIDTH)
    with pytest.raises(DataError, match="20 x 31"):
        geometry.apply_image(IMAGE[:-1])


def test_a_sample_is_mapped_as_a_whole_and_lost_objects_go_with_their_classes() -> None:
    layers = np.zeros((2, HEIGHT, WIDTH), np.int32)
    layers[0, 2:6, 2:6], layers[0, 10:14, 20:25], layers[1, 4:9, 4:9], layers[0, 16:19, 1:4] = 1, 2, 3, 4
    ignore = np.zeros((HEIGHT, WIDTH), bool)
    ignore[0:3, 0:10] = True
    sample = Sample(IMAGE, LabelLayers(layers, 4), np.array([7, 8, 9, 5]), ignore, "id", "name.png", {"group": "a"})
    mapped = map_sample(sample, GeometricMap.identity(HEIGHT, WIDTH).window(1, 3, 12, 15).flip_vertical())
    assert mapped.classes.tolist() == [7, 9]
    np.testing.assert_array_equal(mapped.layers.mask(0), (layers[0] == 1)[1:13, 3:18][::-1])
    np.testing.assert_array_equal(mapped.layers.mask(1), (layers[1] == 3)[1:13, 3:18][::-1])
    np.testing.assert_array_equal(mapped.ignore, ignore[1:13, 3:18][::-1])
    np.testing.assert_array_equal(mapped.image, IMAGE[1:13, 3:18][::-1])
    assert (mapped.image_id, mapped.file_name, mapped.metadata) == ("id", "name.png", {"group": "a"})
    assert len(sample.layers) == 4, "the sample itself stays as it is"


def test_a_sample_without_objects_or_without_annotations_is_mapped() -> None:
    geometry = GeometricMap.identity(HEIGHT, WIDTH).resize(7, 9)
    empty = map_sample(Sample(IMAGE, LabelLayers.empty(HEIGHT, WIDTH)), geometry)
    assert (len(empty.layers), empty.layers.height, empty.layers.width) == (0, 7, 9)
    assert map_sample(Sample(IMAGE), geometry).layers is None
