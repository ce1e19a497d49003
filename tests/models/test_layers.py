"""Layers: normalisation, freezing, initial weights, names."""

from __future__ import annotations

import copy

import pytest
import torch
from models_for_tests import small_model
from torch import nn

from detseg.models.rcnn.layers import ConvNorm, FrozenBatchNorm2d, GroupNorm, init_msra
from detseg.models.rcnn.resnet import BLOCKS_OF_DEPTH, ResNet
from detseg.models.rcnn.rpn import RPNHead


def used_batch_norm(channels: int) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    norm(torch.randn(8, channels, 5, 5) * 3 + 1)
    return norm.eval()


@pytest.mark.parametrize("with_gradient", [False, True])
def test_frozen_batch_norm_is_batch_norm(with_gradient: bool) -> None:
    norm = used_batch_norm(6)
    frozen = FrozenBatchNorm2d.from_batch_norm(norm)
    x = torch.randn(2, 6, 4, 4, requires_grad=with_gradient)
    torch.testing.assert_close(frozen(x), norm(x))
    assert not list(frozen.parameters())


def test_a_new_frozen_batch_norm_is_the_identity() -> None:
    x = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(FrozenBatchNorm2d(6)(x), x)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_folding_changes_nothing(norm: str) -> None:
    conv = ConvNorm(5, 6, 3, norm=norm, relu=True)
    conv.norm = used_batch_norm(6) if norm == "BN" else FrozenBatchNorm2d.from_batch_norm(used_batch_norm(6))
    x = torch.randn(2, 5, 7, 7)
    expected = conv(x)
    conv.fold = True
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)


def test_folded_weights_follow_every_change() -> None:
    conv = ConvNorm(5, 6, 3, norm="BN", relu=True)
    conv.norm = used_batch_norm(6)
    conv.eval()
    x = torch.randn(2, 5, 7, 7)

    def check() -> None:
        """Folded (twice: made and kept) as not folded."""
        conv.fold = False
        with torch.inference_mode():
            expected = conv(x)
            conv.fold = True
            for _ in range(2):
                torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)

    check()
    with torch.no_grad():
        conv.weight.mul_(2)
        conv.norm.bias.add_(1)
    check()
    conv.load_state_dict({name: tensor + 1 for name, tensor in conv.state_dict().items()})
    check()
    conv.weight = nn.Parameter(torch.randn_like(conv.weight))
    check()
    conv = copy.deepcopy(conv)
    conv.train().norm(torch.randn(4, 6, 3, 3))
    conv.eval()
    check()
    # A product that was kept without gradients is not used with them.
    conv(x).sum().backward()
    assert conv.weight.grad is not None


def test_group_norm_with_channels_last_and_its_gradients() -> None:
    torch.manual_seed(0)
    ours, theirs = GroupNorm(8, 32), nn.GroupNorm(8, 32).double()
    nn.init.uniform_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = (torch.randn(3, 32, 20, 17) * 2 + 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    reference = x.detach().double().requires_grad_()
    weights = torch.randn(3, 32, 20, 17).contiguous(memory_format=torch.channels_last)
    got, expected = ours(x), theirs(reference)
    (got * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad.double(), reference.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.weight.grad.double(), theirs.weight.grad, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(ours.bias.grad.double(), theirs.bias.grad, atol=1e-3, rtol=1e-5)


def test_freezing_counts_from_the_stem() -> None:
    def trained(freeze_at: int) -> set[str]:
        net = ResNet(depth=18, in_channels=3, stem_channels=8, res2_channels=8, norm="BN", freeze_at=freeze_at)
        assert any(isinstance(module, nn.BatchNorm2d) for module in net.res5.modules()) == (freeze_at < 5)
        assert any(isinstance(module, FrozenBatchNorm2d) for module in net.stem.modules()) == (freeze_at > 0)
        return {name.split(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}

    assert trained(0) == {"stem", "res2", "res3", "res4", "res5"}
    assert trained(2) == {"res3", "res4", "res5"}
    assert trained(5) == set()


def test_freezing_group_norm_stops_its_training() -> None:
    net = ResNet(depth=18, in_channels=3, stem_channels=32, res2_channels=32, norm="GN", freeze_at=1)
    assert not any(parameter.requires_grad for parameter in net.stem.parameters())


@pytest.mark.parametrize("depth", sorted(BLOCKS_OF_DEPTH))
def test_every_depth_has_the_strides_and_channels_it_says(depth: int) -> None:
    net = ResNet(depth=depth, in_channels=1, stem_channels=4, res2_channels=8, width_per_group=4, norm="BN").eval()
    features = net(torch.zeros(1, 1, 64, 96))
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for name, feature in features.items():
        assert feature.shape == (1, net.channels[name], 64 // net.strides[name], 96 // net.strides[name])
    assert sum(len(getattr(net, name)) for name in features) == sum(BLOCKS_OF_DEPTH[depth])


def test_only_what_is_asked_for_is_built() -> None:
    net = ResNet(depth=18, in_channels=3, stem_channels=8, res2_channels=8, norm="BN", out_features=["res3"])
    assert list(net(torch.zeros(1, 3, 32, 32))) == ["res3"]
    assert not hasattr(net, "res4")


def test_several_rpn_convolutions_have_the_names_of_detectron2() -> None:
    names = set(RPNHead(8, 3, (-1, 16)).state_dict())
    assert {"conv.conv0.weight", "conv.conv1.weight"} <= names
    assert "conv.weight" in RPNHead(8, 3).state_dict()


def test_initial_weights_are_those_of_detectron2() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 128, 3)
    init_msra(conv)
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert not conv.bias.any()
    model = small_model(MODEL__ROI_BOX_HEAD__FC_DIM=256, MODEL__ROI_MASK_HEAD__CONV_DIM=128)
    head, mask_head, rpn = model.roi_heads.box_predictor, model.roi_heads.mask_head, model.proposal_generator.rpn_head
    for layer, std in (
        (head.cls_score, 0.01),
        (head.bbox_pred, 0.001),
        (mask_head.predictor, 0.001),
        (rpn.conv, 0.01),
        (rpn.anchor_deltas, 0.01),
    ):
        assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.15)
        assert not layer.bias.any()
    bound = (3 / model.backbone.fpn_output2.weight[0].numel()) ** 0.5
    largest = float(model.backbone.fpn_output2.weight.detach().abs().max())
    assert 0.95 * bound < largest <= bound
