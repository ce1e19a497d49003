"""The native models reproduce what Detectron2 itself computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from detseg.models.parity import Case, check_case, compute

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
# How many numbers a case has; fewer of those with one feature map or without gradients.
LEAST_ROWS = {"cascade_mask_rcnn_X_50_4x4d_FPN_gn_deform": 28, "mask_rcnn_R_50_C4": 26, "mask_rcnn_R_50_DC5": 27}
CPU = torch.device("cpu")


def test_all_cases_are_there() -> None:
    assert CASES == [
        "cascade_mask_rcnn_X_50_4x4d_FPN_gn_deform",
        "mask_rcnn_R_101_FPN_agnostic",
        "mask_rcnn_R_18_FPN_bn_sgd",
        "mask_rcnn_R_50_C4",
        "mask_rcnn_R_50_DC5",
        "mask_rcnn_R_50_FPN",
        "mask_rcnn_R_50_FPN_gn_giou_empty",
        "mask_rcnn_R_50_FPN_nothing",
        "mask_rcnn_R_50_FPN_saturated",
    ]


@pytest.mark.parametrize("name", CASES)
def test_numbers_agree_with_detectron2(name: str) -> None:
    case = Case.load(GOLDEN / f"{name}.npz")
    rows = check_case(case, compute(case, CPU), CPU)
    assert len(rows) >= LEAST_ROWS.get(name, 37), (
        "features, proposals, detections, masks, losses and gradients must all be compared"
    )
    assert not [row for row in rows if not row.passed]


@pytest.mark.parametrize("name", CASES)
def test_boxes_of_label_layers_are_the_boxes_of_the_masks(name: str) -> None:
    case = Case.load(GOLDEN / f"{name}.npz")
    for index, sample in enumerate(case.samples()):
        np.testing.assert_array_equal(sample.layers.boxes(), case.arrays[f"in{index}/boxes"])


def test_prefer_speed_stays_close() -> None:
    """Other memory layouts round differently; a folded normalisation must still be the same function."""
    from detseg.models.parity import build_case_model

    case = Case.load(GOLDEN / "mask_rcnn_R_50_FPN.npz")
    model = build_case_model(case, CPU).prefer_speed().eval()
    images = [sample.image for sample in case.samples()]
    for index, answer in enumerate(model.predict(images, output_sizes=case.output_sizes())):
        np.testing.assert_allclose(answer.boxes, case.arrays[f"out{index}/boxes"], atol=1e-3)
        np.testing.assert_allclose(answer.scores, case.arrays[f"out{index}/scores"], atol=1e-4)


def test_a_wrong_number_is_told() -> None:
    case = Case.load(GOLDEN / "mask_rcnn_R_50_FPN_nothing.npz")
    computed = compute(case, CPU)
    computed["features/p2"] = computed["features/p2"] * np.float32(1.0001)
    del computed["loss/loss_mask"]
    computed["out0/proposal_boxes"] = computed["out0/proposal_boxes"][:-1]
    failed = {row.name for row in check_case(case, computed, CPU) if not row.passed}
    assert failed == {"features/p2", "loss/loss_mask", "out0/proposal_boxes"}


def test_not_a_number_does_not_pass() -> None:
    case = Case.load(GOLDEN / "mask_rcnn_R_50_FPN_nothing.npz")
    computed = {name: array.copy() for name, array in case.arrays.items()}
    computed["loss/loss_cls"] = np.array(np.nan, dtype=np.float32)
    assert [row.name for row in check_case(case, computed, CPU) if not row.passed] == ["loss/loss_cls"]
