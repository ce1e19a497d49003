"""Settings that are read from YAML: each is one value, or one value a class; errors name the file and the key.

A subclass of `Settings` is a frozen dataclass whose fields are made by `setting`, with the rule of their legal values.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml
from typing_extensions import Self

from detseg.config.yaml_file import parse_plain_yaml
from detseg.errors import ConfigError, DataError
from detseg.files.atomic import written_whole
from detseg.files.reading import check_regular

PerClass = float | int | bool | None | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which values are legal, as a test and in words; `choices` where they can be listed."""

    test: Callable[[Any], bool]
    expected: str
    choices: tuple[str, ...] = ()


def one_of(*choices: str) -> Rule:
    return Rule(lambda value: value in choices, f"one of: {', '.join(choices)}", choices)


def number(
    expected: str, at_least: float = 0, at_most: float = sys.float_info.max, *, above: float = -1, or_none: bool = False
) -> Rule:
    """A number in bounds; infinity where `at_most` is; None where `or_none`."""

    def test(value: Any) -> bool:
        return (or_none and value is None) or (is_number(value) and at_least <= value <= at_most and value > above)

    return Rule(test, expected)


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float, NaN and booleans excluded."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


SWITCH = Rule(lambda value: isinstance(value, bool), "true or false")
FRACTION = number("a number from 0 to 1", 0, 1)
POWER = number("a power of 0 or more")


def setting(default: Any, rule: Rule, *, per_class: bool = False) -> Any:
    """Declare a field. per_class: it may be a mapping class name -> value, in which all classes are named."""
    return dataclasses.field(default=default, metadata={"rule": rule, "per_class": per_class})


class Settings:
    """Base of all settings. A subclass has the fields `classes`, the class names in their order, and `source`."""

    kind: ClassVar[str]
    classes: Sequence[str]
    source: str

    def __post_init__(self) -> None:
        names = self.classes
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{self.source}: classes: expected a list of names, not {names!r}")
        if len(set(names)) < len(names):
            raise DataError(f"{self.source}: classes: expected different names, not {names!r}")
        object.__setattr__(self, "classes", tuple(names))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            rule = field.metadata.get("rule")
            if rule is None:
                continue
            value = getattr(self, field.name)
            values = {field.name: value}
            if field.metadata["per_class"] and isinstance(value, Mapping):
                if set(value) != set(self.classes):
                    raise DataError(
                        f"{self.source}: {field.name} names the classes {', '.join(map(str, value)) or '(none)'}, "
                        "expected one value for each of: "
                        f"{', '.join(self.classes) or '(no classes are listed under `classes`)'}"
                    )
                values = {f"{field.name} of {name}": entry for name, entry in value.items()}
            for place, entry in values.items():
                if not rule.test(entry):
                    raise DataError(f"{self.source}: {place} is {entry!r}, expected {rule.expected}")

    @classmethod
    def choices(cls, key: str) -> tuple[str, ...]:
        """Return the legal values of a setting that has a list of them."""
        return cls.__dataclass_fields__[key].metadata["rule"].choices  # type: ignore[attr-defined]

    @classmethod
    def per_class_keys(cls) -> tuple[str, ...]:
        """Return the settings that may differ from class to class."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.metadata.get("per_class"))  # type: ignore[arg-type]

    def values(self, key: str, classes: np.ndarray) -> np.ndarray:
        """Return a setting for every detection of classes (N,) int64, as (N,) float64; None becomes infinity."""
        value = getattr(self, key)
        if not isinstance(value, Mapping):
            return np.full(len(classes), math.inf if value is None else value, dtype=np.float64)
        if len(classes) and classes.max() >= len(self.classes):
            raise DataError(
                f"{self.source}: made for {len(self.classes)} classes ({', '.join(self.classes)}), but a prediction "
                f"has the class {classes.max()} (counted from 0); use the file of the model that made the predictions"
            )
        table = [math.inf if value[name] is None else value[name] for name in self.classes]
        return np.array(table, dtype=np.float64)[classes]

    def for_classes(self, names: Sequence[str]) -> Self:
        """Return the settings for predictions with these class names, in their order: settings belong to names.

        Raises ConfigError where these settings are for other classes.
        """
        if not self.classes or list(self.classes) == list(names):
            return self
        if sorted(self.classes) != sorted(names):
            raise ConfigError(
                f"{self.source}: made for the classes {', '.join(self.classes)}, but the predictions have "
                f"{', '.join(names)}; use settings for these"
            )
        return dataclasses.replace(self, classes=tuple(names))  # type: ignore[type-var]

    @classmethod
    def from_dict(cls, settings: Any, source: str | None = None) -> Self:
        """Make from plain values. Raises DataError naming `source` and the key for anything unknown or illegal."""
        source = source or cls.kind
        if not isinstance(settings, Mapping):
            raise DataError(f"{source}: expected a mapping of settings, not {type(settings).__name__}")
        known = [field.name for field in dataclasses.fields(cls) if field.name != "source"]  # type: ignore[arg-type]
        unknown = [key for key in settings if key not in known]
        if unknown:
            raise DataError(f"{source}: unknown setting {unknown[0]!r}; there are: {', '.join(known)}")
        # `classes:` without a value is an empty list in YAML files as people write them.
        values = {key: value for key, value in settings.items() if not (key == "classes" and value is None)}
        return cls(source=source, **values)  # type: ignore[call-arg]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as YAML can hold them, that `from_dict` reads."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        del values["source"]
        return {
            key: dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read YAML; an empty file is all defaults. Raises DataError naming the file."""
        check_regular(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a NUL in the name
            raise DataError(f"{path}: cannot be read as {cls.kind}: {error}") from None
        settings = parse_plain_yaml(text, str(path))
        return cls.from_dict({} if settings is None else settings, source=str(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write YAML, under a temporary name first."""
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        with written_whole(path, f"the {self.kind}") as temporary:
            temporary.write_text(text, encoding="utf-8")


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """Read settings from words of the command line: KEY=VALUE, --KEY=VALUE or KEY VALUE; values are YAML.

    Raises ConfigError where a value is missing or no YAML; the keys are checked by `Settings.from_dict`.
    """
    settings = {}
    remaining = iter(words)
    for word in remaining:
        key, separator, value = word.removeprefix("--").partition("=")
        value = value if separator else next(remaining, None)
        try:
            settings[key] = parse_plain_yaml(value or "", "command line")
        except DataError:
            value = None
        if not value:
            raise ConfigError(f"command line: {key} has no value that can be read; write {key}=VALUE")
    return settings
