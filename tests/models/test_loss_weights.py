"""Labels that are less sure count less: in the loss that is asked for, and in no other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from models_for_tests import RELATIVES, disks, small_model

from detseg.models.rcnn.targets import Targets
from detseg.structures import LabelLayers
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


@pytest.mark.parametrize("relative", ["", "cascade", "C4"])
def test_background_far_from_all_objects_counts_less(relative: str) -> None:
    whole, lighter, none = (
        losses_of(dataclasses.replace(SAMPLE, background_weight=weight), relative) for weight in (1.0, 0.5, 0.0)
    )
    for name, loss in whole.items():
        assert lighter[name] == pytest.approx((loss + none[name]) / 2, rel=1e-5), name
        if any(part in name for part in CLASS_LOSSES):
            assert 0 < none[name] < loss, name  # objects and the background beside them still count
        else:
            assert none[name] == pytest.approx(loss, rel=1e-5), name


def test_what_is_background_and_near_an_object_keeps_its_weight() -> None:
    mask = np.zeros((1, 64, 64), dtype=np.int32)
    mask[0, 10:30, 10:30] = 1
    sample = Sample(np.zeros((64, 64, 3), np.uint8), LabelLayers(mask, 1), np.zeros(1, np.int64), weight=2.0)
    targets = Targets.from_sample(dataclasses.replace(sample, background_weight=0.25), 1, torch.device("cpu"))
    boxes = torch.tensor([[10.0, 10, 30, 30], [22.0, 10, 42, 30], [28.0, 10, 48, 30], [50.0, 50, 60, 60]])
    is_object = torch.tensor([True, False, False, False])  # IoU with the object: 1, 0.25, 0.05, 0
    factors = targets.class_weights(torch.zeros(4, dtype=torch.int64), is_object, boxes)
    assert factors.tolist() == [2.0, 2.0, 0.5, 0.5]
