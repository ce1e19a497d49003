"""Names of Caffe2 and torchvision against the names that Detectron2 loads them into."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models_for_tests import SMALL_MODEL, small_model
from torchvision.models import get_model_builder
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2

from detseg.config import load_flat_config
from detseg.engines.build import build_model
from detseg.errors import ConfigError
from detseg.models.weights.files import Weights
from detseg.models.weights.loading import load_state, load_weights
from detseg.models.weights.names import (
    backbone_name,
    from_caffe2,
    from_mask_rcnn,
    is_caffe2,
    names_of_model,
    resnet_name,
)

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "c2_backbone_names.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("backbone", sorted(GOLDEN))
def test_caffe2_names(backbone: str) -> None:
    names = GOLDEN[backbone]
    assert is_caffe2(names)
    assert {name: backbone_name(name) for name in names} == names


def test_names_beyond_the_rules() -> None:
    assert backbone_name("res6_0_branch2a_w") is None
    assert backbone_name("res2_0_branch2d_w") is None
    assert backbone_name("res2_0_branch2a_bn_x") is None
    assert backbone_name("rpn_conv/fpn_w") is None


def test_an_affine_channel_becomes_a_norm_that_changes_nothing_else() -> None:
    state = {
        "conv1_w": torch.ones(2, 3, 7, 7),
        "res_conv1_bn_s": torch.full((2,), 3.0),
        "conv1_w_momentum": torch.ones(1),
    }
    renamed = from_caffe2({**state, "res_conv1_bn_b": torch.ones(2)})
    assert set(renamed) == {f"stem.conv1.{name}" for name in ("weight", "norm.weight", "norm.bias")} | {
        "stem.conv1.norm.running_mean",
        "stem.conv1.norm.running_var",
    }
    x = torch.rand(1, 2, 4, 4)
    values = [renamed[f"stem.conv1.norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    torch.testing.assert_close(torch.nn.functional.batch_norm(x, *values), 3 * x + 1)


@pytest.mark.parametrize("c4", [False, True])
def test_a_bare_backbone_finds_its_place(c4: bool) -> None:
    own = [f"backbone.bottom_up.{name}" for name in ("stem.conv1.weight", "res5.0.conv1.weight")]
    if c4:
        own = ["backbone.stem.conv1.weight", "roi_heads.res5.0.conv1.weight"]
    state = {"stem.conv1.weight": torch.zeros(1), "res5.0.conv1.weight": torch.ones(1), "fc1000.weight": torch.ones(1)}
    assert list(names_of_model(Weights(state), own).state) == [*own, "fc1000.weight"]


def test_torchvision_resnets_compute_the_same() -> None:
    torch.manual_seed(0)
    theirs = get_model_builder("resnet18")(weights=None).eval()
    keys = SMALL_MODEL | {"MODEL.RESNETS.STEM_OUT_CHANNELS": 64, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
    ours = build_model(load_flat_config(keys)).eval()
    named = names_of_model(Weights(theirs.state_dict()), ours.state_dict())
    assert named.origin == "torchvision"
    report = load_state(ours, named.state, fine_tune=True)
    assert report.unused == ["fc.weight", "fc.bias"]
    assert not [name for name in report.missing if "bottom_up" in name]
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        x = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        torch.testing.assert_close(ours.backbone.bottom_up(image)["res5"], x, atol=1e-4, rtol=1e-4)


def test_all_names_of_a_bottleneck_resnet_are_known() -> None:
    with torch.device("meta"):
        names = get_model_builder("resnext101_32x8d")(weights=None).state_dict()
    assert [name for name in names if resnet_name(name) is None] == ["fc.weight", "fc.bias"]


MASK_RCNN = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES": 90,
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.FREEZE_AT": 0,
}
VERSION_2 = {
    "MODEL.FPN.NORM": "BN",
    "MODEL.RPN.CONV_DIMS": [-1, -1],
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "BN",
    "MODEL.ROI_MASK_HEAD.NORM": "BN",
}


@pytest.mark.parametrize(("builder", "changes"), [(maskrcnn_resnet50_fpn, {}), (maskrcnn_resnet50_fpn_v2, VERSION_2)])
def test_torchvision_mask_rcnn_has_a_place_for_every_entry(builder: object, changes: dict) -> None:
    with torch.device("meta"):
        theirs = builder(weights=None, weights_backbone=None).state_dict()
        ours = build_model(load_flat_config({"MODEL.ENGINE": "native"} | MASK_RCNN | changes)).state_dict()
    renamed = from_mask_rcnn(theirs)
    assert {name: value.shape for name, value in renamed.items()} == {name: v.shape for name, v in ours.items()}


def test_the_background_of_torchvision_goes_to_the_end() -> None:
    start = "roi_heads.box_predictor."
    state = {
        f"{start}cls_score.bias": torch.tensor([9.0, 1.0, 2.0]),
        f"{start}bbox_pred.bias": torch.arange(12.0),
        "roi_heads.mask_predictor.mask_fcn_logits.bias": torch.tensor([9.0, 1.0, 2.0]),
    }
    renamed = from_mask_rcnn(state)
    assert renamed[f"{start}cls_score.bias"].tolist() == [1.0, 2.0, 9.0]
    assert renamed[f"{start}bbox_pred.bias"].tolist() == list(range(4, 12))
    assert renamed["roi_heads.mask_head.predictor.bias"].tolist() == [1.0, 2.0]


def test_torchvision_weights_with_another_input_are_refused(tmp_path: Path) -> None:
    state = get_model_builder("resnet18")(weights=None).state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    wide = {"MODEL.RESNETS.STEM_OUT_CHANNELS": 64, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
    model = small_model(**{key.replace(".", "__"): value for key, value in wide.items()})
    cfg = load_flat_config(SMALL_MODEL | wide)
    with pytest.raises(ConfigError) as error:
        load_weights(model, tmp_path / "resnet18.pth", fine_tune=True, cfg=cfg)
    assert all(key in str(error.value) for key in ("INPUT.FORMAT", "PIXEL_MEAN", "PIXEL_STD"))
    fitting = {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    }
    load_weights(model, tmp_path / "resnet18.pth", fine_tune=True, cfg=load_flat_config(SMALL_MODEL | wide | fitting))
    deep = fitting | {"MODEL.RESNETS.DEPTH": 50}
    with pytest.raises(ConfigError, match="STRIDE_IN_1X1"):
        load_weights(model, tmp_path / "resnet18.pth", fine_tune=True, cfg=load_flat_config(SMALL_MODEL | deep))
