"""What a TIFF file says of itself: pixel size and names of channels, from OME-XML, ImageJ's text and plain tags."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from detseg.structures.pixel_size import FIELD, PixelSize, pixel_size_field

if TYPE_CHECKING:
    import tifffile

# Micrometres in a unit; "pixel" and "reference frame" are none.
_MICROMETRES = {
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "micrometer", "micrometre", "\\u00b5m"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
    **dict.fromkeys(("pm",), 1e-6),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
    **dict.fromkeys(("in", "inch"), 25_400.0),
}
_TAG_UNITS = {2: "inch", 3: "cm"}
# The plain tags are meant for printers: 72 to 1,200 dots an inch say nothing of a microscope (353 to 21 micrometres).
_COARSEST_OF_TAGS = 20.0


def micrometres(unit: str | None) -> float | None:
    """Return how many micrometres a unit of length has, None for what is no such unit."""
    return _MICROMETRES.get((unit or "").strip().lower())


def describe_tiff(file: tifffile.TiffFile, num_channels: int | None) -> dict[str, Any]:
    """Return `pixel_size` (micrometres: a number, or [y, x]) and `channel_names`, each only where the file says it.

    num_channels: of the picture; names of another number are left out. None: it has no axis of channels.
    """
    size, names = None, []
    if file.is_ome:
        size, names = _of_ome(file.ome_metadata or "")
    elif file.is_imagej:
        size, names = _of_imagej(file, num_channels)
    elif not file.is_lsm:
        size = _of_tags(file.pages[0], None)
    facts: dict[str, Any] = {} if size is None else {FIELD: pixel_size_field(size)}
    if num_channels is not None and len(names) == num_channels and all(names) and len(set(names)) == len(names):
        facts["channel_names"] = list(names)
    return facts


def _of_ome(xml: str) -> tuple[PixelSize | None, list[str]]:
    """Read the first image of an OME-XML text."""
    try:
        root = ElementTree.fromstring(xml.strip())
    except ElementTree.ParseError:
        return None, []
    pixels = next((node for node in root.iter() if _local(node.tag) == "Pixels"), None)
    if pixels is None:
        return None, []
    edges = []
    for letter in "YX":
        factor = micrometres(pixels.get(f"PhysicalSize{letter}Unit", "µm"))
        try:
            edge = float(pixels.get(f"PhysicalSize{letter}") or "") * (factor or 0.0)
        except ValueError:
            edge = 0.0
        edges.append(edge if math.isfinite(edge) and edge > 0 else None)
    names = [node.get("Name", "") for node in pixels if _local(node.tag) == "Channel"]
    y, x = edges
    return None if y is None and x is None else (y or x, x or y), names


def _local(tag: Any) -> str:
    return str(tag).rsplit("}", 1)[-1]


def _of_imagej(file: tifffile.TiffFile, num_channels: int | None) -> tuple[PixelSize | None, list[str]]:
    described = file.imagej_metadata or {}
    labels = described.get("Labels") or []
    names = [str(label).strip() for label in labels] if isinstance(labels, (list, tuple)) else []
    unit = str(described.get("unit") or "")
    y_unit = str(described.get("yunit") or unit)
    factors = (micrometres(y_unit), micrometres(unit))
    size = None if None in factors else _of_tags(file.pages[0], factors)
    return size, names if len(names) == num_channels else []


def _of_tags(page: tifffile.TiffPage, factors: Sequence[float] | None) -> PixelSize | None:
    """Read pixels a unit of length. factors: micrometres in the unit of y and x; None: the tags name it."""
    coarsest = math.inf
    if factors is None:
        unit = page.tags.valueof("ResolutionUnit")
        factor = micrometres(_TAG_UNITS.get(int(unit))) if isinstance(unit, int) else None
        if factor is None:
            return None
        factors, coarsest = (factor, factor), _COARSEST_OF_TAGS
    edges = []
    for name, factor in zip(("YResolution", "XResolution"), factors, strict=True):
        value = page.tags.valueof(name)
        if not isinstance(value, tuple) or len(value) != 2 or not value[0] or not value[1]:
            return None
        edges.append(factor * value[1] / value[0])
    return (edges[0], edges[1]) if 0 < max(edges) <= coarsest else None
