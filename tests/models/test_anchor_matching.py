"""Chunked and pruned matching against the whole IoU matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detseg.models.rcnn import matching
from detseg.models.rcnn.anchors import AnchorGenerator
from detseg.models.rcnn.matching import Matcher, pair_iou

RPN_MATCHER = Matcher((0.3, 0.7), (0, -1, 1), allow_low_quality_matches=True)


def match_all_pairs(matcher: Matcher, objects: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Written after the description of Detectron2's Matcher: the whole matrix, label by label."""
    count = len(candidates)
    if len(objects) == 0:
        return torch.zeros(count, dtype=torch.int64), torch.full((count,), matcher.labels[0], dtype=torch.int8)
    matrix = pair_iou(objects[:, None], candidates[None])
    best, matches = matrix.max(dim=0)
    labels = torch.full((count,), -99, dtype=torch.int8)
    bounds = [-float("inf"), *matcher.thresholds, float("inf")]
    for label, low, high in zip(matcher.labels, bounds[:-1], bounds[1:], strict=True):
        labels[(best >= low) & (best < high)] = label
    if matcher.allow_low_quality_matches:
        labels[(matrix == matrix.max(dim=1, keepdim=True).values).any(dim=0)] = 1
    return matches, labels


coordinate = st.integers(0, 400).map(lambda value: value / 4)
boxes = st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), max_size=12).map(
    lambda rows: torch.tensor([[min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1] for a, b, c, d in rows]).reshape(
        -1, 4
    )
)


@settings(max_examples=150, deadline=None)
@given(objects=boxes, offset=st.sampled_from([0.0, 0.5]), chunk=st.sampled_from([1, 50, 2000, 1_000_000]))
def test_anchors_as_with_all_pairs(objects: Tensor, offset: float, chunk: int) -> None:
    generator = AnchorGenerator(
        sizes=[[8], [24], [70]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[4, 8, 16], offset=offset
    )
    grid = generator([(25, 30), (13, 15), (7, 8)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "PAIRS_PER_CHUNK", chunk)
        matches, labels = RPN_MATCHER.match_anchors(objects, grid)
    expected_matches, expected_labels = match_all_pairs(RPN_MATCHER, objects, grid.boxes)
    assert torch.equal(labels, expected_labels)
    assert torch.equal(matches, expected_matches)


@settings(max_examples=100, deadline=None)
@given(objects=boxes, candidates=boxes, chunk=st.sampled_from([1, 7, 1_000_000]))
def test_boxes_as_with_all_pairs(objects: Tensor, candidates: Tensor, chunk: int) -> None:
    matcher = Matcher((0.5,), (0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "PAIRS_PER_CHUNK", chunk)
        matches, labels = matcher.match_boxes(objects, candidates)
    expected_matches, expected_labels = match_all_pairs(matcher, objects, candidates)
    assert torch.equal(labels, expected_labels)
    assert torch.equal(matches, expected_matches)


def test_an_object_far_from_all_anchors() -> None:
    """It is equally far from every anchor, and Detectron2 then takes them all."""
    grid = AnchorGenerator(sizes=[[4]], aspect_ratios=[[1.0]], strides=[16])([(3, 3)])
    objects = torch.tensor([[7.0, 7.0, 9.0, 9.0]])
    assert torch.equal(
        RPN_MATCHER.match_anchors(objects, grid)[1], match_all_pairs(RPN_MATCHER, objects, grid.boxes)[1]
    )


def test_dense_objects_are_few_pairs() -> None:
    """What the memory bound rests on: pairs grow with objects x anchors that touch, not with objects x anchors."""
    generator = AnchorGenerator(sizes=[[16], [32], [64]], aspect_ratios=[[1.0]], strides=[4, 8, 16])
    grid = generator([(128, 128), (64, 64), (32, 32)])
    corner = torch.rand(500, 2) * 490
    objects = torch.cat((corner, corner + 20), dim=1)
    windows = matching.Windows.around(objects, grid.levels)
    touching = int((pair_iou(objects[:, None], grid.boxes[None]) > 0).sum())
    assert touching <= int(windows.counts.sum()) < 2 * touching
    assert all(int(windows.counts[a:b].sum()) <= 1500 for a, b in windows.chunks(1500))


@pytest.mark.parametrize(
    ("thresholds", "labels"), [((0.5,), (0,)), ((0.7, 0.3), (0, -1, 1)), ((0.0,), (0, 1)), ((0.5,), (0, 2))]
)
def test_impossible_intervals_are_refused(thresholds: tuple[float, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="IoU"):
        Matcher(thresholds, labels)


def test_thresholds_belong_to_the_interval_above() -> None:
    labels = Matcher((0.25, 0.5), (0, -1, 1)).label(torch.tensor([0.0, 0.2499, 0.25, 0.4999, 0.5, 1.0]))
    assert labels.tolist() == [0, 0, -1, -1, 1, 1]
