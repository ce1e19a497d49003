"""What each engine implements, as a table of docs/engines.md, made from what the engines' own checks read."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detseg.config.keys import OWN_KEYS
from detseg.config.schema import DIFFERENCES, default_values, detectron2_defaults, kinds
from detseg.engines.detectron2_keys import REFUSED, implements
from detseg.engines.native_keys import HONOURED, IMPLEMENTED_VALUES, is_honoured
from detseg.errors import ConfigError

_YES, _NO = "yes", "no"


def engine_rows() -> Iterator[tuple[str, str, str]]:
    """Yield (keys, native, detectron2) wherever an engine does not take all legal values; `SECTION.*` for all below."""
    whole = {key: (_verdict(is_honoured(key)), _verdict(implements(key))) for key in default_values()}
    limited = {key: _limits(key, *pair) for key, pair in whole.items() if key in IMPLEMENTED_VALUES or key in REFUSED}
    for name, pair in sorted({**_collapsed(whole, limited), **limited}.items()):
        if pair != (_YES, _YES):
            yield name, *pair


def _verdict(honoured: bool) -> str:
    return _YES if honoured else _NO


def _limits(key: str, native: str, detectron2: str) -> tuple[str, str]:
    """What is taken of a key whose values are limited; names of parts are those of Detectron2's registries there."""
    values = IMPLEMENTED_VALUES.get(key)
    if values is not None:
        native = ", ".join(_code(value) for value in values)
        detectron2 = "what Detectron2 takes" if key.startswith("MODEL.") else native
    if key == "MODEL.IMPORTS":
        detectron2 = _YES
    if key in REFUSED:
        but = ", ".join(f"{_code(value)} ({reason})" for value, reason in REFUSED[key].items())
        detectron2 = f"{detectron2} but {but}"
    return native, detectron2


def _collapsed(verdicts: Mapping[str, Any], limited: Mapping[str, Any]) -> dict[str, Any]:
    """One name for a whole section whose keys all have one verdict."""
    names: dict[str, Any] = {}
    for key, verdict in verdicts.items():
        if key in limited:
            continue
        name = key
        for count in range(1, key.count(".") + 1):
            section = ".".join(key.split(".")[:count]) + "."
            inside = {
                verdicts[other] if other not in limited else None for other in verdicts if other.startswith(section)
            }
            if inside == {verdict}:
                name = section + "*"
                break
        names[name] = verdict
    return names


def _code(value: Any) -> str:
    return "`" + (repr(value) if not isinstance(value, str) else f'"{value}"') + "`"


# The tables of docs/configuration.md and docs/engines.md, made from the keys.
#
#     python -m detseg.engines.document docs/configuration.md docs/engines.md
#
# A test compares the file with what this makes, so that it cannot go stale.

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
