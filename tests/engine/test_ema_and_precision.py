from __future__ import annotations

import pytest
import torch
from torch import nn

from detseg.config import get_default_config
from detseg.engine.state import MovingAverage
from detseg.errors import ConfigError, WeightsError
from detseg.optim.precision import build_precision, cpu_has_bfloat16

CPU = torch.device("cpu")


def test_average_follows_its_formula_and_includes_buffers() -> None:
    model = nn.BatchNorm1d(1)
    model.weight.data.fill_(0.0)
    average = MovingAverage(model, decay=0.9)
    model.weight.data.fill_(1.0)
    model.running_mean.fill_(10.0)
    model.num_batches_tracked.fill_(7)
    expected = 0.0
    for update in (1, 2, 3):
        average.update(model)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * 1.0
    state = average.state_dict()["model"]
    assert state["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert state["running_mean"].item() == pytest.approx(10 * expected, rel=1e-6)
    assert state["num_batches_tracked"].item() == 7


def test_after_many_updates_the_decay_is_the_configured_one() -> None:
    model = nn.Linear(1, 1)
    average = MovingAverage(model, decay=0.9)
    average.updates = 1000
    before = average.average["weight"].clone()
    model.weight.data.add_(1.0)
    average.update(model)
    assert average.average["weight"].item() == pytest.approx(before.item() + 0.1, rel=1e-5)


def test_applied_average_leaves_the_model_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    average = MovingAverage(model, decay=0.5)
    model[0].weight.data.mul_(3.0)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with average.applied_to(model):
        assert torch.equal(model[0].weight, average.average["0.weight"])
        assert not torch.equal(model[0].weight, own["0.weight"])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, own[name]), name


def test_average_of_another_model_is_refused() -> None:
    with pytest.raises(WeightsError, match="another model"):
        MovingAverage(nn.Linear(1, 1), 0.9).load_state_dict(MovingAverage(nn.BatchNorm1d(1), 0.9).state_dict())


def amp_config(dtype: str):
    cfg = get_default_config()
    cfg.set("SOLVER.AMP.ENABLED", True)
    cfg.set("SOLVER.AMP.DTYPE", dtype)
    return cfg


def test_precision_is_plain_unless_asked_for() -> None:
    assert build_precision(get_default_config(), CPU).dtype is None


def test_automatic_precision_on_the_cpu_follows_the_processor() -> None:
    assert build_precision(amp_config("auto"), CPU).dtype == (torch.bfloat16 if cpu_has_bfloat16() else None)


def test_bfloat16_on_the_cpu_computes_in_bfloat16_and_trains() -> None:
    precision = build_precision(amp_config("bfloat16"), CPU)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    with precision.autocast():
        output = model(torch.ones(2, 4))
    assert output.dtype == torch.bfloat16
    precision.backward(output.float().sum())
    precision.unscale(optimizer)
    precision.step(optimizer)
    assert model.weight.dtype == torch.float32
    assert not torch.equal(model.weight, before)


def test_float16_without_cuda_and_unknown_formats_are_refused() -> None:
    with pytest.raises(ConfigError, match="CUDA"):
        build_precision(amp_config("float16"), CPU)
    with pytest.raises(ConfigError, match="int3"):
        build_precision(amp_config("int3"), CPU)
