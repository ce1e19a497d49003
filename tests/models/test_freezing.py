"""Freezing by name, slower backbones and heads that learn first."""

from __future__ import annotations

import pytest
import torch
from models_for_tests import SMALL_MODEL, disks, small_model

from detseg.config import load_flat_config
from detseg.errors import ConfigError
from detseg.models.weights.loading import load_state
from detseg.optim.optimizer import OptimizerOptions, build_optimizer, set_learning_rates


def moved(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def step(model: torch.nn.Module, new: set[str] | None = None, iteration: int = 0, **keys: object) -> set[str]:
    """Take one step of training; return the names of the entries that it changed."""
    changes = {name.replace("__", "."): value for name, value in keys.items()}
    options = OptimizerOptions.from_config(load_flat_config(SMALL_MODEL | changes))
    optimizer = build_optimizer(options, model, new)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    set_learning_rates(optimizer, 1.0, iteration)
    sum(model.train()([disks(5, (64, 64))]).values()).backward()
    optimizer.step()
    return moved(model, before)


def test_what_is_frozen_by_name_keeps_weights_and_statistics() -> None:
    model = small_model(MODEL__FREEZE=["backbone.*", "roi_heads.box_head.fc?.weight"])
    changed = step(model)
    assert not [name for name in changed if name.startswith("backbone.")]
    assert "roi_heads.box_head.fc1.bias" in changed
    assert "roi_heads.box_head.fc1.weight" not in changed
    free = small_model(seed=1)
    load_state(model, free.state_dict())  # counts of batches, which frozen norms lack, are no misfit
    assert "backbone.bottom_up.res2.0.conv1.norm.running_mean" in step(free)


def test_a_pattern_that_matches_nothing_is_told() -> None:
    with pytest.raises(ConfigError, match=r"backbon\.\*.*roi_heads\.box_head"):
        small_model(MODEL__FREEZE=["backbon.*"])


def test_the_backbone_learns_slower_but_its_pyramid_does_not() -> None:
    cfg = load_flat_config(SMALL_MODEL | {"SOLVER.BACKBONE_MULTIPLIER": 0.1, "SOLVER.BASE_LR": 0.5})
    model = small_model()
    optimizer = build_optimizer(OptimizerOptions.from_config(cfg), model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.05 if name.startswith("backbone.bottom_up.") else 0.5), name
    assert set_learning_rates(optimizer, 0.5) == 0.25


def test_new_heads_learn_first() -> None:
    names = {name for name, _ in small_model().named_parameters() if "predictor" in name}
    warmup = {"SOLVER__HEAD_WARMUP_ITERS": 3, "SOLVER__WEIGHT_DECAY": 0.1}
    learned = {name for name in step(small_model(), names, iteration=2, **warmup) if "norm" not in name}
    assert learned
    assert learned <= names
    assert "backbone.fpn_lateral2.weight" in step(small_model(), names, iteration=3, **warmup)
    with pytest.raises(ConfigError, match="HEAD_WARMUP_ITERS"):
        step(small_model(), set(), **warmup)
