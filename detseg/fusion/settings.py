"""What the settings files of this folder share: one value or one a class, YAML, messages that name file and key."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from detseg.errors import ConfigError, DataError
from detseg.structures.atomic_write import written_whole

PerClass = float | int | bool | None | Mapping[str, Any]
Settings = TypeVar("Settings")


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float, NaN and booleans excluded."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def checked_names(names: Any, source: str) -> tuple[str, ...]:
    """Return class names as a tuple. Raises DataError, naming `source`, where they are not different texts."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{source}: classes: expected a list of names, not {names!r}")
    if len(set(names)) < len(names):
        raise DataError(f"{source}: classes: expected different names, not {names!r}")
    return tuple(names)


def per_class_values(setting: PerClass, classes: np.ndarray, names: Sequence[str], source: str) -> np.ndarray:
    """Return a setting for every detection of classes (N,) int64, as (N,) float64; None becomes infinity."""
    if not isinstance(setting, Mapping):
        return np.full(len(classes), math.inf if setting is None else setting, dtype=np.float64)
    if len(classes) and classes.max() >= len(names):
        raise DataError(
            f"{source}: made for {len(names)} classes ({', '.join(names)}), but a prediction has the class "
            f"{classes.max()} (counted from 0); use the file of the model that made the predictions"
        )
    table = np.array([math.inf if setting[name] is None else setting[name] for name in names], dtype=np.float64)
    return table[classes]


def from_mapping(kind: type[Settings], settings: Any, source: str) -> Settings:
    """Make a frozen dataclass of settings with a field `source` from plain values.

    Raises DataError naming `source` and the key for anything unknown; the dataclass checks the values.
    """
    if not isinstance(settings, Mapping):
        raise DataError(f"{source}: expected a mapping of settings, not {type(settings).__name__}")
    known = [item.name for item in fields(kind) if item.name != "source"]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise DataError(f"{source}: unknown setting {unknown[0]!r}; there are: {', '.join(known)}")
    # `classes:` with nothing behind it is an empty list to whoever writes YAML.
    values = {key: value for key, value in settings.items() if not (key == "classes" and value is None)}
    return kind(source=source, **values)


def to_mapping(settings: Any, keys: Sequence[str]) -> dict[str, Any]:
    """Return plain values of the settings named by `keys`, as YAML can hold them."""
    result = {}
    for key in keys:
        value = getattr(settings, key)
        if isinstance(value, Mapping):
            value = dict(value)
        result[key] = list(value) if isinstance(value, tuple) else value
    return result


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """Read settings from words of the command line: KEY=VALUE, --KEY=VALUE or KEY VALUE; values are YAML.

    Raises ConfigError where a value is missing or no YAML; what keys there are is checked by whoever uses them.
    """
    settings = {}
    remaining = iter(words)
    for word in remaining:
        key, separator, value = word.removeprefix("--").partition("=")
        value = value if separator else next(remaining, None)
        try:
            settings[key] = yaml.safe_load(value or "")
        except yaml.YAMLError:
            value = None
        if not value:
            raise ConfigError(f"command line: {key} has no value that can be read; write {key}=VALUE")
    return settings


def read_settings(path: str | os.PathLike[str], what: str) -> Any:
    """Read YAML that holds settings; an empty file holds none. Raises DataError naming the file and `what` it is."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as {what}: {error}") from None
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: is no YAML: {' '.join(str(error).split())}") from None
    return {} if settings is None else settings


def write_settings(path: str | os.PathLike[str], settings: Mapping[str, Any], what: str) -> None:
    """Write settings as YAML, under a temporary name first."""
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    with written_whole(path, what) as temporary:
        temporary.write_text(text, encoding="utf-8")
