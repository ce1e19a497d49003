"""Parameter groups, steps and clipping against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from detseg.config import get_default_config
from detseg.errors import ConfigError
from detseg.optim.optimizer import (
    ClippingOptions,
    OptimizerOptions,
    build_clipper,
    build_optimizer,
    gradient_norm,
    parameter_groups,
    set_learning_rates,
    trained_parameters,
)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.again = self.conv  # shared: must be trained once


def options(**solver: object) -> OptimizerOptions:
    cfg = get_default_config()
    for key, value in solver.items():
        cfg.set(f"SOLVER.{key}", value)
    return OptimizerOptions.from_config(cfg)


def settings_of(model: nn.Module, **settings: float | None) -> dict[str, tuple[float, float]]:
    given = {"BASE_LR": 0.1, "WEIGHT_DECAY": 1e-4, "WEIGHT_DECAY_NORM": 0.0, "WEIGHT_DECAY_BIAS": None}
    groups = parameter_groups(model, dataclasses.replace(options(**given), **settings))
    found = {}
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    return found


def test_norm_layers_decay_by_their_own_number() -> None:
    assert settings_of(Small()) == {
        "conv.weight": (0.1, 1e-4),
        "conv.bias": (0.1, 1e-4),
        "norm.weight": (0.1, 0.0),
        "norm.bias": (0.1, 0.0),
    }


def test_biases_of_norm_layers_count_as_biases() -> None:
    found = settings_of(Small(), weight_decay_bias=0.5, bias_lr_factor=2.0)
    assert found["conv.bias"] == found["norm.bias"] == (0.2, 0.5)
    assert found["norm.weight"] == (0.1, 0.0)


def test_no_norm_decay_given_means_the_common_one() -> None:
    assert settings_of(Small(), weight_decay_norm=None)["norm.weight"] == (0.1, 1e-4)


def test_sgd_steps_as_its_formula() -> None:
    # v = momentum * v + (g + decay * w);  w = w - rate * v
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(2.0)
    optimizer = build_optimizer(options(BASE_LR=0.1, MOMENTUM=0.9, WEIGHT_DECAY=0.01), model)
    w, v = 2.0, 0.0
    for factor in (1.0, 0.5):
        assert set_learning_rates(optimizer, factor) == pytest.approx(0.1 * factor)
        model.weight.grad = torch.full((1, 1), 3.0)
        optimizer.step()
        v = 0.9 * v + 3.0 + 0.01 * w
        w -= 0.1 * factor * v
    assert model.weight.item() == pytest.approx(w, rel=1e-6)


def test_adamw_decays_apart_from_the_gradient() -> None:
    # First step: w * (1 - rate * decay) - rate * sign(g)
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(2.0)
    optimizer = build_optimizer(options(OPTIMIZER="AdamW", BASE_LR=0.01, WEIGHT_DECAY=0.1), model)
    assert isinstance(optimizer, torch.optim.AdamW)
    model.weight.grad = torch.full((1, 1), -7.0)
    optimizer.step()
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.001) + 0.01, rel=1e-6)


def two_gradients() -> list[nn.Parameter]:
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    first.grad, second.grad = torch.tensor([3.0, -4.0]), torch.tensor([0.5])
    return [first, second]


@pytest.mark.parametrize(
    ("clip_type", "first", "second"),
    [
        ("value", [1.0, -1.0], [0.5]),  # each element to +-1
        ("norm", [0.6, -0.8], [0.5]),  # each parameter to norm 1: 5 -> 1, 0.5 stays
        ("full_model", [3 / 25.25**0.5, -4 / 25.25**0.5], [0.5 / 25.25**0.5]),  # sqrt(9 + 16 + 0.25) -> 1
    ],
)
def test_clipping(clip_type: str, first: list[float], second: list[float]) -> None:
    cfg = get_default_config()
    cfg.set("SOLVER.CLIP_GRADIENTS.ENABLED", True)
    cfg.set("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip_type)
    cfg.set("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0)
    parameters = two_gradients()
    build_clipper(ClippingOptions.from_config(cfg))(parameters)
    assert parameters[0].grad.tolist() == pytest.approx(first, rel=1e-4)
    assert parameters[1].grad.tolist() == pytest.approx(second, rel=1e-4)


def test_clipping_is_off_by_default_and_unknown_kinds_are_refused() -> None:
    cfg = get_default_config()
    assert build_clipper(ClippingOptions.from_config(cfg)) is None
    cfg.set("SOLVER.CLIP_GRADIENTS.ENABLED", True)
    cfg.set("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "gently")
    with pytest.raises(ConfigError, match="gently"):
        ClippingOptions.from_config(cfg)


def test_gradient_norm_over_all_parameters() -> None:
    assert gradient_norm(two_gradients()).item() == pytest.approx(25.25**0.5)
    assert gradient_norm([nn.Parameter(torch.zeros(1))]).item() == 0.0


def test_a_model_without_anything_to_train_is_refused() -> None:
    model = nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter to train"):
        build_optimizer(options(), model)


def test_trained_parameters_lists_each_once() -> None:
    model = Small()
    assert len(trained_parameters(build_optimizer(options(), model))) == 4


def test_the_model_says_what_is_pretrained() -> None:
    class Backbone(Small):
        pretrained_prefix = "conv."

    slower = settings_of(Backbone(), backbone_multiplier=0.1)
    assert slower["conv.weight"][0] == pytest.approx(0.01)
    assert slower["norm.weight"][0] == 0.1


@pytest.mark.parametrize(
    ("key", "value"),
    [("OPTIMIZER", "LARS"), ("BETAS", [0.9]), ("MOMENTUM", 1.0), ("WEIGHT_DECAY_BIAS", -1.0), ("BASE_LR", 0.0)],
)
def test_impossible_numbers_are_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"SOLVER.{key}"):
        options(**{key: value})


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ConfigError, match=r"SOLVER\.NESTEROV.*SOLVER\.MOMENTUM"):
        options(NESTEROV=True, MOMENTUM=0.0)
