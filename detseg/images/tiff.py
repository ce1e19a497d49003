"""TIFF files, whole or in parts: one plane with one or more channels, 1 to 64 bits; broken files are refused."""

from __future__ import annotations

import functools
import io
import logging
import math
import struct
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import Image

from detseg.errors import DataError
from detseg.images.pixel_source import REMEDY, PlaneSource, tell_orientation
from detseg.images.planes import UNNAMED_AXES, Getter
from detseg.structures.sample import FIELD, PixelSize, pixel_size_field

if TYPE_CHECKING:
    import tifffile


# Facts in a TIFF file: pixel size and channel names, from OME-XML, ImageJ's metadata and plain tags.

# Unit -> micrometres; "pixel" and "reference frame" are not units of length.
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
# Plain tags often have a print resolution: 72 to 1,200 dpi (353 to 21 micrometres) says nothing about a microscope.
_COARSEST_OF_TAGS = 20.0


def micrometres(unit: str | None) -> float | None:
    """Return the micrometres of a unit of length, None if it is not one."""
    return _MICROMETRES.get((unit or "").strip().lower())


def describe_tiff(file: tifffile.TiffFile, num_channels: int | None) -> dict[str, Any]:
    """Return `pixel_size` (micrometres: a number, or [y, x]) and `channel_names`, each only if the file has it.

    num_channels: of the image; a different number of names is ignored. None: it has no channel axis.
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
    """Parse the first image of an OME-XML text."""
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
    """Parse the resolution tags. factors: micrometres per unit for y and x; None: the tags have the unit."""
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


SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
# Remedy for label images.
LOSSY = "which changes the labels at object edges; save it losslessly (PNG, TIFF, NPY) from the source"
_JPEG = (6, 7, 34892, 33007)
# Bytes per value of every tag type.
_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
# Bytes of decoded strips and tiles that are cached, because neighbouring parts need them again.
_CACHE = 2**28


class TiffSource(PlaneSource):
    """One plane of a TIFF file, including BigTIFF, tiles, pyramids (full size), OME-TIFF and ImageJ.

    `facts` come from the file: `pixel_size`, `channel_names`, and `unnamed_pages`, the number of pages without a name
    that became channels.

    Args:
        data: the file's bytes, or the file mapped into memory.
        stream: the open file, if `data` is a map of it.
        name, fields: see PlaneSource.
        as_labels: do not apply a palette, nor invert an image in which white is 0.

    Raises:
        DataError: the file is truncated, or has several planes and none is chosen. Other exceptions of the decoders are
            passed on.
    """

    def __init__(
        self, data: Any, stream: BinaryIO | None, *, name: str, fields: Mapping[str, Any], as_labels: bool = False
    ) -> None:
        _check_directories(data)
        with ExitStack() as resources:
            # tifffile logs irregularities; here they are either errors that are raised, or irrelevant.
            logger, silence = logging.getLogger("tifffile"), logging.Filter("no logger")
            logger.addFilter(silence)
            resources.callback(logger.removeFilter, silence)
            # Other files of a multi-file OME-TIFF are not opened: missing ones would be black.
            file = resources.enter_context(tifffile.TiffFile(stream or io.BytesIO(data), _multifile=False))
            if not file.pages:
                raise DataError("the TIFF file has no image")
            _check_complete(file, len(data))
            if not as_labels:
                tell_orientation(file.pages[0].tags.valueof("Orientation"), name)
                if file.pages[0].photometric in (8, 9, 10):
                    raise DataError(
                        "the image has CIE L*a*b* colours (PhotometricInterpretation "
                        f"{int(file.pages[0].photometric)}), which are not supported; save it as RGB"
                    )
            if as_labels and file.pages[0].compression in _JPEG:
                raise DataError(f"the label image is compressed as JPEG, {LOSSY}")
            series = file.series[0]
            if any(other.shape == series.shape for other in file.series[1:]):
                raise DataError(f"the TIFF file has {len(file.series)} images; save every image as a separate file")
            super().__init__(_getter(series, data), series.shape, series.axes, name=name, fields=fields)
            channel = self.plane.channel
            self._page, self._as_labels = file.pages[0], as_labels
            self._has_alpha = self.num_channels in (2, 4) and _has_alpha(self._page)
            self.row_height = self._page.tilelength or 256
            self.facts = describe_tiff(file, self.num_channels if channel else None)
            if channel and channel in UNNAMED_AXES:
                self.facts["unnamed_pages"] = self.num_channels
            self.facts.update(fields)
            self.resources = resources.pop_all()

    def meaning(self, array: np.ndarray) -> np.ndarray:
        """See PlaneSource.meaning."""
        kind, colormap = self._page.photometric, self._page.colormap
        if not self._as_labels:
            if kind == tifffile.PHOTOMETRIC.PALETTE and colormap is not None and array.shape[2] == 1:
                return (colormap[:, array[:, :, 0]] >> 8).astype(np.uint8).transpose(1, 2, 0)
            if kind == tifffile.PHOTOMETRIC.SEPARATED and array.shape[2] == 4:
                return _to_rgb("CMYK", array)
            if kind == tifffile.PHOTOMETRIC.MINISWHITE and array.dtype.kind in "ub":
                array = ~array if array.dtype == bool else np.iinfo(array.dtype).max - array
            # The JPEG decoder has converted it to RGB.
            if kind == tifffile.PHOTOMETRIC.YCBCR and self._page.compression not in _JPEG and array.shape[2] == 3:
                return _to_rgb("YCbCr", array)
        return array[:, :, :-1] if self._has_alpha else array


def _has_alpha(page: tifffile.TiffPage) -> bool:
    """Whether the last channel is alpha: marked so, or an unspecified fourth one of RGB."""
    if not page.extrasamples:
        return False
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    if bits > 8 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        return False  # four recorded channels, (4, H, W), which tifffile marks as RGBA when writing
    kind = page.extrasamples[-1]
    return kind in (1, 2) or (page.photometric == tifffile.PHOTOMETRIC.RGB and page.samplesperpixel == 4)


def _to_rgb(mode: str, array: np.ndarray) -> np.ndarray:
    """Convert pixels (h, w, C) of a Pillow mode."""
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.dtype != np.uint8:
        raise DataError(f"{mode} of the type {array.dtype} is not supported; save the image as RGB")
    height, width = array.shape[:2]
    return np.array(Image.frombytes(mode, (width, height), array.tobytes()).convert("RGB"))


def _check_directories(data: Any) -> None:
    """Walk the chain of directories (one per page) and refuse a file if they or a tag's values extend beyond its end.

    Decoders silently end the chain there, and a stack of ten would pass for a single image.
    TIFF 6.0 section 2; BigTIFF has the same tables with 64-bit numbers.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    count_format, offset_format, entry_size = ("Q", "Q", 20) if big else ("H", "I", 12)
    offset_size = struct.calcsize("=" + offset_format)
    position, seen = struct.unpack_from(order + offset_format, data, 8 if big else 4)[0], set()
    try:
        while position:
            if position in seen:  # tifffile would loop forever
                raise DataError(f"the image's list of pages is circular; {REMEDY}")
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
            f"the image is truncated: its tables extend beyond its end ({len(data)} bytes); {REMEDY}"
        ) from None


def _check_complete(file: tifffile.TiffFile, size: int) -> None:
    """Refuse a file whose pixels extend beyond its end: decoders would leave them black."""
    for page in file.pages:
        ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if not ends or max(ends) > size or any(count == 0 for count in page.databytecounts):
            raise DataError(
                f"the image is truncated: its pixels extend to byte {max(ends, default=0)}, but the file has {size}; "
                f"{REMEDY}"
            )


def _getter(series: tifffile.TiffPageSeries, data: Any) -> Getter:
    """Return a function that reads the part of a series selected by an index, and no more of the file than needed."""
    if series.dataoffset is not None:  # uncompressed and contiguous
        dtype = np.dtype(series.dtype).newbyteorder(series.keyframe.parent.byteorder)

        def get(index: tuple[Any, ...]) -> np.ndarray:
            flat = np.frombuffer(data, dtype, count=math.prod(series.shape), offset=series.dataoffset)
            # A copy, so that nothing references the mapped file.
            return flat.reshape(series.shape)[index].astype(dtype.newbyteorder("="))

        return get
    page_shape = series.keyframe.shape
    front = series.shape[: len(series.shape) - len(page_shape)]
    is_stack = series.shape[len(front) :] == page_shape and len(series.pages) == math.prod(front)
    if is_stack and not any(page is None for page in series.pages):
        return _Pages(series, front).read
    whole = functools.cache(series.asarray)
    return lambda index: whole()[index]


class _Pages:
    """The pages of a series, indexed by its first axes with the lengths `front`; each is read whole or in parts."""

    def __init__(self, series: tifffile.TiffPageSeries, front: tuple[int, ...]) -> None:
        self._pages = series.pages
        self._numbers = np.arange(len(series.pages)).reshape(front)
        self._key = key = series.keyframe
        # (separate samples, depth, height, width, interleaved samples)
        self._shape = key.shaped
        self._is_planar = len(key.shape) > 2 and key.shape[0] == self._shape[0] and self._shape[0] > 1
        self._height = key.tilelength if key.is_tiled else min(key.rowsperstrip, key.imagelength)
        self._width = key.tilewidth if key.is_tiled else key.imagewidth
        self._down = math.ceil(key.imagelength / self._height)
        self._right = math.ceil(key.imagewidth / self._width)
        self._lock = threading.Lock()  # threads share one file position
        segment_bytes = self._height * self._width * self._shape[4] * key.dtype.itemsize
        self._segment = functools.lru_cache(max(_CACHE // segment_bytes, 1))(self._decode_segment)

    def read(self, index: tuple[Any, ...]) -> np.ndarray:
        """Return `series.asarray()[index]`; the index has slices for rows and columns."""
        count = self._numbers.ndim
        numbers = self._numbers[index[:count]]
        pages = [self._read_page(number, index[count:]) for number in numbers.ravel().tolist()]
        return np.stack(pages).reshape(*numbers.shape, *pages[0].shape)

    def _read_page(self, number: int, index: tuple[Any, ...]) -> np.ndarray:
        key = self._key
        places = index[1:3] if self._is_planar else index[:2]
        sides = (key.imagelength, key.imagewidth)
        rows, columns = (range(side)[one] for side, one in zip(sides, places, strict=True))
        if self._shape[1] != 1 or (len(rows), len(columns)) == sides:
            with self._lock:  # one call decodes strips in several threads
                return self._pages[number].asarray()[index]
        result = np.zeros((self._shape[0], len(rows), len(columns), self._shape[4]), dtype=key.dtype)
        for sample in range(self._shape[0]):
            for down in range(rows.start // self._height, math.ceil(rows.stop / self._height)):
                for right in range(columns.start // self._width, math.ceil(columns.stop / self._width)):
                    segment = self._segment(number, (sample * self._down + down) * self._right + right)
                    _paste(
                        result[sample], segment, down * self._height - rows.start, right * self._width - columns.start
                    )
        if self._is_planar:
            return result[:, :, :, 0][index[0]]
        pixels = result[0] if len(key.shape) > 2 else result[0, :, :, 0]
        return pixels[(slice(None), slice(None), *index[2:])]

    def _decode_segment(self, number: int, index: int) -> np.ndarray:
        """Decode one strip or tile, (height, width, samples)."""
        page, file = self._pages[number], self._key.parent.filehandle
        with self._lock:
            file.seek(page.dataoffsets[index])
            raw = file.read(page.databytecounts[index])
        tables = {}
        if self._key.compression in _JPEG:  # its tables are stored separately
            tables = {"jpegtables": page.jpegtables, "jpegheader": self._key.jpegheader}
        decoded, _, shape = self._key.decode(raw, index, **tables)
        return np.asarray(decoded).reshape(shape)[0]


def _paste(target: np.ndarray, segment: np.ndarray, y: int, x: int) -> None:
    """Paste a segment, clipped, into a target (h, w, C) with its upper left corner at (y, x)."""
    y0, x0 = max(y, 0), max(x, 0)
    y1, x1 = min(y + segment.shape[0], target.shape[0]), min(x + segment.shape[1], target.shape[1])
    if y1 > y0 and x1 > x0:
        target[y0:y1, x0:x1] = segment[y0 - y : y1 - y, x0 - x : x1 - x]
