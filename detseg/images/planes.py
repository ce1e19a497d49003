"""Which picture of a file with further axes: one slice or the brightest of all, one point in time, never a guess.

Axes have tifffile's letters: Y, X; C channels; S samples of a pixel (RGB); Z slices; T points in time; Q and I pages
that the file does not name.
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

# Returns what an index of one entry an axis, a number or slice(None), selects.
Getter = Callable[[tuple[Any, ...]], np.ndarray]


@dataclass(frozen=True)
class PlaneChoice:
    """What an image is of its file; in a COCO file the image's field `plane`: {"z": 3, "t": 0, "axes": "TZYX"}.

    scene: of a microscope's file with several images (`microscopes`), from 0 on; None where there is one.

    z: the slice, from 0 on, or "max" for the maximum over all of them; None where there is one. t: the point in time,
    from 0 on; None where there is one. axes: the letters of the file's axes (Z, T, C, Y, X, S), those of length 1 left
    out, for a file that does not name them or names them wrongly; "": as the file says.
    """

    z: int | str | None = None
    t: int | None = None
    axes: str = ""
    scene: int | None = None

    def __post_init__(self) -> None:
        if self.z not in (None, PROJECTION) and not _is_index(self.z):
            raise DataError(f"the slice z is {self.z!r}; expected a whole number from 0 on, or {PROJECTION}")
        if self.t is not None and not _is_index(self.t):
            raise DataError(f"the point in time t is {self.t!r}; expected a whole number from 0 on")
        if self.scene is not None and not _is_index(self.scene):
            raise DataError(f"the scene is {self.scene!r}; expected a whole number from 0 on")
        letters = self.axes
        is_axes = isinstance(letters, str) and _GIVEN_AXES.fullmatch(letters) and len(set(letters)) == len(letters)
        if letters != "" and not (is_axes and {"Y", "X"} <= set(letters)):
            raise DataError(f"the axes are {letters!r}; expected letters of ZTCYXS, each once, as CYX or TZYX")

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> PlaneChoice:
        """Read the field `plane` of a COCO image. Raises DataError where it makes no sense."""
        plane = fields.get(FIELD) or {}
        if not isinstance(plane, Mapping) or not set(plane) <= {"z", "t", "axes", "scene"}:
            raise DataError(
                f'the image\'s field {FIELD} is {str(plane)[:80]!r}; expected {{"z": 3, "t": 0, "axes": "TZYX"}}'
            )
        return cls(**plane)

    @classmethod
    def from_texts(cls, z: str | None, t: str | None, axes: str | None, scene: str | None = None) -> PlaneChoice:
        """Read what a user typed. Raises DataError where it makes no sense."""
        return cls(_number(z), _number(t), (axes or "").upper(), _number(scene))

    def fields(self) -> dict[str, Any]:
        """Return the field of a COCO image, what is not chosen left out; {} for no choice at all."""
        chosen = {"z": self.z, "t": self.t, "axes": self.axes or None, "scene": self.scene}
        plane = {name: value for name, value in chosen.items() if value is not None}
        return {FIELD: plane} if plane else {}


# No choice: of a file that holds one picture.
SINGLE = PlaneChoice()


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else text


@dataclass(frozen=True)
class Plane:
    """One picture in an array with further axes, and how its pixels are read.

    letters: of the array's axes. shape: of the array. index: a number for an axis that is chosen, slice(None) for one
    that is kept, and for the slices that are projected. projected: the position of these, or None. order: the axes Y, X
    and that of channels among those that are kept. channel: the letter of the last one, "" without channels.
    """

    letters: str
    shape: tuple[int, ...]
    index: tuple[Any, ...]
    projected: int | None
    order: tuple[int, ...]
    channel: str

    def length(self, letter: str) -> int:
        """Return the length of an axis, 1 for one that the array does not have."""
        return self.shape[self.letters.index(letter)] if letter and letter in self.letters else 1

    def read(self, get: Getter, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """Return pixels of the picture, (h, w) or (h, w, C). get: the array's `__getitem__`, or what does the same."""
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
    """Find one picture in an array of any axes. axes: a letter each, as the file names them.

    Raises:
        DataError: slices or points in time without a choice, or fewer than chosen; a choice among pages that nothing
            names; axes that are no picture's.
    """
    shape = tuple(int(length) for length in shape)
    letters = _axis_letters(shape, axes, choice)
    index: list[Any] = [
        slice(None) if length > 1 or letter in "YX" else 0 for length, letter in zip(shape, letters, strict=True)
    ]
    projected = None
    for letter, name, option, chosen in (("Z", "slices", "z", choice.z), ("T", "points in time", "t", choice.t)):
        position = letters.find(letter)
        count = shape[position] if position >= 0 else 1
        if count > 1 and chosen is None:
            projection = f", or --{option} {PROJECTION} for the maximum of all" if letter == "Z" else ""
            raise DataError(
                f"the file holds {count} {name}; choose one with --{option} 0 to {count - 1}{projection} (in a COCO "
                f'file the image\'s field "{FIELD}": {{"{option}": 0}})'
            )
        if isinstance(chosen, int) and chosen >= count:
            raise DataError(f"{option} {chosen} is chosen, but the file holds {count} {name} (0 to {count - 1})")
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
            f"the file has the axes {letters} of shape {shape}; expected one picture (YX, or with channels CYX or "
            "YXS) of any number of slices (Z) and points in time (T); name the axes with --axes (in a COCO file the "
            f'image\'s field "{FIELD}": {{"axes": "ZCYX"}}), or save every picture as a file of its own'
        )
    if channel in tuple(UNNAMED_AXES) and (choice.z, choice.t) != (None, None):
        raise DataError(
            f"the file does not say what its {shape[letters.index(channel)]} pages are, so they count as channels and "
            "there is no slice or point in time to choose; where they are slices, say so with --axes ZYX (TYX for "
            f'points in time; in a COCO file the image\'s field "{FIELD}": {{"axes": "ZYX"}})'
        )
    order = tuple(kept.index(letter) for letter in "YX" + channel)
    return Plane(letters, shape, tuple(index), projected, order, channel)


def _axis_letters(shape: Sequence[int], axes: str, choice: PlaneChoice) -> str:
    """Return a letter for every axis: the file's own, or those that were given for the axes longer than 1."""
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
