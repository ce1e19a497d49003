"""Zarr arrays (versions 2 and 3) and OME-Zarr images, read in parts. Needs the package zarr."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detseg.errors import DataError
from detseg.images.pixel_source import PlaneSource, readable
from detseg.images.planes import PlaneChoice
from detseg.images.size import ENVIRONMENT, max_pixels
from detseg.images.tiff import micrometres
from detseg.structures.sample import FIELD, pixel_size_field

_MARKS = (".zarray", ".zgroup", "zarr.json")
_LETTERS = {"t": "T", "c": "C", "z": "Z", "y": "Y", "x": "X", "s": "S"}


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group."""
    return os.path.isdir(path) and any((path / mark).is_file() for mark in _MARKS)


def open_zarr(path: Path, fields: Mapping[str, Any]) -> PlaneSource:
    """Open an array, or the full size of an OME-Zarr image (versions 0.1 to 0.5).

    Facts are the pixel size and channel names, if the image has them.

    Raises:
        DataError: zarr is not installed; the folder is another kind of group; see PlaneSource.
    """
    with readable(str(path)):
        try:
            import zarr
        except ImportError:
            raise DataError("reading Zarr needs the package zarr: pip install zarr") from None
        opened = zarr.open(str(path), mode="r")
        array, axes, facts = (opened, "", {}) if hasattr(opened, "shape") else _level_zero(opened)
        shape = tuple(array.shape)
        if len(shape) < 2 or array.dtype.kind not in "iubf":
            raise DataError(f"expected an image, found {array.dtype} of shape {shape}")
        # Reading one pixel unpacks a whole chunk, and a chunk of zeros takes only a few bytes in the file.
        chunk = math.prod(int(side) for side in array.chunks) * array.dtype.itemsize
        if chunk > 4 * max_pixels():
            raise DataError(
                f"its chunks of {tuple(array.chunks)} take {chunk} bytes each, the limit is {4 * max_pixels()}; "
                f"save it in smaller chunks, or set the environment variable {ENVIRONMENT}"
            )
        axes = axes or _guessed(shape, PlaneChoice.from_fields(fields).axes)
        source = PlaneSource(array.__getitem__, shape, axes, name=str(path), fields=fields)
        if len(facts.get("channel_names", ())) != source.num_channels:
            facts.pop("channel_names", None)
        source.facts = {**facts, **fields}
        source.row_height = max(int(array.chunks[source.plane.letters.index("Y")]), 256)
        return source


def _level_zero(group: Any) -> tuple[Any, str, dict[str, Any]]:
    """Return the full-size array, its axes and facts, from an OME-Zarr group."""
    attributes = dict(group.attrs)
    attributes = attributes.get("ome", attributes)
    scales = attributes.get("multiscales")
    if not scales:
        inside = ", ".join(sorted(group.array_keys())[:5]) or "no arrays"
        raise DataError(f"is a Zarr group but not an OME-Zarr image; give one of its arrays ({inside})")
    first = scales[0]
    level = first["datasets"][0]
    array = group[level["path"]]
    named = first.get("axes") or list("tczyx")[-len(array.shape) :]
    names = [axis["name"] if isinstance(axis, Mapping) else axis for axis in named]
    if len(names) != len(array.shape) or not all(name.lower() in _LETTERS for name in names):
        raise DataError(f"its axes are {names} of shape {tuple(array.shape)}; expected t, c, z, y, x")
    facts: dict[str, Any] = {}
    size = _pixel_size(named, names, level.get("coordinateTransformations") or ())
    if size is not None:
        facts[FIELD] = pixel_size_field(size)
    channels = (attributes.get("omero") or {}).get("channels") or ()
    labels = [str(channel.get("label") or "") for channel in channels]
    if labels and all(labels) and len(set(labels)) == len(labels):
        facts["channel_names"] = labels
    return array, "".join(_LETTERS[name.lower()] for name in names), facts


def _pixel_size(named: Sequence[Any], names: Sequence[str], transformations: Sequence[Any]) -> Any:
    scales = [one["scale"] for one in transformations if one.get("type") == "scale"]
    edges = []
    for letter in "yx":
        if letter not in names or not scales:
            return None
        axis = named[names.index(letter)]
        factor = micrometres(axis.get("unit")) if isinstance(axis, Mapping) else None
        if factor is None or not scales[0][names.index(letter)] > 0:
            return None
        edges.append(float(scales[0][names.index(letter)]) * factor)
    return edges[0], edges[1]


def _guessed(shape: Sequence[int], given: str) -> str:
    """Return axis letters for an array without names: (height, width), with RGB last or without; others need --axes."""
    if len(shape) == 2:
        return given if len(given) == 2 else "YX"
    if given:
        return given if len(given) == len(shape) else "?" * len(shape)
    if len(shape) == 3 and shape[2] in (1, 3, 4):
        return "YXS"
    raise DataError(
        f"does not name its axes, with the shape {tuple(shape)}; name them with --axes, such as CYX or TZYX"
    )
