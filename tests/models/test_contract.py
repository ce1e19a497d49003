"""What every system promises, the R-CNNs and the bottom-up systems alike, over one table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from models_for_tests import disks, without_objects
from tiny_networks import SYSTEMS

from detseg.coco.predictions_file import read_predictions, write_predictions
from detseg.config import load_flat_config
from detseg.engines.build import build_model
from detseg.fusion.fuse import fuse
from detseg.fusion.options import FusionOptions
from detseg.inference.precision import computing
from detseg.models.base import Segmenter, total_loss
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions
from detseg.structures.rle import encode_mask

every_system = pytest.mark.parametrize("name", SYSTEMS)


def build(name: str, channels: int = 3, **changes: object) -> Segmenter:
    torch.manual_seed(0)
    statistics = {"MODEL.PIXEL_MEAN": [100.0] * channels, "MODEL.PIXEL_STD": [50.0] * channels}
    return build_model(load_flat_config(SYSTEMS[name] | statistics | changes))


def valid(found: Predictions, size: tuple[int, int]) -> None:
    assert (found.height, found.width) == size
    assert np.isfinite(found.scores).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert np.all(np.diff(found.scores) <= 0)
    assert len(found.rles) == len(found.soft_masks) == len(found.classes) == len(found)
    assert set(found.classes.tolist()) <= {0, 1}


@every_system
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_channels_and_odd_sizes_train_and_predict(name: str, channels: int) -> None:
    model = build(name, channels)
    samples = [disks(4, (41, 67), channels=channels), without_objects((33, 50), channels)]
    loss = total_loss(model(samples))
    assert torch.isfinite(loss)
    loss.backward()
    model.eval()
    assert model.predict([]) == []
    for size in ((41, 67), (1, 1), (3, 90)):
        (found,) = model.predict([np.full((*size, channels), 90, np.uint8)], soft_masks=True)
        valid(found, size)
    (large,) = model.predict([samples[0].image], output_sizes=[(82, 133)], soft_masks=True)
    valid(large, (82, 133))


@every_system
def test_images_without_objects_alone_have_a_finite_loss(name: str) -> None:
    loss = total_loss(build(name)([without_objects((40, 48)), without_objects((40, 48))]))
    assert torch.isfinite(loss)
    loss.backward()


@every_system
def test_what_is_ignored_has_no_loss_and_no_gradient(name: str) -> None:
    model = build(name)
    sample = disks(6, (64, 64))  # of smaller images the largest anchors lie beyond them, where nothing is ignored
    losses = model([dataclasses.replace(sample, ignore=np.ones((64, 64), bool))])
    total_loss(losses).backward()
    assert not any(value.item() for key, value in losses.items() if key.startswith("loss"))
    assert all(one.grad is None or not one.grad.any() for one in model.parameters())


@every_system
def test_bfloat16_finds_what_can_be_scored(name: str) -> None:
    model = build(name).eval()
    with computing(model, "bfloat16"):
        (found,) = model.predict([disks(4, (48, 64)).image], soft_masks=True)
    valid(found, (48, 64))


def test_soft_masks_of_both_families_are_averaged_from_their_files(tmp_path: Path) -> None:
    """A U-Net says 0.8 of a square; a Mask R-CNN 0.9 of it and of four rows below, where their mean decides."""
    unet = build("BinaryUNet", **{"MODEL.ROI_HEADS.NUM_CLASSES": 1})
    maps = np.zeros((1, 40, 50), np.float32)
    maps[0, 10:30, 10:30] = 0.8
    square = dataclasses.replace(unet.decode(maps, soft_masks=True), image_id=1, file_name="a.png")
    mask = np.zeros((40, 50), bool)
    mask[10:34, 10:30] = True
    rcnn = Predictions(
        *(1, "a.png", 40, 50, np.float32([[10, 10, 30, 34]]), np.array([0.8]), np.zeros(1, np.int64)),
        [encode_mask(mask)],
        [np.full((24, 20), 230, np.uint8)],
    )
    assert square.scores[0] == pytest.approx(0.8, abs=0.01)
    members = []
    for number, one in enumerate((square, rcnn)):
        write_predictions(tmp_path / f"{number}.json.gz", [one], [{"id": 1, "name": "cell"}], {})
        members += list(read_predictions(tmp_path / f"{number}.json.gz"))
    options = FusionOptions(method="wbf", masks="mean")
    for weights, rows in (([1.0, 1.0], 20), ([1.0, 3.0], 24)):  # below: 0.9 / 2, and 0.9 x 3 / 4
        fused = fuse(members, options, weights)
        assert len(fused) == 1
        assert rle_codec.area(fused.rles).tolist() == [rows * 20]
    mean = fuse(members, options, [1.0, 1.0]).soft_masks[0]
    assert np.isin(mean[:19, 1:-1], (217, 216, 218)).all(), "the mean of 204 and 230"
