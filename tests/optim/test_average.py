from __future__ import annotations

import pytest
import torch
from torch import nn

from detseg.errors import WeightsError
from detseg.optim.optimizer import MovingAverage


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
