"""Ignored regions are neither object nor background in any loss."""

from __future__ import annotations

import numpy as np
import torch
from models_for_tests import disks, small_model

from detseg.models.rcnn.targets import Targets
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

CPU = torch.device("cpu")


def losses_of(sample: Sample, seed: int = 0) -> dict[str, float]:
    model = small_model(MODEL__RPN__BATCH_SIZE_PER_IMAGE=100_000, MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=100_000)
    torch.manual_seed(seed)
    return {name: float(loss.detach()) for name, loss in model.train()([sample]).items()}


def with_ignore(sample: Sample, ignore: np.ndarray | None) -> Sample:
    return Sample(sample.image, sample.layers, sample.classes, ignore=ignore)


def test_everything_ignored_is_no_loss() -> None:
    sample = disks(6, (64, 64))
    losses = losses_of(with_ignore(sample, np.ones((64, 64), dtype=bool)))
    assert losses == dict.fromkeys(losses, 0.0)


def test_nothing_ignored_is_as_without() -> None:
    sample = disks(6, (64, 64))
    assert losses_of(with_ignore(sample, np.zeros((64, 64), dtype=bool))) == losses_of(with_ignore(sample, None))


def test_background_there_has_no_loss() -> None:
    """An anchor in the ignored half is not background; one outside it still is."""
    targets = Targets.from_sample(with_ignore(disks(0, (40, 40)), half(40)), 2, CPU)
    boxes = torch.tensor([[2.0, 5, 12, 30], [22, 5, 38, 30], [11, 0, 31, 20], [-30, 0, 6, 9], [30, 30, 90, 90]])
    labels = torch.zeros(5, dtype=torch.int8)
    got = targets.leave_out_ignored(labels, torch.zeros(5, dtype=torch.int64), boxes, background=0)
    assert got.tolist() == [-1, 0, 0, -1, 0]


def half(side: int) -> np.ndarray:
    ignore = np.zeros((side, side), dtype=bool)
    ignore[:, : side // 2] = True
    return ignore


def test_the_box_of_a_thin_ignored_object_is_no_background() -> None:
    """A rod from corner to corner fills a tenth of its box; what finds it must not learn that nothing is there."""
    ignore = np.eye(40, dtype=bool)
    ignore[:10], ignore[30:] = False, False
    targets = Targets.from_sample(with_ignore(disks(0, (40, 40)), ignore | np.roll(ignore, 1, axis=1)), 2, CPU)
    boxes = torch.tensor([[10.0, 10, 31, 30], [8, 9, 33, 34], [0, 0, 40, 40], [12, 12, 16, 16], [0, 10, 9, 30]])
    got = targets.leave_out_ignored(torch.zeros(5, dtype=torch.int8), torch.zeros(5, dtype=torch.int64), boxes, 0)
    # A box of the whole image (IoU 0.26), a part of the rod and what is beside it are background as they were.
    assert got.tolist() == [-1, -1, 0, 0, 0]


def test_an_object_in_it_is_neither() -> None:
    layers = np.zeros((1, 40, 40), dtype=np.int32)
    layers[0, 5:15, 5:15] = 1
    layers[0, 5:15, 25:35] = 2
    sample = Sample(np.zeros((40, 40, 3), np.uint8), LabelLayers(layers, 2), np.array([0, 1]), ignore=half(40))
    targets = Targets.from_sample(sample, 2, CPU)
    assert targets.ignored.tolist() == [True, False]
    labels = torch.tensor([1, 1], dtype=torch.int8)
    got = targets.leave_out_ignored(labels, torch.tensor([0, 1]), targets.boxes, background=0)
    assert got.tolist() == [-1, 1]


def test_an_object_next_to_it_stays_and_its_mask_is_judged_outside_alone() -> None:
    sample = disks(0, (64, 64))
    layers = np.zeros((1, 64, 64), dtype=np.int32)
    layers[0, 20:40, 20:40] = 1
    ignore = np.zeros((64, 64), dtype=bool)
    ignore[:, 34:] = True
    known = Sample(sample.image, LabelLayers(layers, 1), np.array([0]), ignore=ignore)
    more = layers.copy()
    more[0, 24:30, 34:40] = 0
    hidden = Sample(sample.image, LabelLayers(more, 1), np.array([0]), ignore=ignore)
    assert np.array_equal(known.layers.boxes(), hidden.layers.boxes())
    first, second = losses_of(known), losses_of(hidden)
    assert first["loss_mask"] > 0
    assert first == second, "what lies in the ignored region must not matter"


def test_objects_that_overlap_the_region_little_are_learnt() -> None:
    sample = disks(8, (64, 64))
    ignore = np.zeros((64, 64), dtype=bool)
    ignore[:3] = True
    losses = losses_of(with_ignore(sample, ignore))
    assert losses["loss_box_reg"] > 0
    assert losses["loss_rpn_loc"] > 0
