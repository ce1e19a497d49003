"""Pickles of model zoos, {"model": {name: array}, ...}, read without running anything that they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detseg.errors import WeightsError
from detseg.structures.safe_pickle import as_array, loads

__all__ = ["as_array", "read_pickle"]


def read_pickle(path: str | Path) -> Any:
    """Read a pickle of plain values and NumPy arrays; its strings of Python 2 are taken as latin1.

    Arrays and NumPy numbers in what comes back are to be taken out by `as_array`.

    Raises:
        WeightsError: the file cannot be read, is no pickle, is cut off, or holds anything else.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return loads(content)
    except Exception as error:  # a hostile file can make the machine fail in any way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{path}: not read as weights: {reason[:200]}. Expected a pickle of names and NumPy arrays, as model zoos "
            "ship them, and nothing else; is it cut off, or not what its name says? Take another copy of it"
        ) from error
