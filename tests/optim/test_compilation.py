"""torch.compile as an option: kept only where it computes the same."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import SMALL_MODEL
from torch import nn

from detseg.config import load_flat_config
from detseg.engines.build import build_model
from detseg.errors import RunError
from detseg.optim.precision import compile_backbone


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(load_flat_config(SMALL_MODEL)).prefer_speed().train()


def test_a_compiled_backbone_trains_as_the_plain_one_and_evaluates_plainly() -> None:
    calls = []

    def compile_eagerly(function):
        compiled = torch.compile(function, backend="aot_eager")
        return lambda x: (calls.append(tuple(x.shape)), compiled(x))[1]

    model, plain = small_model(), small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compile_backbone(model, 3, compile_eagerly)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "statistics moved"
    x = torch.randn(2, 3, 64, 96)
    calls.clear()
    for name, feature in model.backbone(x).items():
        torch.testing.assert_close(feature, plain.backbone(x)[name], rtol=1e-4, atol=1e-4)
        break
    assert calls == [(2, 3, 64, 96)]
    with torch.inference_mode():
        model.eval().backbone(x)
    assert len(calls) == 1, "evaluation went through the compiled network"


def test_another_result_is_refused() -> None:
    with pytest.raises(RunError, match=r"gives different results.*MODEL\.COMPILE"):
        compile_backbone(small_model(), 3, lambda f: lambda x: {name: v * 1.01 for name, v in f(x).items()})
    with pytest.raises(RunError, match="different results"):
        compile_backbone(small_model(), 3, lambda f: lambda x: {name: v * float("nan") for name, v in f(x).items()})


def test_a_compiler_that_fails_and_a_model_without_backbone_are_told() -> None:
    def failing(function):
        def run(x):
            raise RuntimeError("no C++ compiler found")

        return run

    with pytest.raises(RunError, match=r"no C\+\+ compiler found.*MODEL\.COMPILE"):
        compile_backbone(small_model(), 3, failing)
    with pytest.raises(RunError, match="no backbone"):
        compile_backbone(nn.Linear(2, 2), 3)
