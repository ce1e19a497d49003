"""What inspect_data measures: objects, contacts, focus. Known answers on drawn images, and plain references."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detseg.curation.inspection.gather import choose_images
from detseg.curation.inspection.measure import (
    BOUNDARY_WIDTHS,
    NEAR,
    class_fidelity,
    find_contacts,
    largest_box_iou,
    measure_intensities,
    measure_objects,
)
from detseg.formats.measurements import ellipse_of
from detseg.structures import rle as rle_codec
from detseg.structures.boxes import box_iou
from detseg.structures.label_layers import LabelLayers


def drawn() -> np.ndarray:
    """1 and 2 share a side, 2 and 3 a corner, 3 and 4 have two pixels between them, 5 is three pixels away from 4."""
    labels = np.zeros((24, 40), dtype=np.int32)
    labels[2:8, 2:8] = 1
    labels[2:8, 8:12] = 2
    labels[8:12, 12:16] = 3
    labels[8:12, 18:22] = 4
    labels[8:12, 25:30] = 5
    labels[20:24, 36:40] = 6
    return labels


def test_contacts_of_a_drawn_image() -> None:
    layers = LabelLayers.from_label_image(drawn())
    pairs, distances, shared = find_contacts(layers)
    assert dict(zip(map(tuple, pairs.tolist()), distances.tolist(), strict=True)) == {(0, 1): 1, (1, 2): 1, (2, 3): 3}
    table = measure_objects(layers.to_rles(), np.zeros(6, dtype=np.int64), np.arange(6), 0, 24, 40)
    assert table.touching.tolist() == [1, 2, 1, 0, 0, 0]
    assert table.near.tolist() == [0, 0, 1, 1, 0, 0]
    # Of the 20 outline pixels of the 6 x 6 square the 6 of one side have a neighbour across it.
    assert shared[0] == pytest.approx(6 / 20)
    assert shared[5] == 0


def test_contacts_of_overlapping_and_nested_masks() -> None:
    masks = np.zeros((3, 30, 30), dtype=bool)
    masks[0, 2:20, 2:20] = True
    masks[1, 8:12, 8:12] = True
    masks[2, 18:26, 18:26] = True
    pairs, distances, shared = find_contacts(LabelLayers.from_masks(masks))
    assert pairs.tolist() == [[0, 1], [0, 2]]
    assert distances.tolist() == [0, 0]
    assert shared[1] == 1


def test_contacts_without_an_object() -> None:
    pairs, distances, shared = find_contacts(LabelLayers.empty(5, 7))
    assert (pairs.shape, distances.shape, shared.shape) == ((0, 2), (0,), (0,))
    assert len(measure_objects([], np.zeros(0, np.int64), np.zeros(0, np.int64), 0, 5, 7)) == 0


@given(st.integers(0, 2**32 - 1))
def test_contacts_are_those_of_distances_between_all_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = np.zeros((4, 14, 17), dtype=bool)
    for mask in masks:
        y, x = rng.integers(0, 12), rng.integers(0, 15)
        mask[y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = True
    pairs, distances, _ = find_contacts(LabelLayers.from_masks(masks))
    expected = {}
    for a in range(4):
        for b in range(a + 1, 4):
            gap = np.abs(np.argwhere(masks[a])[:, None] - np.argwhere(masks[b])[None]).max(axis=2).min()
            if gap <= NEAR:
                expected[a, b] = int(gap)
    assert dict(zip(map(tuple, pairs.tolist()), distances.tolist(), strict=True)) == expected


def test_shapes_of_objects() -> None:
    masks = np.zeros((3, 40, 40), dtype=bool)
    masks[0, 0:10, 0:10] = True
    masks[0, 4:6, 4:6] = False  # a hole of 4 pixels
    masks[1, 20:30, 20:24] = True
    masks[1, 35:37, 30:32] = True  # a piece of 4 pixels
    masks[2, 39, 10:20] = True
    table = measure_objects(
        [rle_codec.encode_mask(mask) for mask in masks], np.array([0, 1, 1]), np.arange(3), 7, 40, 40
    )
    assert table.holes.tolist() == [1, 0, 0]
    assert table.hole_pixels.tolist() == [4, 0, 0]
    assert table.pieces.tolist() == [1, 2, 1]
    assert table.lesser_pixels.tolist() == [0, 4, 0]
    assert table.area.tolist() == [96, 44, 10]
    assert table.at_border.tolist() == [True, False, True]
    assert table.image.tolist() == [7, 7, 7]


def elongation(mask: np.ndarray) -> float:
    major, minor, _ = ellipse_of(*np.nonzero(mask))
    return major / minor


def test_elongation_does_not_depend_on_direction() -> None:
    y, x = np.mgrid[-100:101, -100:101].astype(np.float64)
    for degrees in (0, 35, 90, 135):
        along = x * np.cos(np.radians(degrees)) + y * np.sin(np.radians(degrees))
        across = y * np.cos(np.radians(degrees)) - x * np.sin(np.radians(degrees))
        assert elongation((along / 60) ** 2 + (across / 20) ** 2 <= 1) == pytest.approx(3, rel=0.01)
    assert elongation(np.ones((1, 1), dtype=bool)) == pytest.approx(1)
    assert elongation(np.ones((1, 12), dtype=bool)) == pytest.approx(12)


@given(st.integers(0, 2**32 - 1), st.integers(0, 25))
def test_largest_box_overlap_is_that_of_all_pairs(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 30, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 20, (count, 2))], axis=1).astype(np.float32)
    classes = rng.integers(0, 2, count)
    all_pairs = box_iou(boxes, boxes) * (classes[:, None] == classes[None])
    np.fill_diagonal(all_pairs, 0)
    expected = all_pairs.max(axis=1) if count else np.zeros(0)
    np.testing.assert_allclose(largest_box_iou(boxes, classes), expected, atol=1e-6)


def texture(dtype: type = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(1)
    image = cv2.GaussianBlur(rng.uniform(0, 1, (96, 96)).astype(np.float32), (0, 0), 1.0)
    image = (image - image.min()) / (image.max() - image.min())
    return (image * np.iinfo(dtype).max * 0.9).astype(dtype)[:, :, None]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_focus_falls_with_blur_and_not_with_exposure(dtype: type) -> None:
    sharp, nothing = texture(dtype), LabelLayers.empty(96, 96)
    values = [
        measure_intensities(cv2.GaussianBlur(sharp, (0, 0), sigma)[:, :, None] if sigma else sharp, nothing).focus
        for sigma in (0, 1, 2, 4)
    ]
    assert all(first > 1.5 * second for first, second in itertools.pairwise(values))
    darker = (sharp // 2 + 10).astype(dtype)
    assert measure_intensities(darker, nothing).focus == pytest.approx(values[0], rel=0.05)


def test_intensities_of_a_drawn_picture() -> None:
    labels = drawn()
    image = np.where(labels > 0, 200, 50).astype(np.uint8)[:, :, None]
    found = measure_intensities(np.repeat(image, 3, axis=2), LabelLayers.from_label_image(labels))
    assert (found.objects, found.background, found.noise) == (200, 50, 0)
    assert found.contrast == pytest.approx(1)
    assert not found.is_bright
    assert not found.is_coloured
    purple = np.zeros((24, 40, 3), dtype=np.uint8) + np.array([180, 60, 200], dtype=np.uint8)
    purple[:4] = 255
    found = measure_intensities(purple, LabelLayers.empty(24, 40))
    assert found.is_coloured
    assert found.purple > 0
    assert np.isnan(found.objects)


def test_channels_and_floats_are_measured() -> None:
    image = np.random.default_rng(0).normal(5, 1, (20, 30, 4)).astype(np.float32)
    found = measure_intensities(image, LabelLayers.empty(20, 30))
    assert (found.dtype, found.channels) == ("float32", 4)
    assert found.mean == pytest.approx(5, abs=0.1)
    flat = measure_intensities(np.full((8, 8, 1), 7, dtype=np.uint16), LabelLayers.empty(8, 8))
    assert flat.focus == 0
    assert flat.position == 0


def test_sample_of_pictures_is_spread_over_groups_and_leaves_missing_ones_out() -> None:
    groups = ["a"] * 90 + ["b"] * 6 + ["c"] * 4
    chosen = choose_images(groups, missing=[0, 99], most=15)
    counts = {name: sum(groups[index] == name for index in chosen) for name in "abc"}
    assert len(chosen) == 15
    assert counts["c"] == 3
    assert counts["b"] == 6
    assert counts["a"] == 6
    assert not {0, 99} & set(chosen.tolist())
    assert len(choose_images(groups, [], 0)) == 100
    assert choose_images([], [], 5).tolist() == []


def test_objects_come_back_from_three_classes_of_pixels() -> None:
    labels = np.zeros((40, 60), dtype=np.int32)
    labels[5:25, 5:20], labels[5:25, 20:38], labels[30:36, 2:50] = 1, 2, 3
    assert [class_fidelity(LabelLayers.from_label_image(labels), width) for width in BOUNDARY_WIDTHS] == [1.0] * 4
    # two objects, one in the other: the smaller comes back, the larger with a hole of a quarter
    masks = np.zeros((2, 20, 20), dtype=bool)
    masks[0, 2:18, 2:18] = masks[1, 6:14, 6:14] = True
    expected = 2 * (10 + 5) / 10 / 4  # IoU 1 passes all ten thresholds, 0.75 the five below it
    assert class_fidelity(LabelLayers.from_masks(masks), 2) == pytest.approx(expected)
