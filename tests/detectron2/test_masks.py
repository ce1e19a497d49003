"""Label layers behind Detectron2's mask interface give what its BitMasks give."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from detectron2_cases import disks, in_both_engines, require_detectron2, without_objects

require_detectron2()

from dataclasses import replace

from detectron2.structures import BitMasks, Instances

from detseg.detectron2.segmenter import InputMaker, LayerMasks


def layer_masks(count: int = 12) -> LayerMasks:
    inputs = InputMaker(channels=3, bgr=True, num_classes=2, masks="layers")
    return inputs.from_sample(disks(count, seed=4), torch.device("cpu"))["instances"].gt_masks


def test_targets_are_those_of_bitmasks():
    masks = layer_masks()
    assert masks.layers.shape[0] > 1, "the disks must lie over one another"
    rng = np.random.default_rng(0)
    chosen = torch.from_numpy(rng.integers(0, len(masks), 400))
    corner = rng.uniform(-10, 110, (400, 2))
    boxes = torch.from_numpy(np.hstack([corner, corner + rng.uniform(0.5, 60, (400, 2))]).astype(np.float32))
    expected = BitMasks(masks.dense())[chosen].crop_and_resize(boxes, 28)
    found = masks[chosen].crop_and_resize(boxes, 28)
    assert found.shape == expected.shape == (400, 28, 28)
    assert found.dtype == torch.bool
    # where exactly half of a cell is covered, rounding decides
    assert (found != expected).float().mean() <= 1 / 100_000


def test_selection_as_detectron2_selects():
    masks = layer_masks()
    dense = masks.dense()
    keep = torch.zeros(len(masks), dtype=torch.bool)
    keep[[1, 5]] = True
    for item in (3, slice(2, 7), torch.tensor([4, 4, 0]), keep, torch.zeros(0, dtype=torch.int64)):
        expected = dense[item][None] if isinstance(item, int) else dense[item]
        assert torch.equal(masks[item].dense(), expected)
        assert len(masks[item]) == len(expected)
    objects = Instances(masks.image_size)
    objects.gt_masks = masks
    assert torch.equal(objects[keep].to("cpu").gt_masks.dense(), dense[keep])


def test_no_object():
    masks = layer_masks(0)
    assert len(masks) == 0
    assert masks.crop_and_resize(torch.zeros((0, 4)), 14).shape == (0, 14, 14)


@pytest.mark.parametrize("architecture", ["FPN", "C4"])
def test_training_on_layers_gives_the_weights_of_training_on_bitmasks(architecture: str):
    model, _ = in_both_engines(architecture)
    trained = []
    for masks in ("layers", "bitmasks"):
        one = copy.deepcopy(model).train()
        one.inputs = replace(model.inputs, masks=masks)
        optimizer = torch.optim.SGD(one.parameters(), lr=0.01)
        for seed in range(3):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            sum(one([disks(7, seed=seed), without_objects()]).values()).backward()
            optimizer.step()
        trained.append(one.state_dict())
    different = [name for name in trained[0] if not torch.equal(trained[0][name], trained[1][name])]
    assert not different
