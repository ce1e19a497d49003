"""Keys and values from the words of a command line, in all forms in which W&B's agents write them too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detseg.config.kinds import list_of_words, literal
from detseg.config.node import unknown_key_message
from detseg.config.old_versions import Setting
from detseg.config.schema import Schema, schema
from detseg.config.yaml_file import IMPORTS_KEY
from detseg.errors import ConfigError

COMMAND_LINE = "command line"
# What an agent writes the values of ${args_json_file} to.
_AGENT_FILE = re.compile(r"(^|[/\\])sweep-[^/\\]+[/\\]config-[^/\\]+\.json$")
_LARGEST_FILE = 1_000_000  # bytes


def parse_overrides(words: Sequence[Any], known: Schema | None = None) -> list[Setting]:
    """Read keys and values from the command line's words.

    `KEY VALUE`, `KEY=VALUE` and `--KEY=VALUE`; and what W&B makes of the macros of a sweep's command: `+KEY=VALUE`,
    `--KEY` for a switch that is on (${args_no_boolean_flags}), one word of JSON or a file of it (${args_json},
    ${args_json_file}), and `SECTION={'KEY': VALUE}` for parameters in parameters. None is an empty text or list for
    keys that take one, and a whole float (400.0) an integer for those that take integers.

    Raises:
        ConfigError: a key without a value, or an unknown key.
    """
    known = known or schema()
    settings: list[Setting] = []
    remaining = list(words)
    while remaining:
        word = str(remaining.pop(0))
        mapping = agent_values(word)
        if mapping is None:
            key, separator, value = re.sub(r"^(--|\+\+?)", "", word).partition("=")
            _check_key(key, known, separator or remaining)
            if not separator:
                is_switch = word.startswith("--") and key in known.kinds and known.kinds[key].scalar == "bool"
                if is_switch and not (remaining and _is_bool(remaining[0])):
                    value = "True"
                elif remaining:
                    value = remaining.pop(0)
                else:
                    raise ConfigError(f"{COMMAND_LINE}: {key} has no value; write {key} VALUE or {key}=VALUE")
            mapping = {key: value}
        for key, value in _flat(mapping, known):
            settings.append(Setting(key, value, COMMAND_LINE))
    return settings


def as_words(settings: Mapping[str, Any]) -> list[str]:
    """Return keys with their values as words of a command line, which `parse_overrides` reads."""
    return [word for key, value in settings.items() for word in (key, str(value))]


def agent_values(word: str) -> dict[str, Any] | None:
    """The values that a word holds as JSON, or names as an agent's file of JSON; None for any other word.

    Raises ConfigError where the file cannot be read.
    """
    text = word
    if _AGENT_FILE.search(word):
        try:
            with Path(word).open(encoding="utf-8") as file:
                text = file.read(_LARGEST_FILE)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{COMMAND_LINE}: {word}, the values of a W&B agent, cannot be read: {error}") from None
    try:
        values = json.loads(text) if text.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _check_key(key: str, known: Schema, has_value: Any) -> None:
    if key in known.sections and has_value:
        return  # judged with its value
    if key.lower().endswith((".yaml", ".yml")):
        raise ConfigError(f"{COMMAND_LINE}: {key} is not a key; to name a configuration, use --config {key}")
    if key not in known.kinds:
        raise ConfigError(f"{COMMAND_LINE}: {unknown_key_message(key, known)}")
    if key == IMPORTS_KEY:
        raise ConfigError(f"{COMMAND_LINE}: {key} is read from configuration files only: add it to yours")


def _is_bool(word: Any) -> bool:
    return str(word).lower() in ("true", "false", "0", "1")


def _flat(mapping: Mapping[str, Any], known: Schema, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values, sections taken apart."""
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        if key in known.sections:
            inner = literal(value) if isinstance(value, str) else value
            if not isinstance(inner, Mapping):
                raise ConfigError(f"{COMMAND_LINE}: {unknown_key_message(key, known)}")
            yield from _flat(inner, known, f"{key}.")
            continue
        _check_key(key, known, False)
        kind = known.kinds[key]
        is_none = value is None or (isinstance(value, str) and literal(value) is None)
        if is_none and not kind.optional and (kind.scalar == "str" or 0 not in kind.depths):
            value = "" if 0 in kind.depths else []
        if kind.scalar == "int":
            value = whole_numbers(literal(value) if isinstance(value, str) else value, value)
        yield key, list_of_words(kind, value) if isinstance(value, str) else value


def whole_numbers(value: Any, otherwise: Any) -> Any:
    """Whole floats, and lists of them, as integers: sweeps send 400.0 for 400. What is anything else: `otherwise`."""
    if isinstance(value, (list, tuple)):
        return [whole_numbers(element, element) for element in value]
    return int(value) if isinstance(value, float) and value.is_integer() else otherwise
