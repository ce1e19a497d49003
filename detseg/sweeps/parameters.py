"""The parameters of a sweep file: W&B's distributions, mapped to what Optuna can sample.

    path    names from the outermost section to the parameter; W&B passes nested parameters as mappings
    name    the path, joined with dots

A distribution that Optuna lacks is sampled by its quantile, a number u in (0, 1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from detseg.errors import ConfigError

if TYPE_CHECKING:
    import optuna

# Lists and mappings are legal choices too; a study stores them as strings.
Plain = bool | int | float | str | list | dict | None
_MOST_POINTS = 100_000  # limit per parameter in a grid
# Tail probabilities cut off on both sides of a normal distribution, where its quantiles are infinite.
_TAIL = 1e-6


class Suggester(Protocol):
    """The part of an Optuna trial that a parameter uses."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


@dataclass(frozen=True)
class Parameter:
    """path: see the module. choices: the legal values, or None for a number between low and high.

    kind: what Optuna samples: "choice", "int", "float" or "log". to_value: from the sample to the parameter's value.
    step: of a quantized number, 0 for none.
    """

    path: tuple[str, ...]
    kind: str
    choices: tuple[Plain, ...] | None = None
    low: float = 0.0
    high: float = 1.0
    to_value: Callable[[Any], Any] = lambda drawn: drawn
    step: float = 0.0

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def is_constant(self) -> bool:
        return self.kind == "choice" and len(self.choices or ()) == 1

    def suggest(self, trial: Suggester | optuna.Trial) -> Plain:
        """Return the value in a trial; the same trial always gives the same value."""
        if self.is_constant:
            return self.choices[0]
        if self.kind == "choice":
            labels = [label(value) for value in self.choices]
            return self.choices[labels.index(trial.suggest_categorical(self.name, labels))]
        if self.kind == "int":
            return trial.suggest_int(self.name, int(self.low), int(self.high))
        return self.to_value(trial.suggest_float(self.name, self.low, self.high, log=self.kind == "log"))

    def grid(self) -> list[Any] | None:
        """Return the sample for every point of a grid; None if there are infinitely many."""
        if self.kind == "choice":
            return [label(value) for value in self.choices or ()]
        if self.kind == "int" and self.high - self.low < _MOST_POINTS:
            return list(range(int(self.low), int(self.high) + 1))
        if self.kind == "float" and self.step and (self.high - self.low) / self.step < _MOST_POINTS:
            first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
            return [min(max(number * self.step, self.low), self.high) for number in range(first, last + 1)]
        return None


def label(value: Plain) -> Any:
    """Return a choice as stored in a study and shown in plots."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def read_parameters(given: Any, where: str) -> list[Parameter]:
    """Parse the section `parameters` of a sweep file; nested parameters get dotted names.

    Raises:
        ConfigError: naming the parameter and the problem.
    """
    found = _read_section(given, where, ())
    names = [parameter.name for parameter in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: {name} is given twice, as a dotted name and in a section")
    return found


def _read_section(given: Any, where: str, path: tuple[str, ...]) -> list[Parameter]:
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{where}: expected parameters by name, got {given!r}")
    found = []
    for name, spec in given.items():
        own = (*path, str(name))
        at = f"{where}.{name}"
        if not isinstance(spec, Mapping):
            raise ConfigError(f"{at}: expected a mapping such as {{value: 3}} or {{values: [1, 2]}}, got {spec!r}")
        if "parameters" in spec:
            if extra := sorted(set(spec) - {"parameters"}):
                raise ConfigError(f"{at}: {', '.join(extra)} next to parameters: a section has no values of its own")
            found += _read_section(spec["parameters"], f"{at}.parameters", own)
        else:
            found.append(_read_parameter(spec, at, own))
    return found


def _read_parameter(spec: Mapping[str, Any], at: str, path: tuple[str, ...]) -> Parameter:
    name = spec.get("distribution") or _usual_distribution(spec, at)
    if not isinstance(name, str) or name not in DISTRIBUTIONS:
        raise ConfigError(f"{at}: unknown distribution {name!r}; expected one of: {', '.join(DISTRIBUTIONS)}")
    needed, optional, build = DISTRIBUTIONS[name]
    missing = [key for key in needed if key not in spec]
    extra = [str(key) for key in spec if key not in (*needed, *optional, "distribution")]
    if missing or extra:
        problem = f"needs {', '.join(missing)}" if missing else f"takes no {', '.join(extra)}"
        raise ConfigError(f"{at}: {name} {problem}")
    own = {key: value for key, value in spec.items() if key != "distribution"}
    for key, value in own.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if key not in ("value", "values", "probabilities") and not number:
            hint = "; YAML numbers need a decimal point: 1.0e-4" if isinstance(value, str) and "e" in value else ""
            raise ConfigError(f"{at}.{key}: expected a number, got {value!r}{hint}")
    try:
        return build(path, **own)
    except OverflowError:
        raise ConfigError(f"{at}: min and max of {name} are exponents of e and too large") from None
    except ValueError as error:
        raise ConfigError(f"{at}: {error}") from None


def _usual_distribution(spec: Mapping[str, Any], at: str) -> str:
    """Return W&B's default distribution for a parameter that names none."""
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if "min" in spec and "max" in spec:
        whole = all(isinstance(spec[key], int) for key in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    raise ConfigError(f"{at}: expected value, values, min and max, parameters, or a distribution")


# Functions from the entries of a parameter to a Parameter; a ValueError describes the problem.


def _choice(path: tuple[str, ...], values: Any, probabilities: Any = None) -> Parameter:
    if not isinstance(values, list) or not values:
        raise ValueError("values: expected a list of at least one")
    if len({json.dumps(value, sort_keys=True, default=str) for value in values}) < len(values):
        raise ValueError(f"values: one of {values} is given twice")
    if probabilities is None:
        return Parameter(path, "choice", tuple(values))
    fitting = isinstance(probabilities, list) and len(probabilities) == len(values)
    if not fitting or not all(isinstance(share, (int, float)) and share >= 0 for share in probabilities):
        raise ValueError(f"probabilities: expected one for each of the {len(values)} values, 0 or more")
    if not math.isclose(sum(probabilities), 1, abs_tol=1e-6):
        raise ValueError(f"probabilities: they add up to {sum(probabilities):g}; expected 1")

    def pick(share: float) -> Plain:
        total = 0.0
        for value, probability in zip(values, probabilities, strict=True):
            total += probability
            if share < total:
                return value
        return values[-1]

    return Parameter(path, "float", tuple(values), to_value=pick)


def _integers(path: tuple[str, ...], min: float, max: float) -> Parameter:
    low, high = _range(min, max)
    if low != int(low) or high != int(high):
        raise ValueError(f"min {min:g} and max {max:g} must be whole numbers")
    return Parameter(path, "int", low=low, high=high)


def _numbers(kind: str, bounds: Callable[[float, float], tuple[float, float]]) -> Callable[..., Parameter]:
    """A number between two bounds that are computed from min and max; q: rounded to multiples of it."""

    def build(path: tuple[str, ...], min: float, max: float, q: float | None = None) -> Parameter:
        low, high = _range(*bounds(*_range(min, max)))
        if kind == "log" and low <= 0:
            raise ValueError(f"min {min:g}: expected more than 0, because its logarithm is used")
        return Parameter(path, kind, None, low, high, _rounded(q), 0.0 if q is None else q)

    return build


def _shares(inverse: Callable[[Any, float, Mapping[str, float]], float]) -> Callable[..., Parameter]:
    """A distribution given by its quantile function (of `scipy.stats`)."""

    def build(path: tuple[str, ...], q: float | None = None, **shape: float) -> Parameter:
        if any(shape.get(name, 1) <= 0 for name in ("sigma", "a", "b")):
            raise ValueError("sigma, a and b must be greater than 0")
        rounded = _rounded(q)

        def value(share: float) -> Any:
            from scipy import stats

            return rounded(float(inverse(stats, share, shape)))

        return Parameter(path, "float", None, _TAIL, 1 - _TAIL, value, 0.0)

    return build


def _by_steps(build: Callable[..., Parameter]) -> Callable[..., Parameter]:
    """The same distribution rounded to multiples of q, by default 1."""
    return lambda path, q=1, **entries: build(path, q=q, **entries)


def _range(low: float, high: float) -> tuple[float, float]:
    if low > high:
        raise ValueError(f"min {low:g} is above max {high:g}")
    return low, high


def _rounded(q: float | None) -> Callable[[float], Any]:
    if q is None:
        return lambda value: value
    if q <= 0:
        raise ValueError(f"q {q:g}: expected more than 0")
    if isinstance(q, int):
        return lambda value: round(value / q) * q
    return lambda value: float(f"{round(value / q) * q:.12g}")  # not 0.15000000000000002


def _quantile(stats: Any, share: float, shape: Mapping[str, float]) -> float:
    return stats.norm.ppf(share, shape.get("mu", 0), shape.get("sigma", 1))


_normal = _shares(_quantile)
_log_normal = _shares(lambda *of: math.exp(_quantile(*of)))
_beta = _shares(lambda stats, share, shape: stats.beta.ppf(share, shape["a"], shape["b"]))
_uniform = _numbers("float", lambda low, high: (low, high))
_log_values = _numbers("log", lambda low, high: (low, high))
_log = _numbers("log", lambda low, high: (math.exp(low), math.exp(high)))
_LIMITS, _SHAPE = ("min", "max"), ("mu", "sigma")
# W&B's names -> required entries, optional entries, and the function that builds the Parameter.
DISTRIBUTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Callable[..., Parameter]]] = {
    "constant": (("value",), (), lambda path, value: Parameter(path, "choice", (value,))),
    "categorical": (("values",), (), _choice),
    "categorical_w_probabilities": (("values", "probabilities"), (), _choice),
    "int_uniform": (_LIMITS, (), _integers),
    "uniform": (_LIMITS, (), _uniform),
    "q_uniform": (_LIMITS, ("q",), _by_steps(_uniform)),
    "log_uniform_values": (_LIMITS, (), _log_values),
    "q_log_uniform_values": (_LIMITS, ("q",), _by_steps(_log_values)),
    "inv_log_uniform_values": (_LIMITS, (), _log_values),
    "log_uniform": (_LIMITS, (), _log),
    "q_log_uniform": (_LIMITS, ("q",), _by_steps(_log)),
    "inv_log_uniform": (_LIMITS, (), _numbers("log", lambda low, high: (math.exp(-high), math.exp(-low)))),
    "normal": ((), _SHAPE, _normal),
    "q_normal": ((), (*_SHAPE, "q"), _by_steps(_normal)),
    "log_normal": ((), _SHAPE, _log_normal),
    "q_log_normal": ((), (*_SHAPE, "q"), _by_steps(_log_normal)),
    "beta": (("a", "b"), (), _beta),
    "q_beta": (("a", "b"), ("q",), _by_steps(_beta)),
}
