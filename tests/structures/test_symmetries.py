"""The eight symmetries: images, boxes, run-lengths and probabilities turn together, and back exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions, soft_mask_window, soft_mask_windows
from detseg.structures.symmetries import SYMMETRIES

REFERENCE = {
    "none": lambda image: image,
    "h": np.fliplr,
    "v": np.flipud,
    "hv": lambda image: np.rot90(image, 2),
    "transpose": lambda image: image.swapaxes(0, 1),
    "rot90": np.rot90,
    "rot270": lambda image: np.rot90(image, 3),
    "antitranspose": lambda image: np.rot90(image, 2).swapaxes(0, 1),
}
NAMES = sorted(SYMMETRIES)


@pytest.mark.parametrize("name", NAMES)
def test_images_turn_as_numpy_turns_them(name):
    image = np.random.default_rng(0).integers(0, 256, (5, 8, 3))
    symmetry = SYMMETRIES[name]
    turned = symmetry.array(image)
    assert np.array_equal(turned, REFERENCE[name](image))
    assert turned.shape[:2] == symmetry.size(5, 8)
    assert np.array_equal(symmetry.inverse.array(turned), image)


def test_they_are_eight_different_ones():
    image = np.arange(6).reshape(2, 3)
    assert len({str(SYMMETRIES[name].array(image)) for name in NAMES}) == 8


@pytest.mark.parametrize("name", NAMES)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_predictions_turn_with_the_image_and_come_back(name, height, width, data):
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    masks = random.random((3, height, width)) < random.random()
    rles = [rle_codec.encode_mask(mask) for mask in masks]
    corners = np.sort(random.random((3, 2, 2)) * [width, height], axis=1)
    # sides on, near and between the borders of pixels
    corners = np.where(random.random(corners.shape) < 0.5, np.rint(corners), corners)
    boxes = np.clip(corners.reshape(3, 4), 0, [width, height, width, height]).astype(np.float32)
    probability = random.integers(0, 256, (height, width)).astype(np.uint8)
    windows = [soft_mask_window(box, height, width) for box in boxes]
    soft = [probability[y0:y1, x0:x1] for x0, y0, x1, y1 in windows]
    before = Predictions(7, "a", height, width, boxes, [0.9, 0.5, 0.1], [0, 1, 2], rles, soft, {"k": 1}, (0.5, 0.5))
    symmetry = SYMMETRIES[name]
    after = symmetry.predictions(before)
    assert (after.height, after.width) == symmetry.size(height, width)
    assert after.rles == [rle_codec.encode_mask(symmetry.array(mask)) for mask in masks]
    turned = symmetry.array(probability)
    for box, crop in zip(after.boxes, after.soft_masks, strict=True):
        x0, y0, x1, y1 = soft_mask_window(box, after.height, after.width)
        assert crop.shape == (y1 - y0, x1 - x0)
        inside = crop > 0
        assert np.array_equal(crop[inside], turned[y0:y1, x0:x1][inside])
    back = symmetry.inverse.predictions(after)
    assert back.rles == before.rles
    assert np.abs(back.boxes - boxes).max() < 1e-5
    assert (back.image_id, back.file_name, back.provenance, back.pixel_size) == (7, "a", {"k": 1}, (0.5, 0.5))
    assert back.scores.tolist() == before.scores.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_boxes_of_whole_and_half_pixels_come_back_exactly(name):
    boxes = np.array([[0, 0, 7, 5], [1.5, 2, 3, 4.25], [6, 0, 7, 1]], np.float32)
    symmetry = SYMMETRIES[name]
    turned = symmetry.boxes(boxes, 5, 7)
    for box, before in zip(turned.astype(int)[::2], boxes.astype(int)[::2], strict=True):
        mask = np.zeros((5, 7), bool)
        mask[before[1] : before[3], before[0] : before[2]] = True
        expected = np.zeros(symmetry.size(5, 7), bool)
        expected[box[1] : box[3], box[0] : box[2]] = True
        assert np.array_equal(symmetry.array(mask), expected)
    assert np.array_equal(symmetry.inverse.boxes(turned, *symmetry.size(5, 7)), boxes)


def test_no_predictions_turn_too():
    for symmetry in SYMMETRIES.values():
        turned = symmetry.predictions(Predictions.empty(1, "a", 4, 6))
        assert (turned.height, turned.width) == symmetry.size(4, 6)
        assert turned.rles == []


@given(st.lists(st.tuples(*[st.floats(-3, 12)] * 4), max_size=5))
def test_windows_of_many_boxes_are_those_of_each(boxes):
    expected = [soft_mask_window(np.array(box), 7, 9) for box in boxes]
    assert soft_mask_windows(np.array(boxes).reshape(-1, 4), 7, 9).tolist() == [list(window) for window in expected]


@pytest.mark.parametrize("name", NAMES)
def test_vectors_point_to_where_their_target_went(name: str) -> None:
    size, start, end = np.array([5, 8]), np.array([1, 2]), np.array([4, 6])
    symmetry = SYMMETRIES[name]

    def place(pixel: np.ndarray) -> np.ndarray:
        image = np.zeros(size, bool)
        image[tuple(pixel)] = True
        return np.argwhere(symmetry.array(image))[0]

    assert tuple(symmetry.vectors(*(end - start))) == tuple(place(end) - place(start))
