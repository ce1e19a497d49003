"""Choose one plane of a file with more axes: a slice or a maximum projection, a time point; never by guessing.

Axes have tifffile's letters: Y, X; C channels; S samples of a pixel (RGB); Z slices; T time points; Q and I pages
without a meaning in the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.errors import DataError

FIELD = "plane"
PROJECTION = "max"

_CHANNEL_AXES = "CS"
UNNAMED_AXES = "QI"
_GIVEN_AXES = re.compile(r"[ZTCYXS]{2,5}")

# Returns the selection by an index with one entry per axis, a number or slice(None).
Getter = Callable[[tuple[Any, ...]], np.ndarray]


@dataclass(frozen=True)
class PlaneChoice:
    """The plane of an image in its file; in a COCO file the image's field `plane`: {"z": 3, "t": 0, "axes": "TZYX"}.

    scene: from 0, for files with several images (`microscopes`); None if there is one.

    z: slice, from 0, or "max" for a maximum projection; None if there is one. t: time point, from 0; None if there is
    one. axes: letters of the file's axes (Z, T, C, Y, X, S), without those of length 1, for a file that does not name
    them or names them wrongly; "": those of the file.
    """

    z: int | str | None = None
    t: int | None = None
    axes: str = ""
    scene: int | None = None

    def __post_init__(self) -> None:
        if self.z not in (None, PROJECTION) and not _is_index(self.z):
            raise DataError(f"the slice z is {self.z!r}; expected a whole number from 0, or {PROJECTION}")
        if self.t is not None and not _is_index(self.t):
            raise DataError(f"the time point t is {self.t!r}; expected a whole number from 0")
        if self.scene is not None and not _is_index(self.scene):
            raise DataError(f"the scene is {self.scene!r}; expected a whole number from 0")
        letters = self.axes
        is_axes = isinstance(letters, str) and _GIVEN_AXES.fullmatch(letters) and len(set(letters)) == len(letters)
        if letters != "" and not (is_axes and {"Y", "X"} <= set(letters)):
            raise DataError(f"the axes are {letters!r}; expected letters of ZTCYXS, each once, such as CYX or TZYX")

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> PlaneChoice:
        """Parse the field `plane` of a COCO image. Raises DataError if it is invalid."""
        plane = fields.get(FIELD) or {}
        if not isinstance(plane, Mapping) or not set(plane) <= {"z", "t", "axes", "scene"}:
            raise DataError(
                f'the image\'s field {FIELD} is {str(plane)[:80]!r}; expected {{"z": 3, "t": 0, "axes": "TZYX"}}'
            )
        return cls(**plane)

    @classmethod
    def from_texts(cls, z: str | None, t: str | None, axes: str | None, scene: str | None = None) -> PlaneChoice:
        """Parse command-line values. Raises DataError if they are invalid."""
        return cls(_number(z), _number(t), (axes or "").upper(), _number(scene))

    def fields(self) -> dict[str, Any]:
        """Return the field for a COCO image, only with what is chosen; {} without a choice."""
        chosen = {"z": self.z, "t": self.t, "axes": self.axes or None, "scene": self.scene}
        plane = {name: value for name, value in chosen.items() if value is not None}
        return {FIELD: plane} if plane else {}


# No choice, for a file with a single plane.
SINGLE = PlaneChoice()


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else text


@dataclass(frozen=True)
class Plane:
    """One plane of an array with more axes, and how its pixels are read.

    letters: of the array's axes. shape: of the array. index: a number for a chosen axis, slice(None) for one that is
    kept or projected. projected: position of the projected axis, or None. order: the axes Y, X and channels among those
    that are kept. channel: letter of the last one, "" without channels.
    """

    letters: str
    shape: tuple[int, ...]
    index: tuple[Any, ...]
    projected: int | None
    order: tuple[int, ...]
    channel: str

    def length(self, letter: str) -> int:
        """Return the length of an axis, 1 if the array lacks it."""
        return self.shape[self.letters.index(letter)] if letter and letter in self.letters else 1

    def read(self, get: Getter, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """Return pixels of the plane, (h, w) or (h, w, C). get: the array's `__getitem__`, or an equivalent."""
        places = {"Y": rows, "X": columns}
        index = [places.get(letter, one) for letter, one in zip(self.letters, self.index, strict=True)]
        array: np.ndarray | None = None
        if self.projected is None:
            array = np.asarray(get(tuple(index)))
        else:
            for number in range(self.shape[self.projected]):  # one slice in memory at a time
                index[self.projected] = number
                one = np.asarray(get(tuple(index)))
                array = one.copy() if array is None else np.maximum(array, one, out=array)
        return array.transpose(self.order)


def choose_plane(shape: Sequence[int], axes: str, choice: PlaneChoice) -> Plane:
    """Find one plane in an array with any axes. axes: one letter each, as in the file.

    Raises:
        DataError: slices or time points without a choice, or fewer than chosen; a choice among pages without a meaning;
            axes that are not those of an image.
    """
    shape = tuple(int(length) for length in shape)
    letters = _axis_letters(shape, axes, choice)
    index: list[Any] = [
        slice(None) if length > 1 or letter in "YX" else 0 for length, letter in zip(shape, letters, strict=True)
    ]
    projected = None
    for letter, name, option, chosen in (("Z", "slices", "z", choice.z), ("T", "time points", "t", choice.t)):
        position = letters.find(letter)
        count = shape[position] if position >= 0 else 1
        if count > 1 and chosen is None:
            projection = f", or --{option} {PROJECTION} for the maximum of all" if letter == "Z" else ""
            raise DataError(
                f"the file has {count} {name}; choose one with --{option} 0 to {count - 1}{projection} (in a COCO "
                f'file the image\'s field "{FIELD}": {{"{option}": 0}})'
            )
        if isinstance(chosen, int) and chosen >= count:
            raise DataError(f"{option} {chosen} is chosen, but the file has {count} {name} (0 to {count - 1})")
        if count > 1 and chosen == PROJECTION:
            projected = position
        elif count > 1:
            index[position] = chosen
    kept = "".join(
        letter
        for position, (letter, one) in enumerate(zip(letters, index, strict=True))
        if isinstance(one, slice) and position != projected
    )
    channel = kept.replace("Y", "").replace("X", "")
    is_picture = "Y" in kept and "X" in kept and (not channel or channel in tuple(_CHANNEL_AXES + UNNAMED_AXES))
    if not is_picture:
        raise DataError(
            f"the file has the axes {letters} with the shape {shape}; expected one plane (YX, or with channels CYX or "
            "YXS), and any number of slices (Z) and time points (T); name the axes with --axes (in a COCO file the "
            f'image\'s field "{FIELD}": {{"axes": "ZCYX"}}), or save every plane as a separate file'
        )
    if channel in tuple(UNNAMED_AXES) and (choice.z, choice.t) != (None, None):
        raise DataError(
            f"the file does not say what its {shape[letters.index(channel)]} pages are, so they count as channels and "
            "there are no slices or time points to choose from; if they are slices, give --axes ZYX (TYX for time "
            f'points; in a COCO file the image\'s field "{FIELD}": {{"axes": "ZYX"}})'
        )
    order = tuple(kept.index(letter) for letter in "YX" + channel)
    return Plane(letters, shape, tuple(index), projected, order, channel)


def _axis_letters(shape: Sequence[int], axes: str, choice: PlaneChoice) -> str:
    """Return a letter for every axis: from the file, or those given for the axes longer than 1."""
    if not choice.axes:
        return axes
    if len(choice.axes) == len(shape):
        return choice.axes
    long_ones = [length for length in shape if length > 1]
    if len(choice.axes) != len(long_ones):
        raise DataError(
            f"the axes are given as {choice.axes}, but the file has {len(long_ones)} (of shape {shape}); give one "
            "letter for each"
        )
    given = iter(choice.axes)
    return "".join(next(given) if length > 1 else "?" for length in shape)
