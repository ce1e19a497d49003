"""Safe unpickling of plain values and NumPy arrays: no code of the file is run.

Model zoos publish {"model": {name: array}, ...}, Cellpose {"masks": array, ...}. A pickle is a program that makes plain
values and calls functions by name. Here it may name only the few functions with which NumPy stores arrays, and these
are replaced by functions of this module that check every argument: NumPy's own would allocate whatever size a file
claims.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

# The largest zoo file has some 1,500 arrays of about 20 instructions. A file beyond these limits is made to exhaust
# memory, or to overflow the stack when deeply nested tuples are hashed or freed.
_MOST_INSTRUCTIONS = 2_000_000
_MOST_TUPLES = 20_000
_NUMBERS = re.compile(r"[<>|=]?(f[248]|i[1248]|u[1248]|b1)")
_PYTHON_VALUES = re.compile(r"[<>|=]?O[48]?")


def loads(
    content: bytes | BinaryIO,
    allowed: Mapping[tuple[str, str], Any] | None = None,
    *,
    persistent_load: Callable[[Any], Any] | None = None,
    more_tuples: int = 0,
) -> Any:
    """Read a pickle of plain values and NumPy arrays; strings of Python 2 are decoded as latin1.

    Args:
        content: the pickle, or a file, which is read from its position to the end of the pickle.
        allowed: (module, name) -> replacement, instead of `ALLOWED`.
        persistent_load: resolves the pickle's persistent references; None: it must not have any.
        more_tuples: number of tuples allowed beyond the usual limit.

    `as_array` extracts arrays and NumPy scalars from the result, `as_list` arrays of Python objects.

    Raises pickle.UnpicklingError for anything else, and whatever else a malicious file makes the unpickler raise.
    """
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    begin, tuples = file.tell(), 0
    for count, (opcode, argument, position) in enumerate(pickletools.genops(file), start=1):
        tuples += opcode.name.startswith("TUPLE")
        # The memo is a table without gaps: the unpickler allocates it up to the largest index.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > count:
            raise pickle.UnpicklingError(f"the memo's place {argument} at byte {position} is out of order")
        # Registered extensions are resolved from a cache, bypassing `find_class`.
        if opcode.name.startswith("EXT"):
            raise pickle.UnpicklingError(f"the instruction {opcode.name} at byte {position} is not allowed")
        if count > _MOST_INSTRUCTIONS or tuples > _MOST_TUPLES + more_tuples:
            raise pickle.UnpicklingError("more instructions than any file of arrays has")
    size = file.tell() - begin
    file.seek(begin)
    return _Unpickler(file.read(size), ALLOWED if allowed is None else allowed, persistent_load).load()


def as_array(value: Any) -> np.ndarray | None:
    """Return the array or NumPy scalar in a result of `loads`, as an array; None for anything else."""
    if isinstance(value, _Array) and not isinstance(value.content, list):
        # Not while reading: a pickle can refer to the same bytes many times.
        return value.content.astype(value.content.dtype.newbyteorder("="), copy=False)
    return np.asarray(value) if isinstance(value, np.generic) else None


def as_list(value: Any) -> list[Any] | None:
    """Return the elements of an array of Python objects in a result of `loads`; None for anything else."""
    return value.content if isinstance(value, _Array) and isinstance(value.content, list) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, allowed: Mapping[tuple[str, str], Any], outside: Any) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._allowed, self._outside = allowed, outside
        # A pickle can encode the same text again and again.
        self._encoded, self._limit = 0, 4 * len(content)

    def persistent_load(self, reference: Any) -> Any:
        if self._outside is None:
            raise pickle.UnpicklingError("it refers to something that is not in it")
        return self._outside(reference)

    def _encode(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("_codecs.encode is allowed only for bytes")
        self._encoded += len(text)
        if self._encoded > self._limit:
            raise pickle.UnpicklingError("the same text is encoded many times")
        return text.encode("latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return Named(self._encode)
        # NumPy 2 renamed its package `core`.
        found = self._allowed.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not allowed and was not run")
        return found


class _DType:
    """Stand-in for numpy.dtype: numbers and booleans of a fixed size; `numbers` is None for Python objects."""

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or not (_NUMBERS.fullmatch(name) or _PYTHON_VALUES.fullmatch(name)):
            raise pickle.UnpicklingError(f"arrays of {str(name)[:40]!r} are not allowed, numbers are")
        self.numbers = np.dtype(name) if _NUMBERS.fullmatch(name) else None

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subtype, names, fields, ...): of plain numbers only the byte order is not empty
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
            raise pickle.UnpicklingError("a structured type of array is not allowed")
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"{str(state[1])[:20]!r} is not a byte order")
        if self.numbers is not None:
            self.numbers = self.numbers.newbyteorder(state[1])


class _Array:
    """Stand-in for numpy.ndarray. content: the array, or the list of its elements if these are Python objects."""

    def __init__(self, content: np.ndarray | list[Any]) -> None:
        self.content = content

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise pickle.UnpicklingError("an array's content is malformed")
        shape, dtype, fortran, data = state[-4:]
        if isinstance(data, list) and isinstance(dtype, _DType) and dtype.numbers is None:
            self.content = data
        else:
            self.content = _filled(data, dtype, shape, "F" if fortran else "C")


def _filled(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """Return an array on these bytes, without a copy."""
    if not isinstance(data, (bytes, bytearray, str)) or not isinstance(dtype, _DType) or dtype.numbers is None:
        raise pickle.UnpicklingError("an array's content is malformed")
    data = data.encode("latin1") if isinstance(data, str) else data  # Python 2's strings were bytes
    shape = (shape,) if isinstance(shape, int) else shape
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError("an array's shape is malformed")
    if math.prod(shape) * dtype.numbers.itemsize != len(data):
        raise pickle.UnpicklingError(f"an array of shape {shape} does not have {len(data)} bytes")
    return np.frombuffer(data, dtype=dtype.numbers).reshape(shape, order=order)


def _reconstruct(array_type: Any, *_: Any) -> _Array:
    if array_type is not ALLOWED["numpy", "ndarray"]:
        raise pickle.UnpicklingError("arrays of other classes than numpy.ndarray are not allowed")
    return _Array(np.zeros(0, dtype=np.int8))


class Named:
    """Replacement of an allowed name: a pickle can call it, but neither modify nor instantiate it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any] | None) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        if self._call is None:
            raise pickle.UnpicklingError("numpy.ndarray must not be called")
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("functions cannot be changed")


ALLOWED = {
    ("numpy", "ndarray"): Named(None),  # named by zoo files, never called
    ("numpy", "dtype"): Named(_DType),
    ("numpy.core.multiarray", "_reconstruct"): Named(_reconstruct),
    ("numpy.core.multiarray", "scalar"): Named(lambda dtype, data: _filled(data, dtype, (), "C")[()]),
    ("numpy.core.numeric", "_frombuffer"): Named(
        lambda data, dtype, shape, order: _Array(_filled(data, dtype, shape, "F" if order == "F" else "C"))
    ),
}
