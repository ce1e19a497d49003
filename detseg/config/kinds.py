"""The types of configuration values, and the conversion of given values to them.

A kind is a scalar type and the allowed depths of lists around it. Values follow yacs, as Detectron2's users know it:
text is literal-evaluated (``"(60000, 80000)"``, ``1e-3``), tuples and lists are equivalent, an integer is accepted for
a float; nothing else is converted.
"""

from __future__ import annotations

import ast
import json
import math
import reprlib
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_LARGEST_INTEGER = 2**63 - 1  # fits into a checkpoint's tensors and other programs
_LARGEST_EXACT = 2**53  # up to here every integer is exactly representable as a float
_LONGEST_LITERAL = 100_000  # characters; a longer text is not evaluated
_SCALAR_NAMES = {
    "bool": ("True or False", "booleans"),
    "int": ("an integer", "integers"),
    "float": ("a number", "numbers"),
    "number": ("a number", "numbers"),
    "str": ("a string", "strings"),
    "any": ("anything", "anything"),
    "plain": ("plain values", "entries"),
}
_DEEPEST_PLAIN = 40  # nesting of lists and sections

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 3


class WrongKindError(ValueError):
    """A value does not fit its key; the message has the form `got ..., expected ...`."""


@dataclass(frozen=True)
class Kind:
    """The type of a key's value.

    Attributes:
        scalar: "bool", "int", "float", "number" (a float that stays an integer if given as one), "str", "any", or
            "plain" for any YAML value, including sections and nested lists; its text is not evaluated.
        depths: allowed nesting of lists around the scalar: (0,) a scalar, (1,) a list, (1, 2) a list or list of lists.
        optional: whether None is valid.
    """

    scalar: str
    depths: tuple[int, ...] = (0,)
    optional: bool = False

    def describe(self) -> str:
        """Describe the expected value, for messages and documentation."""
        one, many = _SCALAR_NAMES[self.scalar]
        names = {0: one, 1: f"a list of {many}", 2: f"a list of lists of {many}"}
        words = " or ".join(names[depth] for depth in self.depths)
        return f"{words} or None" if self.optional else words


def kind_of_default(default: Any) -> Kind:
    """Derive the kind from a default value. Raises ValueError if that is impossible (None, an empty list)."""
    depth, value = 0, default
    while isinstance(value, (list, tuple)) and value:
        depth, value = depth + 1, value[0]
    name = type(value).__name__
    if name not in ("bool", "int", "float", "str"):
        raise ValueError(f"the kind of a default {default!r} must be declared")
    return Kind(name, (depth,))


def shorten(value: Any) -> str:
    """Return the repr of a value, shortened if long or deeply nested, since configurations may be untrusted."""
    return _short.repr(value)


def coerce(kind: Kind, value: Any, *, decode: bool) -> Any:
    """Convert `value` to `kind`; sequences become new lists.

    Args:
        decode: literal-evaluate text, for values from YAML and the command line.

    Raises:
        WrongKindError: the value does not fit.
    """
    if decode and isinstance(value, str):
        value = _decode_text(kind, value)
    if value is None and kind.optional:
        return None
    return _convert(kind, value, depth=0, decode=decode)


def literal(text: str) -> Any:
    """Evaluate a text as a Python literal, or return it unchanged if it is none."""
    if len(text) > _LONGEST_LITERAL:
        return text
    try:
        with warnings.catch_warnings():  # backslashes of Windows paths are "invalid escapes"
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


def list_of_words(kind: Kind, text: str) -> Any:
    """Parse a command-line argument for a key that takes a list of names, whose quotes the shell has removed.

    `[a, b]` is a list and `a` a list of one; anything else, and text for other keys, is returned unchanged.
    """
    if kind.depths != (1,) or kind.scalar not in ("str", "any") or isinstance(literal(text), (list, tuple, type(None))):
        return text
    names = [text.strip()]
    if text.strip()[:1] + text.strip()[-1:] in ("[]", "()"):
        names = [name.strip() for name in text.strip()[1:-1].split(",")]
    values = [(name, literal(name)) for name in names if name]
    return [value if kind.scalar == "any" or isinstance(value, str) else name for name, value in values]


def _decode_text(kind: Kind, text: str) -> Any:
    value = literal(text)
    if kind.scalar == "str" and kind.depths == (0,):
        is_number = isinstance(value, (int, float, complex)) and not isinstance(value, bool)
        return text if is_number else value  # a folder may be named 2018
    if isinstance(value, str):
        lowered = value.strip().lower()
        if kind.scalar == "bool" and lowered in ("true", "false"):
            return lowered == "true"
        if lowered[:1] == "[" and kind.scalar not in ("str", "any"):  # a JSON list, in which true is not Python's True
            with suppress(ValueError, RecursionError):
                return json.loads(lowered)
        if kind.optional and lowered in ("none", "null"):
            return None
    return value


def _convert(kind: Kind, value: Any, *, depth: int, decode: bool) -> Any:
    if kind.scalar == "plain" and depth == max(kind.depths):
        return _plain(kind, value)
    if isinstance(value, (list, tuple)):
        if depth + 1 > max(kind.depths):
            raise WrongKindError(_wrong(kind, value))
        if not value and depth + 1 in kind.depths:
            return []
        converted = [_convert(kind, element, depth=depth + 1, decode=decode) for element in value]
        if kind.scalar not in ("any", "plain") and len({isinstance(element, list) for element in converted}) > 1:
            raise WrongKindError(_wrong(kind, value))
        return converted
    if depth not in kind.depths:
        raise WrongKindError(_wrong(kind, value, wrap=depth == 0 and 1 in kind.depths))
    if decode and depth > 0 and isinstance(value, str) and kind.scalar not in ("str", "any"):
        value = literal(value)
    return _convert_scalar(kind, value)


def _plain(kind: Kind, value: Any, depth: int = 0) -> Any:
    """Copy nested plain values, with tuples as lists and section names as text."""
    if depth > _DEEPEST_PLAIN:
        raise WrongKindError(f"nested more than {_DEEPEST_PLAIN} levels deep")
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            raise WrongKindError(_wrong(kind, value))
        return {name: _plain(kind, element, depth + 1) for name, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(kind, element, depth + 1) for element in value]
    return None if value is None else _convert_scalar(Kind("any"), value)


def _convert_scalar(kind: Kind, value: Any) -> Any:
    scalar = kind.scalar
    if isinstance(value, bool):
        fits = scalar in ("bool", "any")
    elif isinstance(value, int):
        fits = scalar in ("int", "float", "number", "any") and abs(value) <= _LARGEST_INTEGER
        value = float(value) if fits and scalar == "float" else value
    elif isinstance(value, float):
        fits = scalar in ("float", "number", "any") and math.isfinite(value)
        # 32 and 32.0 are the same setting and must have the same hash
        is_whole = fits and value.is_integer() and abs(value) <= _LARGEST_EXACT
        value = int(value) if scalar == "number" and is_whole else value
    elif isinstance(value, str):
        fits = scalar in ("str", "any")
    else:
        fits = scalar == "any" and value is None
    if not fits:
        raise WrongKindError(_wrong(kind, value))
    return value


def _wrong(kind: Kind, value: Any, wrap: bool = False) -> str:
    remedy = ""
    if isinstance(value, float) and not math.isfinite(value):
        remedy = " (finite)"
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST_INTEGER:
        return "got an integer of more than 64 bits, expected a smaller one"
    elif value is None and kind.scalar == "str":
        remedy = ' (write "" for none)'
    elif kind.scalar == "str" and kind.depths == (0,):
        remedy = ' (quote it: "...")'
    elif wrap:
        remedy = f", such as [{shorten(value)}]"
    names = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "a list", tuple: "a list"}
    names |= {type(None): "nothing", dict: "a section"}
    name = names.get(type(value), f"a {type(value).__name__}")
    return f"got {shorten(value)} ({name}), expected {kind.describe()}{remedy}"
