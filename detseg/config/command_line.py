"""Parse configuration keys and values on the command line, including all forms that W&B's agents write."""

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
# The file to which an agent writes the values of ${args_json_file}.
_AGENT_FILE = re.compile(r"(^|[/\\])sweep-[^/\\]+[/\\]config-[^/\\]+\.json$")
_LARGEST_FILE = 1_000_000  # bytes


def parse_overrides(words: Sequence[Any], known: Schema | None = None) -> list[Setting]:
    """Parse keys and values from command-line arguments.

    Accepts `KEY VALUE`, `KEY=VALUE` and `--KEY=VALUE`, and the expanded macros of a W&B sweep's command: `+KEY=VALUE`,
    `--KEY` for a boolean that is True (${args_no_boolean_flags}), a JSON argument or the path of a JSON file
    (${args_json}, ${args_json_file}), and `SECTION={'KEY': VALUE}` for nested parameters. None means an empty text or
    list for keys of these types, and an integral float (400.0) an integer for integer keys.

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
    """Return keys and values as command-line arguments for `parse_overrides`."""
    return [word for key, value in settings.items() for word in (key, str(value))]


def agent_values(word: str) -> dict[str, Any] | None:
    """Return the values in a JSON argument, or in an agent's JSON file that it names; None for any other argument.

    Raises ConfigError if the file cannot be read.
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
        return  # checked together with its value
    if key.lower().endswith((".yaml", ".yml")):
        raise ConfigError(f"{COMMAND_LINE}: {key} is not a key; to name a configuration, use --config {key}")
    if key not in known.kinds:
        raise ConfigError(f"{COMMAND_LINE}: {unknown_key_message(key, known)}")
    if key == IMPORTS_KEY:
        raise ConfigError(f"{COMMAND_LINE}: {key} is read from configuration files only: add it to yours")


def _is_bool(word: Any) -> bool:
    return str(word).lower() in ("true", "false", "0", "1")


def _flat(mapping: Mapping[str, Any], known: Schema, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys with their values, descending into sections."""
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
    """Convert integral floats, and lists of them, to integers, since sweeps send 400.0 for 400; else `otherwise`."""
    if isinstance(value, (list, tuple)):
        return [whole_numbers(element, element) for element in value]
    return int(value) if isinstance(value, float) and value.is_integer() else otherwise
