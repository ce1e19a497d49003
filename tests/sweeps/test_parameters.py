"""W&B's distributions, by what their values look like over many trials."""

import math

import numpy as np
import pytest

from detseg.config.node import nested
from detseg.errors import ConfigError
from detseg.sweeps.parameters import DISTRIBUTIONS, read_parameters


class Drawn:
    """Answers as a trial of Optuna does, with values that are spread evenly."""

    def __init__(self, share: float) -> None:
        self.share = share

    def suggest_categorical(self, name: str, choices: list):
        return choices[min(int(self.share * len(choices)), len(choices) - 1)]

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return low + min(int(self.share * (high - low + 1)), high - low)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        if log:
            return math.exp(math.log(low) + self.share * (math.log(high) - math.log(low)))
        return low + self.share * (high - low)


def drawn(spec: dict, count: int = 401) -> list:
    (parameter,) = read_parameters({"p": spec}, "parameters")
    return [parameter.suggest(Drawn(share)) for share in np.linspace(0, 1, count)]


@pytest.mark.parametrize(
    ("spec", "least", "middle", "most"),
    [
        ({"min": 2.0, "max": 4.0}, 2, 3, 4),
        ({"min": 2, "max": 6}, 2, 4, 6),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.05}, 0, 0.5, 1),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}, 1e-4, 1e-2, 1),
        ({"distribution": "log_uniform", "min": -4, "max": 2}, math.exp(-4), math.exp(-1), math.exp(2)),
        ({"distribution": "inv_log_uniform", "min": -2, "max": 4}, math.exp(-4), math.exp(-1), math.exp(2)),
        ({"distribution": "inv_log_uniform_values", "min": 0.01, "max": 100}, 0.01, 1, 100),
        ({"distribution": "q_log_uniform_values", "min": 10, "max": 1000, "q": 10}, 10, 100, 1000),
    ],
)
def test_bounds_and_middle(spec: dict, least: float, middle: float, most: float):
    values = drawn(spec)
    assert [values[0], values[200], values[-1]] == pytest.approx([least, middle, most])
    assert values == sorted(values)


def test_normal_and_beta_have_their_mean_and_spread():
    values = drawn({"distribution": "normal", "mu": 3, "sigma": 2}, 4001)
    assert [np.mean(values), np.std(values)] == pytest.approx([3, 2], rel=0.02)
    assert np.median(drawn({"distribution": "log_normal", "mu": 1, "sigma": 0.5})) == pytest.approx(math.e)
    assert np.mean(drawn({"distribution": "beta", "a": 2, "b": 6}, 4001)) == pytest.approx(0.25, abs=0.01)


def test_quantized_values_are_clean_multiples():
    assert set(drawn({"distribution": "q_uniform", "min": 0.0, "max": 0.3, "q": 0.05})) == {
        *(0.0, 0.05, 0.1, 0.15),
        *(0.2, 0.25, 0.3),
    }
    values = drawn({"distribution": "q_normal", "mu": 100, "sigma": 30, "q": 10})
    assert all(isinstance(value, int) and value % 10 == 0 for value in values)


def test_choices_with_probabilities():
    values = drawn({"values": ["a", "b", "c"], "probabilities": [0.5, 0.0, 0.5]}, 1000)
    assert values.count("a") == pytest.approx(500, abs=2)
    assert "b" not in values


def test_lists_none_and_booleans_are_choices():
    assert set(map(str, drawn({"values": [None, True, 3, [1, 2]]}))) == {"None", "True", "3", "[1, 2]"}


def test_nested_parameters_have_dotted_names_and_are_handed_on_as_sections():
    found = read_parameters(
        {"A": {"parameters": {"B": {"value": 1}, "C": {"parameters": {"D": {"values": [1, 2]}}}}}}, "parameters"
    )
    assert [parameter.name for parameter in found] == ["A.B", "A.C.D"]
    assert nested({parameter.path: 5 for parameter in found}) == {"A": {"B": 5, "C": {"D": 5}}}


@pytest.mark.parametrize(
    ("spec", "points"),
    [
        ({"values": [3, 1]}, [3, 1]),
        ({"min": 2, "max": 4}, [2, 3, 4]),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25}, [0, 0.25, 0.5, 0.75, 1]),
        ({"min": 0.0, "max": 1.0}, None),
        ({"distribution": "normal"}, None),
    ],
)
def test_points_of_a_grid(spec: dict, points: list | None):
    (parameter,) = read_parameters({"p": spec}, "parameters")
    assert parameter.grid() == (None if points is None else pytest.approx(points))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"distribution": "cauchy", "min": 0}, "cauchy.*log_uniform_values"),
        ({"distribution": ["uniform"], "min": 0, "max": 1}, "unknown distribution.*uniform"),
        ({"min": 3}, "expected value, values, min and max"),
        ({"min": 3, "max": 1}, "above max"),
        ({"min": "1e-4", "max": 1}, r"1\.0e-4"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "more than 0"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}, "q 0"),
        ({"distribution": "log_uniform", "min": 0, "max": 1e9}, "exponents of e"),
        ({"distribution": "normal", "sigma": 0}, "greater than 0"),
        ({"values": []}, "at least one"),
        ({"values": [1, 1]}, "twice"),
        ({"values": [1, 2], "probabilities": [0.5, 0.4]}, "add up to 0.9"),
        ({"values": [1, 2], "probabilities": [1]}, "one for each"),
        ({"value": 1, "vlaue": 2}, "takes no vlaue"),
        ({"parameters": {"q": {"value": 1}}, "value": 2}, "next to parameters"),
        ([1], "expected a mapping"),
    ],
)
def test_what_is_wrong_is_said_with_the_name_of_the_parameter(spec: object, expected: str):
    with pytest.raises(ConfigError, match=rf"parameters\.p.*{expected}|{expected}.*parameters\.p"):
        read_parameters({"p": spec}, "parameters")


def test_a_name_twice_is_refused():
    with pytest.raises(ConfigError, match=r"A\.B is given twice"):
        read_parameters({"A.B": {"value": 1}, "A": {"parameters": {"B": {"value": 2}}}}, "parameters")


def test_all_distributions_that_wandb_documents_are_here():
    documented = {
        *("constant", "categorical", "categorical_w_probabilities", "int_uniform", "uniform", "q_uniform"),
        *("log_uniform", "log_uniform_values", "q_log_uniform", "q_log_uniform_values"),
        *("inv_log_uniform", "inv_log_uniform_values", "normal", "q_normal", "log_normal", "q_log_normal"),
        *("beta", "q_beta"),
    }
    assert set(DISTRIBUTIONS) == documented
