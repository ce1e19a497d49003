"""Deformable convolution: undeformed it is a convolution; offsets move its samples, factors weigh them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detseg.models.rcnn.deformable import Deformable, DeformableConvNorm, make_offset_conv
from detseg.models.rcnn.layers import ConvNorm, FrozenBatchNorm2d
from detseg.models.rcnn.resnet import ResNet


def pair(deformable: Deformable, **settings: object) -> tuple[ConvNorm, DeformableConvNorm, ConvNorm]:
    torch.manual_seed(0)
    plain, deformed = ConvNorm(8, 6, 3, **settings), DeformableConvNorm(8, 6, deformable, **settings)
    deformed.load_state_dict(plain.state_dict())
    where = {key: value for key, value in settings.items() if key in ("stride", "dilation")}
    return plain, deformed, make_offset_conv(8, deformable, **where)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("where", [{}, {"stride": 2}, {"dilation": 2}, {"groups": 2, "norm": "BN", "relu": True}])
def test_at_first_it_is_a_convolution(modulated: bool, groups: int, where: dict[str, object]) -> None:
    plain, deformed, offsets = pair(Deformable(modulated, groups), **where)
    x = torch.randn(2, 8, 9, 7)
    plain.eval(), deformed.eval()
    factor = 0.5 if modulated else 1.0  # the sigmoid of zero
    with torch.no_grad():
        if deformed.bias is not None:
            plain.bias.zero_(), deformed.bias.zero_()
        torch.testing.assert_close(deformed(x, offsets(x)), plain(x) * factor, atol=1e-5, rtol=1e-4)


def test_offsets_are_y_then_x_of_each_sample() -> None:
    _, deformed, offsets = pair(Deformable())
    plain = nn.Conv2d(8, 6, 3, padding=1)
    plain.load_state_dict(deformed.state_dict())
    x = torch.randn(1, 8, 9, 9)
    with torch.no_grad():
        offsets.bias[0::2] = 1  # all samples one pixel further down
        offsets.bias[1::2] = -2  # and two to the left
        moved = deformed(x, offsets(x))
        torch.testing.assert_close(moved[:, :, 1:-3, 3:-1], plain(x)[:, :, 2:-2, 1:-3], atol=1e-5, rtol=1e-4)


def test_factors_follow_the_offsets() -> None:
    _, deformed, offsets = pair(Deformable(modulated=True, groups=2))
    x = torch.randn(1, 8, 5, 5)
    assert offsets(x).shape == (1, 2 * 9 * 3, 5, 5)
    with torch.no_grad():
        deformed.bias.zero_()
        offsets.bias[36:45] = -100  # the first group of channels counts for nothing
        offsets.bias[45:] = 100
        plain = nn.Conv2d(8, 6, 3, padding=1)
        plain.load_state_dict(deformed.state_dict())
        expected = plain(torch.cat((torch.zeros(1, 4, 5, 5), x[:, 4:]), dim=1))
        torch.testing.assert_close(deformed(x, offsets(x)), expected, atol=1e-5, rtol=1e-4)


def test_no_images() -> None:
    _, deformed, offsets = pair(Deformable(modulated=True), norm="FrozenBN", stride=2)
    x = torch.zeros(0, 8, 6, 6)
    assert deformed(x, offsets(x)).shape == (0, 6, 3, 3)


def test_folding_changes_nothing() -> None:
    _, deformed, offsets = pair(Deformable(), norm="FrozenBN", relu=True)
    nn.init.normal_(offsets.weight, std=0.1)
    for buffer in deformed.norm.buffers():
        nn.init.uniform_(buffer, 0.5, 2)
    x = torch.randn(2, 8, 6, 6)
    expected = deformed(x, offsets(x))
    deformed.fast = True
    torch.testing.assert_close(deformed(x, offsets(x)), expected, atol=1e-5, rtol=1e-5)


def test_stages_deform_as_asked_with_the_names_of_detectron2_and_freeze() -> None:
    with torch.device("meta"):
        net = ResNet(
            depth=50,
            in_channels=3,
            stem_channels=8,
            res2_channels=16,
            width_per_group=4,
            norm="BN",
            deformable=Deformable(),
            deformable_stages=["res2", "res4"],
            freeze_at=2,
        )
    deforming = {name.split(".")[0] for name in net.state_dict() if "conv2_offset" in name}
    assert deforming == {"res2", "res4"}
    assert {"res4.5.conv2_offset.weight", "res4.5.conv2_offset.bias", "res4.5.conv2.norm.bias"} <= set(net.state_dict())
    assert not any(parameter.requires_grad for parameter in net.res2.parameters())
    assert isinstance(net.res2[0].conv2.norm, FrozenBatchNorm2d)
    assert all(parameter.requires_grad for parameter in net.res4.parameters())
