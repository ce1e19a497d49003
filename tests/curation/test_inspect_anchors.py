"""Anchors that inspect_data suggests: the clusters, and how well anchors on their grids meet boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detseg.curation.inspection.anchors import (
    STRIDES,
    Anchors,
    best_iou,
    choose_anchors,
    choose_ratios,
    cluster_shapes,
    recall,
    shape_iou,
)
from detseg.structures.boxes import box_iou

USUAL = Anchors(((8,), (16,), (32,), (64,), (128,)), (0.5, 1.0, 2.0))


def random_boxes(rng: np.random.Generator, count: int, height: int, width: int, longest: float) -> np.ndarray:
    lengths = np.exp(rng.uniform(np.log(2), np.log(longest), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * np.maximum(np.array([width, height]) - lengths, 0)
    return np.concatenate([corner, np.minimum(corner + lengths, [width, height])], axis=1)


def test_clusters_of_known_shapes_are_found() -> None:
    rng = np.random.default_rng(0)
    known = np.array([[10.0, 10.0], [20.0, 44.0], [90.0, 30.0]])
    shapes = np.concatenate([shape * rng.uniform(0.95, 1.05, (200, 2)) for shape in known])
    means, fit = cluster_shapes(shapes, 3)
    np.testing.assert_allclose(means, known[np.argsort(known.prod(axis=1))], rtol=0.02)
    assert fit > 0.93


def test_clusters_of_few_or_no_shapes() -> None:
    means, fit = cluster_shapes(np.array([[4.0, 8.0], [4.0, 8.0]]), 5)
    assert means.tolist() == [[4, 8]]
    assert fit == 1
    means, fit = cluster_shapes(np.zeros((0, 2)), 3)
    assert means.shape == (0, 2)
    assert np.isnan(fit)


def test_shape_overlap_is_that_of_centred_boxes() -> None:
    assert shape_iou(np.array([[10.0, 20.0]]), np.array([[20.0, 10.0], [10.0, 20.0]])).tolist() == [[1 / 3, 1.0]]


def test_ratios_are_those_of_the_shapes_whatever_their_size() -> None:
    size = np.repeat(np.array([8.0, 30.0, 90.0]), 60)[:, None]
    ratio = np.tile(np.array([0.25, 1.0, 4.0]), 60)[:, None]
    shapes = np.concatenate([size / np.sqrt(ratio), size * np.sqrt(ratio)], axis=1)
    assert choose_ratios(shapes) == pytest.approx((0.25, 1, 4), rel=0.02)

    slivers = np.concatenate([shapes, np.tile([[1.0, 60.0]], (5, 1))])
    assert choose_ratios(slivers) == pytest.approx((0.25, 1, 4), rel=0.02)


@given(st.integers(0, 2**32 - 1))
def test_best_overlap_is_that_of_all_anchors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(30, 150)), int(rng.integers(30, 150))
    boxes = random_boxes(rng, 12, height, width, 120)
    anchors = Anchors(((9, 14), (17, 25), (40, 50), (66, 80), (100, 130)), (0.6, 1.0, 1.8))
    every = []
    for stride, wide, high in anchors.shapes():
        y, x = (np.arange(-(-side // stride)) * stride for side in (height, width))
        x, y = (grid.ravel() for grid in np.meshgrid(x, y))
        every.append(np.stack([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], axis=1))
    expected = box_iou(boxes, np.concatenate(every)).max(axis=1)
    found = best_iou(boxes, np.tile([height, width], (12, 1)), anchors)
    np.testing.assert_allclose(found, expected, atol=1e-5)  # box_iou is float32


def test_anchor_shapes_are_detectron2s() -> None:
    stride, width, height = Anchors(((32,),) * 5, (2.0,)).shapes()[0]
    assert (stride, height / width, width * height) == (4, pytest.approx(2), pytest.approx(1024))


def test_chosen_anchors_meet_more_objects() -> None:
    rng = np.random.default_rng(5)
    lengths = 22 * rng.lognormal(0, 0.25, (600, 1)) * np.array([1.0, 1.7]) ** rng.choice([-0.5, 0.5], (600, 1))
    corner = rng.uniform(0, 400, (600, 2))
    boxes, sizes = np.concatenate([corner, corner + lengths], axis=1), np.full((600, 2), 512)
    anchors = choose_anchors(boxes, sizes)
    before, after = best_iou(boxes, sizes, USUAL), best_iou(boxes, sizes, anchors)
    assert recall(after, 0.7) > recall(before, 0.7) + 0.2
    assert all(min(level) >= 2 * stride for level, stride in zip(anchors.sizes, STRIDES, strict=True))
    # Detectron2's RPN wants as many anchors on every level.
    assert len({len(level) for level in anchors.sizes}) == 1


def test_one_box_and_no_box() -> None:
    box, size = np.array([[3.0, 3.0, 13.0, 13.0]]), np.array([[64, 64]])
    assert best_iou(box, size, choose_anchors(box, size))[0] > 0.6
    assert best_iou(np.zeros((0, 4)), np.zeros((0, 2)), USUAL).shape == (0,)
    assert np.isnan(recall(np.zeros(0), 0.5))
