"""YAML files of plain values, and those that describe a task (a study, rounds of pseudo-labels) read as dataclasses.

The types of such a frozen dataclass say what its fields accept: str, bool, int, a non-negative float, a list of strings
(tuple[str, ...]), a mapping (Mapping[str, ...]) or another dataclass. Fields without a default are required. All
problems are reported at once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Protocol, TypeVar, get_args, get_origin, get_type_hints

from detseg.config.own_files import near_own, path_or_own
from detseg.config.yaml_file import parse_plain_yaml
from detseg.errors import ConfigError, DataError, count_problems, did_you_mean, list_problems
from detseg.files.reading import check_regular


class PlanFields(Protocol):
    """A dataclass with checks that its field types cannot express."""

    def problems(self) -> list[str]:
        """Return the problems of single values and of combinations of values."""


Plan = TypeVar("Plan", bound=PlanFields)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file of plain values. Raises DataError if it cannot be read."""
    return parse_plain_yaml(read_text(path), str(path))


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file. Raises DataError if it cannot be read."""
    check_regular(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the name
        raise DataError(f"{path}: cannot be read as text in UTF-8: {error}") from None


def load_plan(kind: type[Plan], named: str, expected: str, given: Mapping[str, Any]) -> Plan:
    """Load a file, or one of detseg's own by name, as a `kind`. expected: the kind of file, for the message.

    given: values of fields that the file lacks. Raises ConfigError with all problems, or if the file is missing;
    DataError if it cannot be read.
    """
    path = path_or_own(named)
    if not os.path.exists(path):
        raise ConfigError(f"{named}: there is no such file; expected {expected}{near_own(named)}")
    return parse_plan(kind, read_yaml(path), str(path), given)


def parse_plan(kind: type[Plan], content: Any, source: str, given: Mapping[str, Any]) -> Plan:
    """Build a `kind` from plain values. source: their origin, for messages. Raises ConfigError with all problems."""
    problems: list[str] = []
    plan = _read_fields(kind, content, "", problems, given)
    if plan is not None:
        problems = plan.problems()
    if problems:
        raise ConfigError(f"{source}: {count_problems(problems)}:\n{list_problems(problems)}")
    return plan


def near_name(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` with the nearest known name, or else a list of all of them."""
    known = list(known)
    return did_you_mean(name, known) or f"; there are {', '.join(known) or 'none'}"


def _read_fields(kind: type, content: Any, where: str, problems: list[str], given: Mapping[str, Any]) -> Any:
    """Return a `kind`, or None if anything is wrong; the problems are added to `problems`."""
    fields = {one.name: one for one in dataclasses.fields(kind) if one.name not in given}
    if not isinstance(content, Mapping):
        problems.append(f"{where or 'the file'}: expected settings by name: {', '.join(fields)}")
        return None
    count, prefix = len(problems), f"{where}." if where else ""
    unknown = [str(name) for name in content if name not in fields]
    problems += [f"{prefix}{name}: there is no such setting{near_name(name, fields)}" for name in unknown]
    hints, values = get_type_hints(kind), dict(given)
    for name, one in fields.items():
        if (value := content.get(name)) not in (None, ""):
            values[name] = _read_value(hints[name], value, f"{prefix}{name}", problems)
        elif one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            problems.append(f"{prefix}{name} is missing")
    return kind(**values) if len(problems) == count else None


def _read_value(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    if isinstance(hint, UnionType):
        hint = next((one for one in get_args(hint) if isinstance(value, get_origin(one) or one)), get_args(hint)[0])
    kind = get_origin(hint) or hint
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, value, where, problems, {})
    if kind is Any or (kind in (str, bool, int) and type(value) is kind):
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(value)
    if kind is tuple and isinstance(value, list) and all(isinstance(one, (str, int, float)) for one in value):
        return tuple(map(str, value))
    if kind is Mapping and isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        own = get_args(hint)[1]
        return {name: _read_value(own, one, f"{where}.{name}", problems) for name, one in value.items()}
    problems.append(f"{where} is {value!r:.100}; expected {_EXPECTED[kind]}")
    return None


_EXPECTED = {
    str: "a string",
    bool: "True or False",
    int: "a whole number",
    float: "a number from 0",
    tuple: "a list of strings",
    Mapping: "values by name",
}
