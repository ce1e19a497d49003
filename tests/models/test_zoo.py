"""Each instance segmentation configuration of Detectron2's zoo is built from what differs from the defaults."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import (
    ResNet18_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    ResNet152_Weights,
    ResNeXt50_32X4D_Weights,
    ResNeXt101_32X8D_Weights,
)

from detseg.config import load_flat_config
from detseg.engine.validation import validate_config
from detseg.engines.build import build_model
from detseg.models.base import Segmenter
from detseg.models.rcnn.resnet import ResNet

ZOO = json.loads((Path(__file__).resolve().parent.parent / "golden" / "d2_zoo.json").read_text(encoding="utf-8"))


def build(name: str) -> Segmenter:
    """On the meta device, nothing is allocated; many differ in their training alone."""
    keys = ZOO[name]["differs_from_defaults"]
    return _build(json.dumps({key: keys[key] for key in sorted(keys) if key.startswith("MODEL.")}))


@functools.cache
def _build(keys: str) -> Segmenter:
    with torch.device("meta"):
        return build_model(load_flat_config({"MODEL.ENGINE": "native"} | json.loads(keys)))


def count(module: nn.Module) -> int:
    """Weights, biases and the scales and shifts of norms, trained or frozen, but no statistics."""
    state = module.state_dict()
    return sum(value.numel() for name, value in state.items() if not name.endswith(("_mean", "_var", "_tracked")))


@pytest.mark.parametrize("name", ZOO)
def test_every_configuration_is_built_and_may_predict(name: str) -> None:
    keys = ZOO[name]["differs_from_defaults"]
    validate_config(load_flat_config(keys), training=False)
    model = build(name)
    assert model.roi_heads.num_classes == keys.get("MODEL.ROI_HEADS.NUM_CLASSES", 80)
    assert type(model.roi_heads).__name__.endswith(keys.get("MODEL.ROI_HEADS.NAME", "Res5ROIHeads")[-8:])
    assert model.roi_heads.mask_head is not None


# torchvision publishes the numbers of parameters of its backbones; their last layer is left out here.
def backbone_count(weights: Any, features: int) -> int:
    return weights.DEFAULT.meta["num_params"] - 1000 * (features + 1)


R_50, R_101 = (backbone_count(weights, 2048) for weights in (ResNet50_Weights, ResNet101_Weights))
X_101 = backbone_count(ResNeXt101_32X8D_Weights, 2048)
# torchvision's maskrcnn_resnet50_fpn has 44,454,513 with 91 classes, background among them; here there are 81.
R_50_FPN = 44_454_513 - 10 * 1025 - (4 * 91 - 4 * 80) * 1025 - (91 - 80) * 257
OFFSETS_OF_RES3_TO_RES5 = sum(blocks * 18 * (9 * width + 1) for blocks, width in ((4, 128), (6, 256), (3, 512)))
BOX_HEAD = (7 * 7 * 256 + 1) * 1024 + (1024 + 1) * 1024
AGNOSTIC_PREDICTOR = (81 + 4) * 1025


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml", R_50_FPN),
        ("COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml", R_50_FPN + R_101 - R_50),
        ("COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml", R_50_FPN + X_101 - R_50),
        ("Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5.yaml", R_50_FPN + OFFSETS_OF_RES3_TO_RES5),
        (
            "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml",
            R_50_FPN - (81 + 320) * 1025 + 3 * AGNOSTIC_PREDICTOR + 2 * BOX_HEAD,
        ),
    ],
)
def test_the_numbers_of_parameters(name: str, expected: int) -> None:
    assert count(build(name)) == expected


@pytest.mark.parametrize(
    ("depth", "groups", "width", "weights"),
    [
        (18, 1, 64, ResNet18_Weights),
        (50, 1, 64, ResNet50_Weights),
        (152, 1, 64, ResNet152_Weights),
        (50, 32, 4, ResNeXt50_32X4D_Weights),
        (101, 32, 8, ResNeXt101_32X8D_Weights),
    ],
)
def test_backbones_have_as_many_parameters_as_those_of_torchvision(
    depth: int, groups: int, width: int, weights: Any
) -> None:
    res2 = 64 if depth < 50 else 256
    with torch.device("meta"):
        net = ResNet(
            depth=depth,
            in_channels=3,
            stem_channels=64,
            res2_channels=res2,
            groups=groups,
            width_per_group=width,
            norm="BN",
        )
    assert count(net) == backbone_count(weights, 8 * res2)
