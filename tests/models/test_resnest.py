"""ResNeSt: the fork's names and numbers of parameters, and what a plain program computes from the same weights.

Sizes are those of the published models: ResNeSt-50, 101 and 200 have 27.5, 48.3 and 70.2 million parameters with their
classifier of 1,000 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.config import load_config
from detseg.detectron2.keys import implements
from detseg.engine.validation import validate_config
from detseg.engines.choice import choose_engine
from detseg.errors import ConfigError
from detseg.models.freezing import FrozenBatchNorm2d
from detseg.models.rcnn.deformable import Deformable
from detseg.models.rcnn.resnest import ResNeStOptions
from detseg.models.rcnn.resnet import BLOCKS_OF_DEPTH, STAGES, ResNet

LIVECELL = Path(__file__).parents[2] / "configs" / "livecell" / "cascade_mask_rcnn_ResNeSt_200_FPN.yaml"
CLASSIFIER = 2048 * 1000 + 1000
SPLIT = ResNeStOptions(radix=2, avd=False, avg_down=False, deep_stem=False)
# What RADIX 2 implies, without attention.
POOLED = ResNeStOptions(radix=1, avd=True, avg_down=True, deep_stem=True)


def resnest(options: ResNeStOptions = SPLIT, depth: int = 50, width: int = 64, **more: object) -> ResNet:
    sizes = {"stem_channels": 64, "res2_channels": 4 * width, "width_per_group": width, "in_channels": 3}
    return ResNet(depth=depth, stride_in_1x1=False, resnest=options, **{"norm": "BN", **sizes, **more})


@pytest.mark.parametrize(("depth", "parameters"), [(50, 27_483_240), (101, 48_275_016), (200, 70_201_544)])
def test_numbers_of_parameters(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        model = resnest(depth=depth)
    assert sum(parameter.numel() for parameter in model.parameters()) + CLASSIFIER == parameters


def test_names_and_shapes_are_those_of_the_fork() -> None:
    with torch.device("meta"):
        deformable = Deformable(modulated=True, groups=2)
        model = resnest(depth=200, deformable=deformable, deformable_stages=STAGES[1:])
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert shapes["stem.conv1_1.weight"] == (64, 3, 3, 3)
    assert shapes["stem.conv1_3.norm.weight"] == (128,)
    block = {name.removeprefix("res3.0."): shape for name, shape in shapes.items() if name.startswith("res3.0.")}
    expected = {
        "shortcut.weight": (512, 256, 1, 1),
        "conv1.weight": (128, 256, 1, 1),
        "conv2.conv.weight": (256, 64, 3, 3),
        "conv2.fc1.weight": (64, 128, 1, 1),
        "conv2.fc1.bias": (64,),
        "conv2.fc2.weight": (256, 64, 1, 1),
        "conv2.fc2.bias": (256,),
        # each half of the channels computes the offsets of its samples
        "conv2_offset.weight": (54, 64, 3, 3),
        "conv2_offset.bias": (54,),
        "conv3.weight": (512, 128, 1, 1),
    }
    norms = {"shortcut.norm": 512, "conv1.norm": 128, "conv2.bn0": 256, "conv2.bn1": 64, "conv3.norm": 512}
    expected |= {f"{name}.{part}": (size,) for name, size in norms.items() for part in norm[:-1]}
    expected |= {f"{name}.{norm[-1]}": () for name in norms}
    assert block == expected
    assert shapes["res2.0.conv2.fc1.weight"] == (32, 64, 1, 1)
    assert not [name for name in shapes if name.startswith("res2") and "offset" in name]
    assert {name.split(".")[1] for name in shapes if name.startswith("res3.")} == set(map(str, range(24)))


def plain_forward(weights: Mapping[str, Tensor], x: Tensor, options: ResNeStOptions, depth: int = 50) -> Tensor:
    """Compute res5 by functions alone, from the names of the fork."""

    def norm(x: Tensor, name: str) -> Tensor:
        parts = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts)

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        return norm(F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2), f"{name}.norm")

    def attention(x: Tensor, name: str) -> Tensor:
        maps = F.conv2d(x, weights[f"{name}.conv.weight"], padding=1, groups=2)
        first, second = torch.chunk(F.relu(norm(maps, f"{name}.bn0")), 2, dim=1)
        means = F.adaptive_avg_pool2d(first + second, 1)
        inner = F.relu(norm(F.conv2d(means, weights[f"{name}.fc1.weight"], weights[f"{name}.fc1.bias"]), f"{name}.bn1"))
        one, other = torch.chunk(F.conv2d(inner, weights[f"{name}.fc2.weight"], weights[f"{name}.fc2.bias"]), 2, dim=1)
        share = torch.sigmoid(one - other)  # a softmax over two
        return share * first + (1 - share) * second

    for part, stride in (("1_1", 2), ("1_2", 1), ("1_3", 1)):
        x = F.relu(conv(x, f"stem.conv{part}", stride))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, count in zip(STAGES, BLOCKS_OF_DEPTH[depth], strict=True):
        for number in range(count):
            name, halves = f"{stage}.{number}", stage != "res2" and number == 0
            shortcut = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)(x) if halves else x
            shortcut = conv(shortcut, f"{name}.shortcut") if number == 0 else shortcut
            x = F.relu(conv(x, f"{name}.conv1"))
            x = attention(x, f"{name}.conv2") if options.radix == 2 else F.relu(conv(x, f"{name}.conv2"))
            x = nn.AvgPool2d(3, 2, padding=1)(x) if halves else x
            x = F.relu(conv(x, f"{name}.conv3") + shortcut)
    return x


@pytest.mark.parametrize("options", [SPLIT, POOLED], ids=["radix 2", "radix 1"])
@pytest.mark.parametrize("size", [(64, 96), (77, 51)])
def test_equal_to_a_plain_program(options: ResNeStOptions, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = resnest(options, width=8).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.7, 1.2)
            nn.init.normal_(module.bias, 0, 0.1)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        features = model(x)
        expected = plain_forward(model.state_dict(), x, options)
    assert features["res5"].shape[1:] == (256, -(-size[0] // 32), -(-size[1] // 32))
    torch.testing.assert_close(features["res5"], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_dilation_keeps_the_size_and_a_deformable_one_learns() -> None:
    torch.manual_seed(0)
    deformable = Deformable(modulated=True, groups=2)
    model = resnest(width=8, res5_dilation=2, deformable=deformable, deformable_stages=STAGES[1:])
    features = model(torch.randn(2, 3, 64, 64))
    assert features["res5"].shape[2:] == features["res4"].shape[2:] == (4, 4)
    features["res5"].square().mean().backward()
    lacking = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    # A bias before a normalisation changes nothing.
    assert [name for name in lacking if not name.endswith("fc1.bias")] == []


def test_freezing_stops_the_statistics_of_the_attention_too() -> None:
    model = resnest(width=8, freeze_at=2).train()
    assert isinstance(model.res2[0].conv2.bn0, FrozenBatchNorm2d)
    assert isinstance(model.res2[0].conv2.bn1, FrozenBatchNorm2d)
    assert isinstance(model.res3[0].conv2.bn1, nn.BatchNorm2d)
    frozen = [value for name, value in model.named_parameters() if name.startswith(("stem", "res2"))]
    assert not any(value.requires_grad for value in frozen)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.RESNETS.DEPTH", "34", "has one of [50, 101, 152, 200, 269]"),
        ("MODEL.RESNETS.NUM_GROUPS", "32", "has one group"),
        ("MODEL.RESNETS.STRIDE_IN_1X1", "True", "set False"),
        ("MODEL.RESNETS.STEM_OUT_CHANNELS", "32", "has 128 channels"),
        ("MODEL.RESNETS.NORM", "GN", "use SyncBN"),
        ("MODEL.RESNETS.RADIX", "0", "MODEL.RESNETS.RADIX"),
        ("MODEL.RESNETS.RADIX", "1", "200 is a depth of ResNeSt"),
        ("SOLVER.IMS_PER_BATCH", "1", "needs two"),
    ],
)
def test_what_it_does_not_have_is_refused(key: str, value: str, message: str) -> None:
    cfg = load_config(LIVECELL, [key, value])
    with pytest.raises(ConfigError) as error:
        validate_config(cfg)
    assert message in str(error.value)


def test_the_native_engine_is_chosen() -> None:
    assert choose_engine(load_config(LIVECELL)).name == "native"
    assert not implements("MODEL.RESNETS.RADIX")
