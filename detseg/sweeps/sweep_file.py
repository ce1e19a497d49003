"""Read a W&B sweep file; entries that need a server are refused by name."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detseg.config.node import nested
from detseg.config.own_files import near_own, path_or_own
from detseg.config.yaml_file import parse_plain_yaml
from detseg.errors import ConfigError, all_problems
from detseg.files.plain_yaml import read_text
from detseg.sweeps.metrics import PROGRAMS, Metric, read_metric
from detseg.sweeps.parameters import Parameter, read_parameters

METHODS = ("grid", "random", "bayes")
KNOWN = (
    *("program", "command", "method", "metric", "parameters", "early_terminate", "run_cap"),
    *("name", "description", "project", "entity"),
)
# W&B's default for a file without a command.
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
# The macros that `macro_words` replaces, and `${args_json_file}`.
MACROS = (
    *("args", "args_no_hyphens", "args_no_equals", "args_no_boolean_flags", "args_json", "args_json_file"),
    *("args_append_hydra", "args_override_hydra"),
)
_BEFORE_PROGRAM = ("${env}", "${interpreter}", "/usr/bin/env", "env", "python", "python3")


@dataclass(frozen=True)
class Halving:
    """Hyperband's early stopping: after 1, eta, eta^2, ... times `first` values only the best 1/eta continue."""

    first: int
    eta: int


@dataclass(frozen=True)
class SweepFile:
    """A sweep. words: arguments of the command after its program, with macros. text: of the file."""

    path: Path
    program: str
    words: tuple[str, ...]
    method: str
    metric: Metric
    parameters: tuple[Parameter, ...]
    halving: Halving | None
    run_cap: int | None
    text: str

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def searched(self) -> list[Parameter]:
        """The parameters with more than one value."""
        return [parameter for parameter in self.parameters if not parameter.is_constant]

    def grid_points(self) -> int | None:
        """Return the number of trials of a grid; None for other methods."""
        if self.method != "grid":
            return None
        return math.prod(len(parameter.grid() or ()) for parameter in self.searched)

    def grid_point(self, number: int) -> dict[str, Any]:
        """Return the samples of a trial of a grid; the last parameter changes fastest."""
        axes = [parameter.grid() or () for parameter in self.searched]
        point = next(itertools.islice(itertools.product(*axes), number, None))
        return dict(zip((parameter.name for parameter in self.searched), point, strict=True))

    def command(self, values: Mapping[tuple[str, ...], Any], json_file: Path) -> list[str]:
        """Return the arguments after the program, with the values of a trial formatted as by W&B's agent."""
        words: list[str] = []
        for word in self.words:
            macro = word[2:-1] if word.startswith("${") and word.endswith("}") else ""
            words += macro_words(macro, nested(values), json_file) if macro in MACROS else [word]
        return words


def macro_words(macro: str, values: Mapping[str, Any], json_file: Path) -> list[str]:
    """Return W&B's replacement for a macro; values: by their outermost names."""
    if macro == "args_json":
        return [json.dumps(values)]
    if macro == "args_json_file":
        return [str(json_file)]
    if macro == "args_no_equals":
        return [word for name, value in values.items() for word in (f"--{name}", str(value))]
    start = {"args_no_hyphens": "", "args_append_hydra": "+", "args_override_hydra": "++"}.get(macro, "--")
    words = []
    for name, value in values.items():
        if macro == "args_no_boolean_flags" and isinstance(value, bool):
            words += [f"--{name}"] if value else []
        else:
            words.append(f"{start}{name}={value}")
    return words


def read_sweep_file(path: Path) -> SweepFile:
    """Read a sweep file, or one that comes with detseg by name (configs/sweeps/...).

    Raises:
        ConfigError: it is missing or invalid, needs a server, or no run of its program logs the metric. The message
            lists every such entry.
    """
    named, path = path, path_or_own(path)
    if not path.exists():
        raise ConfigError(f"{named}: there is no such sweep file{near_own(named)}")
    text = read_text(path)
    given = parse_plain_yaml(text, str(path))
    if not isinstance(given, Mapping):
        raise ConfigError(f"{path}: expected the sections of a sweep file: program, method, metric, parameters")
    problems: list[str] = [
        f"{name}: not supported without a server; expected: {', '.join(KNOWN)}"
        for name in map(str, given)
        if name not in KNOWN
    ]
    parts: dict[str, Any] = {}
    readers = {
        "command": _read_command,
        "method": _read_method,
        "parameters": lambda given: read_parameters(given.get("parameters"), "parameters"),
        "early_terminate": _read_halving,
        "run_cap": _read_run_cap,
    }
    for name, read in readers.items():
        try:
            parts[name] = read(given)
        except ConfigError as error:
            problems.append(str(error))
    if "command" in parts:
        try:
            parts["metric"] = read_metric(given.get("metric"), *parts["command"])
        except ConfigError as error:
            problems.append(str(error))
    for parameter in parts.get("parameters", ()) if given.get("method") == "grid" else ():
        if parameter.grid() is None:
            problems.append(f"parameters.{parameter.name}: a grid needs a finite number of values: list them")
    if problems:
        raise ConfigError(all_problems(str(path), [f"{path}: {text}" for text in problems]))
    program, words = parts["command"]
    return SweepFile(
        path, program, tuple(words), parts["method"], parts["metric"], tuple(parts["parameters"]),
        parts["early_terminate"], parts["run_cap"], text,
    )  # fmt: skip


def _read_command(given: Mapping[str, Any]) -> tuple[str, list[str]]:
    command = given.get("command", DEFAULT_COMMAND)
    if isinstance(command, str) or not isinstance(command, Sequence):
        raise ConfigError(f"command: expected a list of arguments, got {command!r}")
    words = [str(word) for word in command]
    start = next((i for i, word in enumerate(words) if word == "${program}" or _program(word) in PROGRAMS), None)
    if start is None:
        raise ConfigError(f"command: has no program; expected ${{program}}, or one of {', '.join(PROGRAMS)}")
    before = [word for word in words[:start] if word not in (*_BEFORE_PROGRAM, "detseg", "-m")]
    if before:
        raise ConfigError(f"command: {' '.join(before)} before the program is not supported: remove it")
    named = given.get("program") if words[start] == "${program}" else words[start]
    program = _program(str(named))
    if program not in PROGRAMS:
        raise ConfigError(
            f"program: {named}: not supported; expected {' or '.join(PROGRAMS)}, whose results are known; for fusions "
            "use tune_thresholds --fusion"
        )
    words = words[start + 1 :]
    macros = [word for word in words if re.fullmatch(r"\$\{.*\}", word)]
    unknown = [word for word in macros if word[2:-1] not in MACROS]
    if unknown:
        raise ConfigError(f"command: {', '.join(unknown)}: not supported; expected: {', '.join(MACROS)}")
    if not macros:
        raise ConfigError("command: it has no ${args...}, so all trials would be the same")
    return program, words


def _program(word: str) -> str:
    path = Path(word.replace("\\", "/"))
    stem = path.stem.replace("-", "_") if path.suffix in ("", ".py") else path.name
    return "train_net" if stem == "train" else stem


def _read_method(given: Mapping[str, Any]) -> str:
    method = given.get("method")
    if method not in METHODS:
        raise ConfigError(f"method: {method!r} not supported; expected: {', '.join(METHODS)}")
    return method


def _read_run_cap(given: Mapping[str, Any]) -> int | None:
    cap = given.get("run_cap")
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
        raise ConfigError(f"run_cap: expected a whole number of trials, got {cap!r}")
    return cap


def _read_halving(given: Mapping[str, Any]) -> Halving | None:
    """Parse W&B's `early_terminate`: trials are compared after min_iter, min_iter * eta, ... values of the metric, or
    after max_iter / eta^s, ..., max_iter / eta."""
    stop = given.get("early_terminate")
    if stop is None:
        return None
    where = "early_terminate"
    if not isinstance(stop, Mapping) or stop.get("type") != "hyperband":
        kind = stop.get("type") if isinstance(stop, Mapping) else stop
        raise ConfigError(f"{where}.type: {kind!r} not supported; expected hyperband")
    known = ("type", "min_iter", "max_iter", "s", "eta", "strict")
    if extra := [str(name) for name in stop if name not in known]:
        raise ConfigError(f"{where}: {', '.join(extra)}: unknown; expected: {', '.join(known)}")
    if stop.get("strict") is False:
        raise ConfigError(f"{where}.strict: False not supported: only the best 1/eta of trials continue")
    for name in ("min_iter", "max_iter", "s", "eta"):
        value = stop.get(name, 2)
        if isinstance(value, bool) or not isinstance(value, int) or value < (2 if name == "eta" else 1):
            raise ConfigError(f"{where}.{name}: expected a whole number, 1 or more (eta: 2 or more), got {value!r}")
    eta = stop.get("eta", 3)
    if ("min_iter" in stop) == ("max_iter" in stop) or ("s" in stop) != ("max_iter" in stop):
        raise ConfigError(f"{where}: expected either min_iter, or max_iter with s")
    first = stop["min_iter"] if "min_iter" in stop else stop["max_iter"] // eta ** stop["s"]
    if first < 1:
        raise ConfigError(f"{where}: max_iter {stop['max_iter']} / eta {eta} ^ s {stop['s']} is less than one value")
    return Halving(first, eta)
