"""Labels that are less sure count less: in the loss that is asked for, and in no other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from models_for_tests import RELATIVES, disks, small_model

from detseg.structures.sample import BOX_LOSS, CLASS_LOSS, MASK_LOSS, Sample

SAMPLE = disks(6, (64, 64))
CLASS_LOSSES, BOX_LOSSES, MASK_LOSSES = ("cls",), ("loc", "box_reg"), ("mask",)


def losses_of(sample: Sample, relative: str = "") -> dict[str, float]:
    model = small_model(
        **{
            **{key.replace(".", "__"): value for key, value in RELATIVES.get(relative, {}).items()},
            "MODEL__RPN__BATCH_SIZE_PER_IMAGE": 100_000,
            "MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 100_000,
        }
    )
    torch.manual_seed(0)
    return {name: float(loss.detach()) for name, loss in model.train()([sample]).items()}


def weighted(value: float, *columns: int) -> Sample:
    weights = np.ones((len(SAMPLE.classes), 3), dtype=np.float32)
    weights[:, columns] = value
    return dataclasses.replace(SAMPLE, object_weights=weights)


@pytest.mark.parametrize("relative", ["", "cascade", "C4"])
def test_weights_of_one_change_nothing(relative: str) -> None:
    certain = np.full((64, 64), 255, dtype=np.uint8)
    same = losses_of(dataclasses.replace(weighted(1.0), certainty=certain), relative)
    assert same == pytest.approx(losses_of(SAMPLE, relative), rel=1e-5)


@pytest.mark.parametrize("relative", ["", "cascade", "C4"])
def test_half_the_weight_of_an_image_is_half_of_every_loss(relative: str) -> None:
    whole, half = losses_of(SAMPLE, relative), losses_of(dataclasses.replace(SAMPLE, weight=0.5), relative)
    assert half == pytest.approx({name: loss / 2 for name, loss in whole.items()}, rel=1e-5)


def test_an_image_without_objects_can_have_a_weight() -> None:
    losses = losses_of(dataclasses.replace(disks(0, (64, 64)), weight=0.5))
    assert losses["loss_rpn_loc"] == losses["loss_mask"] == 0
    assert 0 < losses["loss_rpn_cls"] < losses_of(disks(0, (64, 64)))["loss_rpn_cls"]


@pytest.mark.parametrize(("column", "names"), [(BOX_LOSS, BOX_LOSSES), (MASK_LOSS, MASK_LOSSES)])
def test_a_gated_loss_is_zero_and_the_others_stay(column: int, names: tuple[str, ...]) -> None:
    plain, gated = losses_of(SAMPLE), losses_of(weighted(0.0, column))
    for name, loss in gated.items():
        expected = 0.0 if any(part in name for part in names) else plain[name]
        assert loss == pytest.approx(expected, rel=1e-5), name


def test_the_class_weight_of_objects_leaves_background_alone() -> None:
    plain, gated = losses_of(SAMPLE), losses_of(weighted(0.0, CLASS_LOSS))
    for name in ("loss_rpn_cls", "loss_cls"):
        assert 0 < gated[name] < plain[name]
    assert gated["loss_mask"] == plain["loss_mask"]


def test_unsure_pixels_count_less_in_the_mask_loss_only() -> None:
    certainty = np.full((64, 64), 51, dtype=np.uint8)  # a fifth
    plain, unsure = losses_of(SAMPLE), losses_of(dataclasses.replace(SAMPLE, certainty=certainty))
    assert unsure.pop("loss_mask") == pytest.approx(plain.pop("loss_mask") / 5, rel=1e-4)
    assert unsure == pytest.approx(plain, rel=1e-5)
