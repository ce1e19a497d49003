"""What each engine implements, as a table of docs/engines.md, made from what the engines' own checks read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from detseg.config.detectron2_keys import REFUSED, implements
from detseg.config.native_keys import IMPLEMENTED_VALUES, is_honoured
from detseg.config.schema import default_values

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
