"""Anchors, box coding and box losses: known answers."""

from __future__ import annotations

import math

import pytest
import torch

from detseg.models.rcnn.anchors import AnchorGenerator, make_cell_anchors
from detseg.models.rcnn.boxes import LARGEST_LOG_SCALE, BoxCoder, clip_boxes


def test_cell_anchors_are_not_rounded() -> None:
    anchors = make_cell_anchors([32], [0.5, 1.0, 2.0])
    side = 32 * math.sqrt(2)
    expected = [
        [-side / 2, -side / 4, side / 2, side / 4],
        [-16, -16, 16, 16],
        [-side / 4, -side / 2, side / 4, side / 2],
    ]
    torch.testing.assert_close(anchors, torch.tensor(expected))


def test_anchors_run_by_row_column_and_cell() -> None:
    generator = AnchorGenerator(sizes=[[4], [8]], aspect_ratios=[[1.0, 4.0]], strides=[2, 4], offset=0.5)
    grid = generator([(2, 3), (1, 1)])
    assert [level.start for level in grid.levels] == [0, 12]
    assert grid.boxes.shape == (14, 4)
    centers = (grid.boxes[:, :2] + grid.boxes[:, 2:]) / 2
    expected = [[x + 1, y + 1] for y in (0, 2) for x in (0, 2, 4) for _ in range(2)] + [[2, 2], [2, 2]]
    torch.testing.assert_close(centers, torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(grid.boxes[12], torch.tensor([-2.0, -2.0, 6.0, 6.0]))


def test_anchors_are_not_in_the_state_dict() -> None:
    assert not AnchorGenerator(sizes=[[4]], aspect_ratios=[[1.0]], strides=[2]).state_dict()


def test_anchors_for_another_number_of_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="2 levels, but the RPN has 3"):
        AnchorGenerator(sizes=[[4], [8]], aspect_ratios=[[1.0]], strides=[4, 8, 16])


def test_encode_known_answer() -> None:
    source, target = torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[5.0, 0.0, 25.0, 40.0]])
    deltas = BoxCoder((10, 10, 5, 5)).encode(source, target)
    torch.testing.assert_close(deltas, torch.tensor([[10.0, 5.0, 5 * math.log(2), 5 * math.log(2)]]))


def test_decode_inverts_encode() -> None:
    torch.manual_seed(0)
    corner = torch.rand(50, 2) * 100
    sources, targets = (torch.cat((corner, corner + 1 + torch.rand(50, 2) * 30), dim=1) for _ in range(2))
    coder = BoxCoder((10, 10, 5, 5))
    torch.testing.assert_close(coder.decode(coder.encode(sources, targets), sources), targets, atol=1e-4, rtol=1e-5)


def test_decode_bounds_the_growth() -> None:
    box = BoxCoder((1, 1, 1, 1)).decode(torch.tensor([[0.0, 0.0, 99.0, 99.0]]), torch.tensor([[0.0, 0.0, 16.0, 16.0]]))
    torch.testing.assert_close(box, torch.tensor([[-492.0, -492.0, 508.0, 508.0]]), atol=1e-2, rtol=0)
    assert pytest.approx(math.exp(LARGEST_LOG_SCALE)) == 62.5


def test_decode_several_classes_and_nothing() -> None:
    coder = BoxCoder((1, 1, 1, 1))
    assert coder.decode(torch.zeros(5, 12), torch.rand(5, 4)).shape == (5, 12)
    assert coder.decode(torch.zeros(0, 12), torch.zeros(0, 4)).shape == (0, 12)


def test_clip_is_half_open() -> None:
    boxes = clip_boxes(torch.tensor([[-1.0, -2.0, 30.0, 40.0]]), (20, 25))
    assert boxes.tolist() == [[0, 0, 25, 20]]


def test_giou_known_answers() -> None:
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]])
    targets = torch.tensor([[0.0, 0.0, 2.0, 2.0], [3.0, 0.0, 4.0, 1.0]])
    # Apart: IoU 0, the hull of 4 is half empty.
    loss = BoxCoder((1, 1, 1, 1), loss="giou").summed_loss(torch.zeros(2, 4), boxes, targets)
    assert loss.item() == pytest.approx(0.0 + 1.5)


def test_smooth_l1_with_and_without_beta() -> None:
    box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    deltas = torch.tensor([[0.5, -3.0, 0.0, 0.0]])  # from a box to itself
    for beta, expected in ((0.0, 3.5), (1.0, 0.125 + 2.5)):
        loss = BoxCoder((1, 1, 1, 1), beta=beta).summed_loss(deltas, box, box)
        assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou"])
def test_no_box_has_no_loss_but_gradients(loss_type: str) -> None:
    deltas = torch.zeros((0, 4), requires_grad=True)
    none = torch.zeros(0, 4)
    loss = BoxCoder((1, 1, 1, 1), loss=loss_type).summed_loss(deltas, none, none)
    loss.backward()
    assert loss.item() == 0
    assert deltas.grad is not None
