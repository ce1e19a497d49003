"""TIFF files: one picture of one or several channels, 1 to 64 bits, whole or refused."""

from __future__ import annotations

import io
import itertools
import logging
import math
import struct
import warnings
from collections.abc import Sequence
from typing import Any, BinaryIO
from xml.etree import ElementTree

import cv2
import numpy as np
import tifffile
from PIL import Image

from detseg.errors import DataError
from detseg.images.planes import UNNAMED_AXES, Getter, PlaneChoice, choose_plane
from detseg.images.size import check_size
from detseg.structures.pixel_size import FIELD, PixelSize, pixel_size_field

# Bytes of a value of every type of tag.
_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def read_tiff(
    data: Any, *, keep_indices: bool, choice: PlaneChoice, stream: BinaryIO | None = None
) -> tuple[np.ndarray, bool, dict[str, Any]]:
    """Decode one picture of a TIFF file, BigTIFF, tiles, pyramids (their full size), OME-TIFF and ImageJ included.

    Args:
        data: the file's bytes, or the file mapped into memory.
        keep_indices: do not apply a palette, nor turn an image in which white is 0.
        choice: which slice and point in time.
        stream: the open file, where `data` is a map of it.

    Returns:
        (H, W) or (H, W, C), of the file's own dtype; whether the last channel is alpha; and what the file says of the
        picture: `pixel_size`, `channel_names`, and `unnamed_pages`, how many pages without a name became channels.

    Raises:
        DataError: the file is cut off, or holds slices or points in time of which none is chosen. Other exceptions of
            the decoders pass through.
    """
    check_directories(data)
    # tifffile logs what it finds strange; here that either matters and is raised, or does not.
    logging.getLogger("tifffile").addFilter(silence)
    try:
        # Files that a multi-file OME-TIFF names are not looked for: what is missing would be black.
        with tifffile.TiffFile(stream or io.BytesIO(data), _multifile=False) as file:
            if not file.pages:
                raise DataError("the TIFF file holds no picture")
            page = file.pages[0]
            check_size(page.imagelength, page.imagewidth)
            check_complete(file, len(data))
            array, channel = _decode(file, data, choice)
            photometric = getattr(page, "photometric", None)
            colormap = page.colormap
            has_alpha = has_alpha_channel(page)
            facts = describe_tiff(file, array.shape[2] if channel else None)
    finally:
        logging.getLogger("tifffile").removeFilter(silence)
    if channel and channel in UNNAMED_AXES:
        facts["unnamed_pages"] = array.shape[2]
    if photometric == tifffile.PHOTOMETRIC.PALETTE and colormap is not None and not keep_indices and array.ndim == 2:
        return (colormap[:, array] >> 8).astype(np.uint8).transpose(1, 2, 0), False, facts
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE and not keep_indices and array.dtype.kind in "ub":
        array = ~array if array.dtype == bool else np.iinfo(array.dtype).max - array
    return array, has_alpha and array.ndim == 3 and array.shape[2] in (2, 4), facts


def silence(record: logging.LogRecord) -> bool:
    """A filter of tifffile's messages: what matters of them is raised."""
    return False


def has_alpha_channel(page: tifffile.TiffPage) -> bool:
    """Whether the last channel is alpha: marked so, or the unexplained fourth of RGB."""
    if not page.extrasamples:
        return False
    if _bits(page) > 8 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        return False  # four recorded channels, (4, H, W), for which tifffile guesses RGBA when it writes them
    kind = page.extrasamples[-1]
    return kind in (1, 2) or (page.photometric == tifffile.PHOTOMETRIC.RGB and page.samplesperpixel == 4)


def check_directories(data: bytes) -> None:
    """Walk the chain of directories (one a page) and refuse a file in which it or a tag's values lead behind the end.

    Decoders end the chain there without a word, and a stack of ten would pass for a single picture.
    TIFF 6.0 section 2; BigTIFF has the same tables with 64-bit numbers.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    count_format, offset_format, entry_size = ("Q", "Q", 20) if big else ("H", "I", 12)
    offset_size = struct.calcsize("=" + offset_format)
    position, seen = struct.unpack_from(order + offset_format, data, 8 if big else 4)[0], set()
    try:
        while position and position not in seen:
            seen.add(position)
            entries = struct.unpack_from(order + count_format, data, position)[0]
            position += struct.calcsize("=" + count_format)
            for index in range(entries):
                kind, count = struct.unpack_from(order + "H" + offset_format, data, position + index * entry_size + 2)
                size = _TAG_BYTES.get(kind, 1) * count
                at = position + index * entry_size + entry_size - offset_size
                if size > offset_size and struct.unpack_from(order + offset_format, data, at)[0] + size > len(data):
                    raise struct.error
            position = struct.unpack_from(order + offset_format, data, position + entries * entry_size)[0]
    except struct.error:
        raise DataError(
            f"the image is truncated: its tables reach behind its end ({len(data)} bytes); copy or download the file "
            "again, or take it out of the data set"
        ) from None


def check_complete(file: tifffile.TiffFile, size: int) -> None:
    """Refuse a file whose pixels lie behind its end: decoders would leave them black."""
    for page in file.pages:
        ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if not ends or max(ends) > size or any(count == 0 for count in page.databytecounts):
            raise DataError(
                f"the image is truncated: its pixels reach to byte {max(ends, default=0)}, the file has {size}; copy "
                "or download the file again, or take it out of the data set"
            )


def _decode(file: tifffile.TiffFile, data: Any, choice: PlaneChoice) -> tuple[np.ndarray, str]:
    """Return (H, W) or (H, W, C), and the letter of the axis of channels."""
    series = file.series[0]
    if len(file.series) > 1 and any(other.shape == series.shape for other in file.series[1:]):
        raise DataError(f"the TIFF file holds {len(file.series)} pictures; save every picture as a file of its own")
    if file.pages[0].photometric == tifffile.PHOTOMETRIC.SEPARATED:
        array, axes = _decode_by_library(data, 0, deep_color=False)
        return choose_plane(array.__getitem__, array.shape, axes, PlaneChoice())
    try:
        return choose_plane(_getter(series, data), series.shape, series.axes, choice)
    except ValueError as error:
        # LZW, JPEG and other compressions need a package that tifffile does not bring along.
        if "imagecodecs" not in str(error):
            raise
    deep_color = file.pages[0].samplesperpixel > 1 and _bits(file.pages[0]) > 8
    if len(series.pages) > 1:
        return choose_plane(_library_getter(series, data, deep_color), series.shape, series.axes, choice)
    array, axes = _decode_by_library(data, 0, deep_color=deep_color)
    return choose_plane(array.__getitem__, array.shape, axes, choice)


def _getter(series: tifffile.TiffPageSeries, data: Any) -> Getter:
    """Return what reads the pages that an index needs and no others."""
    if series.dataoffset is not None:
        dtype = np.dtype(series.dtype).newbyteorder(series.keyframe.parent.byteorder)
        flat = np.frombuffer(data, dtype, count=math.prod(series.shape), offset=series.dataoffset)
        array = flat.reshape(series.shape)
        # A copy, so that nothing holds on to the mapped file.
        return lambda index: array[index].astype(dtype.newbyteorder("="))
    if front_axes(series) is None:
        return series.asarray().__getitem__
    return lambda index: _read_pages(series, index, lambda number: series.pages[number].asarray())


def _library_getter(series: tifffile.TiffPageSeries, data: Any, deep_color: bool) -> Getter:
    if front_axes(series) is None:
        raise DataError("this compression of TIFF is not known here for stacks; save the file without compression")
    pages = {id(page): number for number, page in enumerate(series.keyframe.parent.pages)}
    numbers = [pages.get(id(page), page.index) for page in series.pages]
    return lambda index: _read_pages(
        series, index, lambda number: _decode_by_library(data, numbers[number], deep_color=deep_color)[0]
    )


def front_axes(series: tifffile.TiffPageSeries) -> tuple[int, ...] | None:
    """Return the lengths of the axes that count pages, or None where pages do not make up the series simply."""
    inner = series.keyframe.shape
    front = series.shape[: len(series.shape) - len(inner)]
    is_simple = series.shape[len(front) :] == inner and len(series.pages) == math.prod(front)
    return front if is_simple and not any(page is None for page in series.pages) else None


def _read_pages(series: tifffile.TiffPageSeries, index: tuple[Any, ...], read: Any) -> np.ndarray:
    """Return what `series.asarray()[index]` is, from the pages that it needs. read: page number -> array."""
    front = front_axes(series) or ()
    outer, inner = index[: len(front)], index[len(front) :]
    ranges = [range(count)[one] if isinstance(one, slice) else [one] for count, one in zip(front, outer, strict=True)]
    numbers = [int(np.ravel_multi_index(place, front)) if front else 0 for place in itertools.product(*ranges)]
    pages = [read(number)[inner] for number in numbers]
    lengths = [count for count, one in zip(front, outer, strict=True) if isinstance(one, slice)]
    return np.stack(pages).reshape(*lengths, *pages[0].shape)


def _bits(page: tifffile.TiffPage) -> int:
    bits = page.bitspersample
    return max(bits) if isinstance(bits, tuple) else int(bits)


def _decode_by_library(data: Any, number: int, *, deep_color: bool) -> tuple[np.ndarray, str]:
    """Decode page `number` of a compressed file through libtiff: in OpenCV colour of 16 bits, else in Pillow."""
    if deep_color:
        array = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED) if number == 0 else None
        if array is None or array.ndim != 3:
            raise DataError("this compression of TIFF is not known here; save the file without compression")
        return array[:, :, [2, 1, 0, 3][: array.shape[2]]], "YXS"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        image.seek(number)
        array = np.asarray(image.convert("RGB") if image.mode == "CMYK" else image)
    return array, "YX" if array.ndim == 2 else "YXS"


# What a TIFF file says of itself: pixel size and names of channels, from OME-XML, ImageJ and plain tags.

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
    edges = [_ome_length(pixels, letter) for letter in "YX"]
    names = [node.get("Name", "") for node in pixels if _local(node.tag) == "Channel"]
    return _square_where_one_is_missing(edges), names


def _local(tag: Any) -> str:
    return str(tag).rsplit("}", 1)[-1]


def _ome_length(pixels: ElementTree.Element, letter: str) -> float | None:
    factor = micrometres(pixels.get(f"PhysicalSize{letter}Unit", "µm"))
    return _length(pixels.get(f"PhysicalSize{letter}"), factor)


def _length(text: str | None, factor: float | None) -> float | None:
    try:
        value = float(text or "") * (factor or 0.0)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _square_where_one_is_missing(edges: Sequence[float | None]) -> PixelSize | None:
    y, x = edges
    return None if y is None and x is None else (y or x, x or y)


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
