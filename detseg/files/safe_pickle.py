"""Pickles of plain values and NumPy arrays, read without running anything that they hold.

Model zoos ship {"model": {name: array}, ...}, Cellpose {"masks": array, ...}. A pickle is a program for a small
machine. Here that machine knows the instructions for plain values and containers, and seven names, all of NumPy arrays.
None of these names is NumPy's own function: each stands for a small class or function of this module that checks every
argument, so that a pickle cannot even call NumPy with arguments of its own.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

# The instructions that Python's pickler writes for plain values, containers and NumPy arrays.
_INSTRUCTIONS = frozenset(
    "PROTO FRAME STOP MARK EMPTY_DICT DICT EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "  # noqa: SIM905
    "SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET NONE "
    "NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_TUPLES = frozenset(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"))
# The largest zoo file has some 1,500 arrays of about 20 instructions. Beyond these numbers a file is made to exhaust
# memory: by a memo with holes, or by tuples nested so deep that hashing one overflows the stack.
_MOST_INSTRUCTIONS = 2_000_000
_MOST_TUPLES = 20_000
_NUMBER_TYPE = re.compile(r"[<>|=]?(f[248]|i[1248]|u[1248]|b1)")
_VALUE_TYPE = re.compile(r"[<>|=]?O[48]?")


def loads(content: bytes) -> Any:
    """Read a pickle of plain values and NumPy arrays; its strings of Python 2 are taken as latin1.

    Arrays and NumPy numbers in what comes back are to be taken out by `as_array`, arrays of Python values by `as_list`.

    Raises pickle.UnpicklingError for anything else, and whatever else a hostile file can make the machine fail with.
    """
    _check_instructions(content)
    return _Unpickler(io.BytesIO(content), encoding="latin1").load()


def _check_instructions(content: bytes) -> None:
    """Look at every instruction before any is carried out."""
    tuples = 0
    for instructions, (opcode, argument, position) in enumerate(pickletools.genops(content), start=1):
        tuples += opcode.name in _TUPLES
        if opcode.name not in _INSTRUCTIONS:
            raise pickle.UnpicklingError(f"the instruction {opcode.name} at byte {position} is not allowed")
        if opcode.name in ("PUT", "LONG_BINPUT") and argument > instructions:
            raise pickle.UnpicklingError(f"the memo's place {argument} at byte {position} is out of order")
        if instructions > _MOST_INSTRUCTIONS or tuples > _MOST_TUPLES:
            raise pickle.UnpicklingError("more instructions than any file of arrays has")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _NAMES.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not allowed and was not run")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


class _NumberType:
    """Stands for numpy.dtype: numbers and booleans of a fixed size; None for Python values."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any, *_: Any) -> None:
        self.dtype: np.dtype | None = None
        if isinstance(name, str) and _VALUE_TYPE.fullmatch(name):
            return
        if not isinstance(name, str) or not _NUMBER_TYPE.fullmatch(name):
            raise pickle.UnpicklingError(f"arrays of {str(name)[:40]!r} are not allowed, numbers are")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subtype, names, fields, ...): of plain numbers the byte order alone is not empty
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
            raise pickle.UnpicklingError("a structured type of array is not allowed")
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"{str(state[1])[:20]!r} is no byte order")
        if self.dtype is not None:
            self.dtype = self.dtype.newbyteorder(state[1])


class _ArrayType:
    """Stands for numpy.ndarray, which zoo files only name."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("numpy.ndarray cannot be changed")


class _Array:
    """An array that numpy.ndarray.__setstate__ would fill. values: of an array of Python values, without its shape."""

    __slots__ = ("value", "values")

    def __init__(self) -> None:
        self.value = np.zeros(0, dtype=np.int8)
        self.values: list[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise pickle.UnpicklingError("an array's content is malformed")
        shape, number_type, fortran, data = state[-4:]
        if isinstance(data, list) and isinstance(number_type, _NumberType) and number_type.dtype is None:
            self.values = data
            return
        self.value = _filled(data, number_type, shape, "F" if fortran else "C")


class _Function:
    """A function without attributes, which a pickle could set."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("functions cannot be changed")


def _filled(data: Any, number_type: Any, shape: Any, order: str) -> np.ndarray:
    data = data.encode("latin1") if isinstance(data, str) else data
    if (
        not isinstance(data, (bytes, bytearray))
        or not isinstance(number_type, _NumberType)
        or number_type.dtype is None
    ):
        raise pickle.UnpicklingError("an array's content is malformed")
    shape = (shape,) if isinstance(shape, int) else shape
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError("an array's shape is malformed")
    if math.prod(shape) * number_type.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"an array of shape {shape} does not have {len(data)} bytes")
    array = np.frombuffer(data, dtype=number_type.dtype).reshape(shape, order=order)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _reconstruct(array_type: Any, *_: Any) -> _Array:
    if array_type is not _NDARRAY:
        raise pickle.UnpicklingError("arrays of other classes than numpy.ndarray are not allowed")
    return _Array()


def _scalar(number_type: Any, data: Any) -> Any:
    return _filled(data, number_type, (), "C")[()]


def _frombuffer(data: Any, number_type: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _filled(data, number_type, shape, "F" if order == "F" else "C")
    return array


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("_codecs.encode is allowed for bytes alone")
    return text.encode("latin1")


_NDARRAY = _ArrayType()
_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _NumberType,
    ("_codecs", "encode"): _Function(_encode),
}
for _core in ("numpy.core", "numpy._core"):
    _NAMES[f"{_core}.multiarray", "_reconstruct"] = _Function(_reconstruct)
    _NAMES[f"{_core}.multiarray", "scalar"] = _Function(_scalar)
    _NAMES[f"{_core}.numeric", "_frombuffer"] = _Function(_frombuffer)


def as_array(value: Any) -> np.ndarray | None:
    """Return what `loads` put in the place of an array of numbers or a number, None for anything else."""
    if isinstance(value, _Array) and value.values is None:
        return value.value
    if isinstance(value, np.generic):
        return np.asarray(value)
    return None


def as_list(value: Any) -> list[Any] | None:
    """Return the elements of what `loads` put in the place of an array of Python values, None for anything else."""
    return value.values if isinstance(value, _Array) else None
