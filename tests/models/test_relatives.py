"""What every relative of Mask R-CNN must do: train on anything, predict, take boxes, leave out what is ignored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from models_for_tests import RELATIVES, disks, given_boxes, relative, without_objects

from detseg.config import load_config
from detseg.engines.build import build_model
from detseg.errors import DataError
from detseg.structures.rle import decode
from detseg.structures.sample import Sample

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
# BatchNorm has no variance where a map has one pixel.
FROZEN = {"MODEL.RESNETS.NORM": "FrozenBN"}
every_relative = pytest.mark.parametrize("name", sorted(RELATIVES))


def expected_losses(name: str) -> set[str]:
    boxes = ["loss_cls", "loss_box_reg"]
    if name.startswith("cascade"):
        boxes = [f"{loss}_stage{stage}" for loss in boxes for stage in range(3)]
    return {"loss_rpn_cls", "loss_rpn_loc", "loss_mask", *boxes}


@every_relative
def test_every_parameter_gets_a_gradient_whatever_the_images_hold(name: str) -> None:
    model = relative(name, **FROZEN).train()
    assert model.trains_everything
    for samples in ([disks(6, (64, 96)), without_objects((48, 64))], [without_objects((32, 32))], [disks(1, (1, 1))]):
        model.zero_grad(set_to_none=True)
        losses = model(samples)
        assert set(losses) == expected_losses(name)
        assert all(torch.isfinite(loss) and loss.ndim == 0 for loss in losses.values())
        sum(losses.values()).backward()
        lacking = [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
        assert not lacking


@every_relative
def test_everything_ignored_is_no_loss(name: str) -> None:
    sample = disks(6, (64, 64))
    ignored = Sample(sample.image, sample.layers, sample.classes, ignore=np.ones((64, 64), dtype=bool))
    changes = {"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100_000, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 100_000}
    losses = {key: float(loss.detach()) for key, loss in relative(name, **changes).train()([ignored]).items()}
    assert losses == dict.fromkeys(losses, 0.0)


@every_relative
def test_masks_for_given_boxes_are_those_of_the_detections(name: str) -> None:
    model = relative(name).eval()
    image = disks(8, (64, 96)).image
    first = model.predict([image], output_sizes=[(128, 192)])[0]
    assert len(first) > 0
    again = model.predict_masks([image], [first], [(128, 192)])[0]
    np.testing.assert_allclose(again.boxes, first.boxes, atol=1e-4)
    different = [np.sum(decode(a) != decode(b)) for a, b in zip(again.rles, first.rles, strict=True)]
    assert max(different) <= 3
    nothing = given_boxes([], (64, 96))
    assert [len(one) for one in model.predict_masks([image, image], [nothing, nothing])] == [0, 0]


@every_relative
def test_speed_changes_little_and_no_name(name: str) -> None:
    slow, fast = relative(name).eval(), relative(name).prefer_speed().eval()
    assert slow.state_dict().keys() == fast.state_dict().keys()
    images = [disks(8, (64, 96)).image]
    boxes = [given_boxes([[4, 4, 30, 30], [40, 10, 90, 60]], (64, 96), classes=[0, 1])]
    first, second = (model.predict_masks(images, boxes, soft_masks=True)[0].soft_masks for model in (slow, fast))
    for one, other in zip(first, second, strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 2


@every_relative
def test_bfloat16(name: str) -> None:
    model = relative(name).train().prefer_speed()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([disks(8, (64, 64))])
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.eval().predict([disks(8, (64, 64)).image])[0].boxes.dtype == np.float32


@pytest.mark.parametrize("name", ["cascade", "C4", "DC5"])
def test_boxes_alone(name: str) -> None:
    changes = {"MODEL.MASK_ON": False}
    model = relative(name, **changes)
    assert set(model([disks(5, (64, 64))])) == expected_losses(name) - {"loss_mask"}
    answer = model.eval().predict([disks(5, (64, 64)).image])[0]
    assert answer.rles is None
    assert len(answer) > 0
    with pytest.raises(DataError, match="mask head"):
        model.predict_masks([disks(5, (64, 64)).image], [answer])


def test_a_pyramid_from_stride_2_keeps_the_names_of_the_usual_one() -> None:
    cfg = load_config(CONFIGS / "_base_" / "tiny_cells.yaml", ["MODEL.ENGINE", "native"])
    usual = load_config(CONFIGS / "_base_" / "mask_rcnn_fpn.yaml", ["MODEL.ENGINE", "native"])
    with torch.device("meta"):
        shapes, usual_shapes = (
            {name: value.shape for name, value in build_model(one).state_dict().items()} for one in (cfg, usual)
        )
    assert {name for name in shapes if name not in usual_shapes} == {
        f"backbone.fpn_{kind}1.{end}" for kind in ("lateral", "output") for end in ("weight", "bias")
    }
    assert all(shapes[name] == shape for name, shape in usual_shapes.items())
