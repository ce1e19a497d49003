"""The tables of docs/configuration.md and docs/engines.md, made from the keys.

    python -m detseg.config.document docs/configuration.md docs/engines.md

A test compares the file with what this makes, so that it cannot go stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from detseg.config.differences import DIFFERENCES
from detseg.config.engine_table import engine_rows
from detseg.config.keys import OWN_KEYS
from detseg.config.native_keys import HONOURED, IMPLEMENTED_VALUES
from detseg.config.schema import detectron2_defaults, kinds
from detseg.errors import ConfigError

_BLOCK = re.compile(r"(<!-- table: (?P<name>[a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def own_keys_table() -> str:
    """Every key that Detectron2 does not have: name, default, type, explanation."""
    rows = (
        (f"`{key.name}`", _code(key.default), kinds()[key.name].describe(), key.explanation)
        for key in sorted(OWN_KEYS, key=lambda key: key.name)
    )
    return _table(("key", "default", "type", "what it does"), rows)


def differences_table() -> str:
    """Every key of Detectron2's whose default is another one here, with the reason."""
    theirs = detectron2_defaults()
    rows = ((f"`{each.name}`", _code(theirs[each.name]), _code(each.default), each.reason) for each in DIFFERENCES)
    return _table(("key", "Detectron2", "detseg", "why"), rows)


def native_table() -> str:
    """Keys that the native engine honours, with the values that it implements where these are limited."""
    rows = []
    for name in HONOURED:
        limited = {key: values for key, values in IMPLEMENTED_VALUES.items() if _matches(key, name)}
        if name.endswith("*") or not limited:
            rows.append((f"`{name}`", "all legal ones"))
        rows += [(f"`{key}`", ", ".join(_code(value) for value in values)) for key, values in limited.items()]
    return _table(("key", "values"), rows)


def engines_table() -> str:
    """What each engine implements, where one does not take all legal values."""
    rows = ((f"`{name}`", native, detectron2) for name, native, detectron2 in engine_rows())
    return _table(("key", "native", "detectron2"), rows)


_TABLES: dict[str, Callable[[], str]] = {
    "engines": engines_table,
    "own keys": own_keys_table,
    "differences": differences_table,
    "native": native_table,
}


def fill_tables(text: str) -> str:
    """Replace what stands between `<!-- table: NAME -->` and `<!-- end -->` by the table of that name.

    Raises:
        ConfigError: the text names a table that does not exist.
    """

    def fill(block: re.Match[str]) -> str:
        name = block["name"]
        if name not in _TABLES:
            raise ConfigError(f"no table {name!r}; there are {', '.join(_TABLES)}")
        return f"{block[1]}{_TABLES[name]()}{block[3]}"

    return _BLOCK.sub(fill, text)


def _matches(key: str, pattern: str) -> bool:
    return key == pattern or (pattern.endswith("*") and key.startswith(pattern[:-1]))


def _code(value: Any) -> str:
    return "`" + (repr(value) if not isinstance(value, str) else f'"{value}"') + "`"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        file.write_text(fill_tables(file.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
