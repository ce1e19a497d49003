"""TIFF files of which parts are read: mapped into memory where they are not compressed, else by strips or tiles.

What a file means (palette, white that is 0, alpha, names) is as in `detseg.images.tiff`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import mmap
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from detseg.errors import DataError
from detseg.images.pixel_source import ArraySource, MissingCodecError, PixelSource, PlaneSource
from detseg.images.planes import UNNAMED_AXES
from detseg.images.reading import read_picture
from detseg.images.tiff import check_complete, check_directories, describe_tiff, front_axes, has_alpha_channel, silence

_SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
# Decoded strips and tiles that are kept, bytes: neighbours need them again.
_CACHE = 2**28


def is_tiff(path: Path) -> bool:
    """Whether a file begins as TIFF or BigTIFF does."""
    try:
        with open(path, "rb") as file:
            return file.read(4) in _SIGNATURES
    except OSError:
        return False


def open_tiff(path: Path, fields: Mapping[str, Any]) -> PixelSource:
    """Open a TIFF file; one whose compression is not known by parts is read whole.

    Raises:
        DataError: as `read_picture`.
    """
    try:
        return TiffSource(path, fields)
    except MissingCodecError:
        return ArraySource(*read_picture(path, fields), str(path))


class TiffSource(PlaneSource):
    """See `open_tiff`."""

    def __init__(self, path: Path, fields: Mapping[str, Any]) -> None:
        logging.getLogger("tifffile").addFilter(silence)
        self._open = contextlib.ExitStack()
        self._open.callback(logging.getLogger("tifffile").removeFilter, silence)
        try:
            self._file = self._open.enter_context(_opened(path))
            series = self._file.series[0]
            if len(self._file.series) > 1 and any(other.shape == series.shape for other in self._file.series[1:]):
                raise DataError(
                    f"{path}: holds {len(self._file.series)} pictures; save every picture as a file of its own"
                )
            self._page = self._file.pages[0]
            if self._page.photometric == tifffile.PHOTOMETRIC.SEPARATED:
                raise MissingCodecError(f"{path}: CMYK")
            super().__init__(_getter(series, path), series.shape, series.axes, name=str(path), fields=fields, facts={})
            self._drops_alpha = has_alpha_channel(self._page) and self.num_channels in (2, 4)
            self.facts = {**self._described(), **fields}
            self.row_height = self._page.tilelength or 256
        except BaseException:
            self._open.close()
            raise

    def _described(self) -> dict[str, Any]:
        facts = describe_tiff(self._file, self.num_channels if self.channel_axis else None)
        if self.channel_axis and self.channel_axis in UNNAMED_AXES:
            facts["unnamed_pages"] = self.num_channels
        return facts

    def finished(self, array: np.ndarray) -> np.ndarray:
        """See PlaneSource.finished."""
        kind, colormap = self._page.photometric, self._page.colormap
        if kind == tifffile.PHOTOMETRIC.PALETTE and colormap is not None and array.shape[2] == 1:
            return (colormap[:, array[:, :, 0]] >> 8).astype(np.uint8).transpose(1, 2, 0)
        if kind == tifffile.PHOTOMETRIC.MINISWHITE and array.dtype.kind in "ub":
            array = ~array if array.dtype == bool else np.iinfo(array.dtype).max - array
        return array[:, :, :-1] if self._drops_alpha else array

    def close(self) -> None:
        """See PixelSource.close."""
        self._open.close()


def _opened(path: Path) -> tifffile.TiffFile:
    """Open a file whose tables and pixels are all there. Raises DataError where they are not."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            check_directories(data)
        opened = tifffile.TiffFile(path, _multifile=False)
        try:
            if not opened.pages:
                raise DataError("the TIFF file holds no picture")
            check_complete(opened, path.stat().st_size)
        except BaseException:
            opened.close()
            raise
        return opened
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: the image is truncated or unreadable ({reason})") from error


def _getter(series: tifffile.TiffPageSeries, path: Path) -> Any:
    """Return what reads the part of a series that an index selects."""
    if series.dataoffset is not None:
        dtype = np.dtype(series.dtype).newbyteorder(series.keyframe.parent.byteorder)
        mapped = np.memmap(path, dtype, "r", series.dataoffset, series.shape)
        return lambda index: np.array(mapped[index], dtype=dtype.newbyteorder("="))
    front = front_axes(series)
    if front is None:
        raise MissingCodecError(f"{path}: its pages are no simple stack")
    segments = _Segments(series)

    def get(index: tuple[Any, ...]) -> np.ndarray:
        outer, inner = index[: len(front)], index[len(front) :]
        ranges = [
            range(count)[one] if isinstance(one, slice) else [one] for count, one in zip(front, outer, strict=True)
        ]
        numbers = [int(np.ravel_multi_index(place, front)) if front else 0 for place in itertools.product(*ranges)]
        pages = [segments.read(number, inner) for number in numbers]
        lengths = [len(one) for one, asked in zip(ranges, outer, strict=True) if isinstance(asked, slice)]
        return np.stack(pages).reshape(*lengths, *pages[0].shape)

    return get


class _Segments:
    """The strips or tiles of the pages of a series, decoded where they are needed."""

    def __init__(self, series: tifffile.TiffPageSeries) -> None:
        self._pages = series.pages
        self._key = key = series.keyframe
        # (separate samples, depth, height, width, samples side by side)
        self._shape = key.shaped
        if self._shape[1] != 1:
            raise DataError("tiles with a depth are not known here; save every slice as a page")
        self._height = key.tilelength if key.is_tiled else min(key.rowsperstrip, key.imagelength)
        self._width = key.tilewidth if key.is_tiled else key.imagewidth
        self._down = math.ceil(key.imagelength / self._height)
        self._right = math.ceil(key.imagewidth / self._width)
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._bytes = 0

    def read(self, number: int, index: tuple[Any, ...]) -> np.ndarray:
        """Return what `page.asarray()[index]` is; of rows and columns the index has slices."""
        key = self._key
        is_planar = len(key.shape) > 2 and key.shape[0] == self._shape[0] and self._shape[0] > 1
        places = index[1:3] if is_planar else index[:2]
        rows, columns = (
            range(length)[one] for length, one in zip((key.imagelength, key.imagewidth), places, strict=True)
        )
        result = np.zeros((self._shape[0], len(rows), len(columns), self._shape[4]), dtype=key.dtype)
        for sample in range(self._shape[0]):
            for down in range(rows.start // self._height, math.ceil(rows.stop / self._height)):
                for right in range(columns.start // self._width, math.ceil(columns.stop / self._width)):
                    segment = self._segment(number, (sample * self._down + down) * self._right + right)
                    _paste(
                        result[sample], segment, down * self._height - rows.start, right * self._width - columns.start
                    )
        if is_planar:
            return result[:, :, :, 0][index[0]]
        pixels = result[0] if len(key.shape) > 2 else result[0, :, :, 0]
        return pixels[(slice(None), slice(None), *index[2:])]

    def _segment(self, number: int, index: int) -> np.ndarray:
        """Decode one strip or tile, (height, width, samples)."""
        with self._lock:
            found = self._held.get((number, index))
            if found is not None:
                self._held.move_to_end((number, index))
                return found
            page = self._pages[number]
            file = self._key.parent.filehandle
            file.seek(page.dataoffsets[index])
            raw = file.read(page.databytecounts[index])
        tables = {}
        if self._key.compression in (6, 7, 34892, 33007):  # JPEG keeps its tables apart
            tables = {"jpegtables": page.jpegtables, "jpegheader": self._key.jpegheader}
        decoded, _, shape = self._key.decode(raw, index, **tables)
        array = np.asarray(decoded).reshape(shape)[0]
        with self._lock:
            if (number, index) not in self._held:
                self._held[number, index] = array
                self._bytes += array.nbytes
            while self._bytes > _CACHE and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
        return array


def _paste(target: np.ndarray, segment: np.ndarray, y: int, x: int) -> None:
    """Put what fits of a segment into a target (h, w, C) whose upper left corner has the pixel (-y, -x) of it."""
    y0, x0 = max(y, 0), max(x, 0)
    y1, x1 = min(y + segment.shape[0], target.shape[0]), min(x + segment.shape[1], target.shape[1])
    if y1 > y0 and x1 > x0:
        target[y0:y1, x0:x1] = segment[y0 - y : y1 - y, x0 - x : x1 - x]
