"""TIFF files: one picture of one or several channels, 1 to 64 bits, whole or refused."""

from __future__ import annotations

import io
import logging
import struct
import warnings

import cv2
import numpy as np
import tifffile
from PIL import Image

from detseg.data.image_size import check_size
from detseg.errors import DataError

# Axes by tifffile's letters: Y, X; S samples (RGB); C channels; I and Q pages without a name, taken for channels.
_CHANNEL_AXES = "SCIQ"
# Bytes of a value of every type of tag.
_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_STACK_AXES = {"Z": "slices", "T": "points in time"}


def read_tiff(data: bytes, *, keep_indices: bool) -> tuple[np.ndarray, bool]:
    """Decode a TIFF file.

    Returns:
        (H, W) or (H, W, C), of the file's own dtype, and whether the last channel is alpha. A palette is applied
        unless `keep_indices`; an image in which white is 0 is turned.

    Raises:
        DataError: the file is cut off, or holds a stack or a movie. Other exceptions of the decoders pass through.
    """
    _check_directories(data)
    # tifffile logs what it finds strange; here that either matters and is raised, or does not.
    logging.getLogger("tifffile").addFilter(_silence)
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            if not file.pages:
                raise DataError("the TIFF file holds no picture")
            page = file.pages[0]
            check_size(page.imagelength, page.imagewidth)
            _check_complete(file, len(data))
            array, axes = _decode(file, data)
            photometric = getattr(page, "photometric", None)
            colormap = page.colormap
            has_alpha = _has_alpha(page)
    finally:
        logging.getLogger("tifffile").removeFilter(_silence)
    array = _channels_last(array, axes)
    if photometric == tifffile.PHOTOMETRIC.PALETTE and colormap is not None and not keep_indices and array.ndim == 2:
        return (colormap[:, array] >> 8).astype(np.uint8).transpose(1, 2, 0), False
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE and not keep_indices and array.dtype.kind in "ub":
        array = ~array if array.dtype == bool else np.iinfo(array.dtype).max - array
    return array, has_alpha and array.ndim == 3 and array.shape[2] in (2, 4)


def _silence(record: logging.LogRecord) -> bool:
    return False


def _has_alpha(page: tifffile.TiffPage) -> bool:
    """Whether the last channel is alpha: marked so, or the unexplained fourth of RGB."""
    if not page.extrasamples:
        return False
    if _bits(page) > 8 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        return False  # four recorded channels, (4, H, W), for which tifffile guesses RGBA when it writes them
    kind = page.extrasamples[-1]
    return kind in (1, 2) or (page.photometric == tifffile.PHOTOMETRIC.RGB and page.samplesperpixel == 4)


def _check_directories(data: bytes) -> None:
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


def _check_complete(file: tifffile.TiffFile, size: int) -> None:
    """Refuse a file whose pixels lie behind its end: decoders would leave them black."""
    for page in file.pages:
        ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if not ends or max(ends) > size or any(count == 0 for count in page.databytecounts):
            raise DataError(
                f"the image is truncated: its pixels reach to byte {max(ends, default=0)}, the file has {size}; copy "
                "or download the file again, or take it out of the data set"
            )


def _decode(file: tifffile.TiffFile, data: bytes) -> tuple[np.ndarray, str]:
    series = file.series[0]
    if len(file.series) > 1 and any(other.shape == series.shape for other in file.series[1:]):
        raise DataError(f"the TIFF file holds {len(file.series)} pictures; save every picture as a file of its own")
    if file.pages[0].photometric == tifffile.PHOTOMETRIC.SEPARATED:
        return _decode_by_library(data, deep_color=False)
    try:
        return series.asarray(), series.axes
    except ValueError as error:
        # LZW, JPEG and other compressions need a package that tifffile does not bring along.
        if "imagecodecs" not in str(error):
            raise
    return _decode_by_library(data, deep_color=file.pages[0].samplesperpixel > 1 and _bits(file.pages[0]) > 8)


def _bits(page: tifffile.TiffPage) -> int:
    bits = page.bitspersample
    return max(bits) if isinstance(bits, tuple) else int(bits)


def _decode_by_library(data: bytes, *, deep_color: bool) -> tuple[np.ndarray, str]:
    """Decode the picture of a compressed file through libtiff: in OpenCV colour of 16 bits, else in Pillow."""
    if deep_color:
        array = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
        if array is None or array.ndim != 3:
            raise DataError("this compression of TIFF is not known here; save the file without compression")
        return array[:, :, [2, 1, 0, 3][: array.shape[2]]], "YXS"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        if getattr(image, "n_frames", 1) > 1:
            raise DataError(f"the TIFF file holds {image.n_frames} pictures; save every picture as a file of its own")
        array = np.asarray(image.convert("RGB") if image.mode == "CMYK" else image)
    return array, "YX" if array.ndim == 2 else "YXS"


def _channels_last(array: np.ndarray, axes: str) -> np.ndarray:
    """Return (H, W) or (H, W, C); axes of length 1 are dropped."""
    kept = [(letter, length) for letter, length in zip(axes, array.shape, strict=True) if letter in "YX" or length > 1]
    array = array.reshape([length for _, length in kept])
    letters = "".join(letter for letter, _ in kept)
    for letter, name in _STACK_AXES.items():
        if letter in letters:
            count = array.shape[letters.index(letter)]
            raise DataError(f"the TIFF file holds {count} {name}; save every picture as a file of its own")
    others = letters.replace("Y", "").replace("X", "")
    if "Y" not in letters or "X" not in letters or len(others) > 1 or (others and others not in _CHANNEL_AXES):
        raise DataError(f"the TIFF file has the axes {axes} of shape {array.shape}; expected one picture (YX or YXC)")
    if not others:
        return array if letters == "YX" else array.T
    order = (letters.index("Y"), letters.index("X"), letters.index(others))
    return array.transpose(order)
