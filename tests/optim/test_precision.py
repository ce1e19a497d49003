from __future__ import annotations

import pytest
import torch
from torch import nn

from detseg.config import get_default_config
from detseg.errors import ConfigError
from detseg.optim.precision import PrecisionOptions, build_precision, cpu_has_bfloat16

CPU = torch.device("cpu")


def options(dtype: str = "auto", enabled: bool = True) -> PrecisionOptions:
    cfg = get_default_config()
    cfg.set("SOLVER.AMP.ENABLED", enabled)
    cfg.set("SOLVER.AMP.DTYPE", dtype)
    return PrecisionOptions.from_config(cfg)


def test_precision_is_plain_unless_asked_for() -> None:
    assert build_precision(options(enabled=False), CPU).dtype is None


def test_automatic_precision_on_the_cpu_follows_the_processor() -> None:
    assert build_precision(options("auto"), CPU).dtype == (torch.bfloat16 if cpu_has_bfloat16() else None)


def test_bfloat16_on_the_cpu_computes_in_bfloat16_and_trains() -> None:
    precision = build_precision(options("bfloat16"), CPU)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    with precision.autocast():
        output = model(torch.ones(2, 4))
    assert output.dtype == torch.bfloat16
    precision.scaled(output.float().sum()).backward()
    precision.unscale(optimizer)
    precision.step(optimizer)
    assert model.weight.dtype == torch.float32
    assert not torch.equal(model.weight, before)


def test_float16_without_cuda_and_unknown_formats_are_refused() -> None:
    with pytest.raises(ConfigError, match="CUDA"):
        build_precision(options("float16"), CPU)
    with pytest.raises(ConfigError, match="int3"):
        build_precision(options("int3"), CPU)
