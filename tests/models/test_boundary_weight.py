"""MODEL.ROI_MASK_HEAD.BOUNDARY_WEIGHT: cells at an object's boundary count more in the mask loss."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from models_for_tests import disks, small_model

from detseg.errors import ConfigError
from detseg.models.rcnn.mask_head import boundary_factors, mask_loss
from detseg.structures.sample import Sample

KEY = "MODEL__ROI_MASK_HEAD__BOUNDARY_WEIGHT"


def test_cells_on_both_sides_of_the_boundary_count_more() -> None:
    truth = torch.zeros((3, 5, 5), dtype=torch.bool)
    truth[0, :, 3:] = True
    truth[1] = True  # an object that is cut off by its box has no boundary there
    truth[2, 2, 2] = True
    factors = boundary_factors(truth, 2.0)
    assert factors[0].tolist() == [[1, 1, 3, 3, 1]] * 5
    assert factors[1].unique().tolist() == [1]
    assert factors[2].tolist() == [[1] * 5, [1, 3, 3, 3, 1], [1, 3, 3, 3, 1], [1, 3, 3, 3, 1], [1] * 5]


def test_the_loss_is_a_weighted_mean() -> None:
    truth = torch.zeros((1, 1, 4), dtype=torch.bool)
    truth[..., 3] = True
    logits = torch.tensor([[[-1.0, -1.0, 1.0, 1.0]]])
    wrong, right = np.log1p(np.e), np.log1p(np.exp(-1))
    loss = mask_loss(logits, truth, boundary_factors(truth, 1.0))
    assert loss.item() == pytest.approx((2 * right + 2 * wrong + 2 * right) / 6, rel=1e-6)


def losses(weight: float, sample: Sample) -> dict[str, float]:
    model = small_model(**{KEY: weight}).train()
    torch.manual_seed(1)
    return {name: float(loss.detach()) for name, loss in model([sample]).items()}


def test_only_the_mask_loss_changes_and_ignored_cells_stay_out() -> None:
    sample = disks(6, (64, 64))
    plain, weighted = losses(0.0, sample), losses(2.0, sample)
    assert weighted.pop("loss_mask") != plain.pop("loss_mask")
    assert weighted == plain
    everything = dataclasses.replace(sample, ignore=np.ones((64, 64), dtype=bool))
    assert losses(2.0, everything)["loss_mask"] == 0


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match="BOUNDARY_WEIGHT"):
        small_model(**{KEY: -1.0})
