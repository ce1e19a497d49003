"""Generate the tables of docs/configuration.md and docs/engines.md from the declarations of the keys and options.

    python -m detseg.engine.document docs/configuration.md docs/engines.md

A test compares the files with the generated tables.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from detseg.config.keys import OWN_KEYS
from detseg.config.options import Rule
from detseg.config.schema import DIFFERENCES, default_values, detectron2_defaults, kinds
from detseg.detectron2.keys import DETECTRON2_ONLY, REFUSED, implements
from detseg.engine.validation import EVALUATION, TRAINING
from detseg.engines.validation import EngineOptions
from detseg.errors import ConfigError
from detseg.inference.validation import PREDICTION
from detseg.models.table import ARCHITECTURES, ModelOptions, options_of

_BLOCK = re.compile(r"(<!-- table: (?P<name>[a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_SHARED = (EngineOptions, ModelOptions, *PREDICTION, *EVALUATION, *TRAINING)


def own_keys_table() -> str:
    """Return all keys that Detectron2 does not have: name, default, type, explanation."""
    rows = (
        (f"`{name}`", _code(key.default), kinds()[name].describe(), key.explanation)
        for name, key in sorted(OWN_KEYS.items())
    )
    return _table(("key", "default", "type", "what it does"), rows)


def differences_table() -> str:
    """Return Detectron2's keys with a different default here, with the reason."""
    theirs = detectron2_defaults()
    rows = ((f"`{each.name}`", _code(theirs[each.name]), _code(each.default), each.reason) for each in DIFFERENCES)
    return _table(("key", "Detectron2", "detseg", "why"), rows)


def native_table() -> str:
    """Return Detectron2's keys that the native engine reads: their values, and for which models."""
    shared = {key: rule for options in _SHARED for key, rule in options.rules().items()}
    rows: dict[tuple[str, str], list[str]] = {}
    for key, rule in shared.items():
        rows.setdefault((key, _legal(rule)), []).append("all")
    for name in ARCHITECTURES:
        for key, rule in options_of(name).rules().items():
            if key not in shared:
                rows.setdefault((key, _legal(rule)), []).append(f"`{name}`")
    order = list(default_values())
    lines = (
        (f"`{key}`", values, ", ".join(names))
        for (key, values), names in sorted(rows.items(), key=lambda row: order.index(row[0][0]))
        if key in detectron2_defaults()
    )
    return _table(("key", "values", "architectures"), lines)


def engines_table() -> str:
    """Return what each engine implements, for keys that differ; `SECTION.*` for all keys below it."""
    rows = ((f"`{name}`", native, detectron2) for name, native, detectron2 in engine_rows())
    return _table(("key", "native", "detectron2"), rows)


def engine_rows() -> Iterator[tuple[str, str, str]]:
    """Yield (key or `SECTION.*`, native values, Detectron2 values) for `engines_table`."""
    rules = {key: rule for options in _SHARED for key, rule in options.rules().items()}
    for name in ARCHITECTURES:  # the first has precedence: its keys are Detectron2's
        rules = options_of(name).rules() | rules
    rules |= options_of("GeneralizedRCNN").rules()
    verdicts = {key: _verdict(key, rules.get(key)) for key in default_values()}
    for name, pair in sorted(_collapsed(verdicts).items()):
        if pair != ("yes", "yes"):
            yield name, *pair


def _verdict(key: str, rule: Rule | None) -> tuple[str, str]:
    native = detectron2 = "no" if rule is None else "yes"
    if key.startswith(("MODEL.", "SOLVER.", "SEMI.")) or key in DETECTRON2_ONLY:
        is_loops = key.startswith("SOLVER.") and key in detectron2_defaults()  # shared by both engines, like data keys
        detectron2 = detectron2 if is_loops else "yes" if implements(key) else "no"
    if rule is not None and (rule.registry or rule.detectron2):
        native = ", ".join(_code(value) for value in rule.choices or ())
        detectron2 = "what Detectron2 takes"
    if key == "MODEL.IMPORTS":
        native = _code([])
    if key in REFUSED:
        excepted = ", ".join(f"{_code(value)} ({reason})" for value, reason in REFUSED[key].items())
        detectron2 = f"{detectron2}, except {excepted}"
    return native, detectron2


def _collapsed(verdicts: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Merge a section whose keys all have the same yes or no into one row."""
    names: dict[str, Any] = {}
    for key, verdict in verdicts.items():
        name = key
        for count in range(1, key.count(".") + 1):
            section = ".".join(key.split(".")[:count]) + "."
            if {verdicts[other] for other in verdicts if other.startswith(section)} == {verdict}:
                name = section + "*"
                break
        names[name] = verdict
    return names


def _legal(rule: Rule) -> str:
    """Describe the valid values of a key, as far as its rule gives them."""
    words = []
    if rule.choices is not None:
        words.append(", ".join(_code(value) for value in rule.choices))
    for text, bound in (
        ("at least", rule.at_least),
        ("more than", rule.above),
        ("at most", rule.at_most),
        ("less than", rule.below),
    ):
        if bound is not None:
            words.append(f"{text} {bound:g}")
    if rule.length is not None:
        words.append(f"{rule.length} values")
    return "; ".join(words) or "any"


def fill_tables(text: str) -> str:
    """Replace the text between `<!-- table: NAME -->` and `<!-- end -->` by the table of that name.

    Raises:
        ConfigError: the text names a table that does not exist.
    """

    def fill(block: re.Match[str]) -> str:
        name = block["name"]
        if name not in _TABLES:
            raise ConfigError(f"no table {name!r}; there are {', '.join(_TABLES)}")
        return f"{block[1]}{_TABLES[name]()}{block[3]}"

    return _BLOCK.sub(fill, text)


_TABLES: dict[str, Callable[[], str]] = {
    "engines": engines_table,
    "own keys": own_keys_table,
    "differences": differences_table,
    "native": native_table,
}


def _code(value: Any) -> str:
    return "`" + (repr(value) if not isinstance(value, str) else f'"{value}"') + "`"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        file.write_text(fill_tables(file.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
