"""Images that can be read in parts: the pixels of a rectangle without the rest, if the file format allows it.

Pixels of an image are (height, width, channels), uint8, uint16 or float32, RGB if there are three channels.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.images.planes import Getter, PlaneChoice, choose_plane

logger = logging.getLogger(__name__)

# More channels than any microscope records at once: a larger last axis is a stack, or the channels are first.
MAX_CHANNELS = 32

# Number of pixels that suffices for the intensities of an image; smaller images are measured whole.
OVERVIEW_PIXELS = 2**22

REMEDY = "copy or download the file again, or remove it from the data set"


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Convert any exception of a decoder in the block to a DataError that starts with the name of the file."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    # Decoders raise all kinds of exceptions for broken files (struct.error, SyntaxError, zlib.error, ...).
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        remedy = "pip install imagecodecs" if "imagecodecs' package" in reason else REMEDY
        raise DataError(f"{name}: the image is truncated or unreadable ({reason}); {remedy}") from error


# The Orientation tag of EXIF and TIFF -> how viewers show the stored pixels.
_ORIENTATIONS = {
    2: "mirrored",
    3: "rotated by 180 degrees",
    4: "upside down and mirrored",
    5: "transposed",
    6: "rotated by 90 degrees clockwise",
    7: "transposed and rotated by 180 degrees",
    8: "rotated by 90 degrees counterclockwise",
}
_orientations_told: set[int] = set()


def tell_orientation(value: Any, name: str) -> None:
    """Warn of pixels that viewers show rotated or flipped, once per orientation."""
    if value in _ORIENTATIONS and value not in _orientations_told:
        _orientations_told.add(value)
        logger.warning(
            "%s: has the Orientation tag %d: viewers show it %s. Pixels are used as stored, and masks and boxes must "
            "refer to these; if they were drawn on the image as shown, save it rotated, without the tag (shown once "
            "for all images with this tag)",
            *(name, value, _ORIENTATIONS[value]),
        )


def to_image_type(array: np.ndarray) -> np.ndarray:
    """Return the array as uint8, uint16 or float32. Raises DataError for NaN and infinity.

    8 and 16 bits are kept, bool becomes 0 and 255, all other numbers become float32.
    """
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise DataError("the image has values that are not finite (NaN or infinity); replace them with numbers")
    return array


def as_image(array: np.ndarray) -> np.ndarray:
    """Return an array of the caller as (H, W, C) uint8, uint16 or float32. Raises DataError for anything else."""
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or 0 in array.shape:
        raise DataError(f"expected an image (height, width) or (height, width, channels), got the shape {array.shape}")
    if array.dtype in (np.uint8, np.uint16, np.float32):
        return array
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    raise DataError(f"expected an image of uint8, uint16 or float, got {array.dtype}; convert it to one of these")


class PixelSource(ABC):
    """An open image with its `facts`, as `read_picture` returns them.

    Use it as a context manager. `read` may be called from several threads.
    """

    name: str
    height: int
    width: int
    facts: dict[str, Any]
    # Number of slices ("Z") and time points ("T") of the file, if there are several.
    stack: Mapping[str, int] = MappingProxyType({})
    # Reading is fastest in full rows of this height.
    row_height: int = 512

    @abstractmethod
    def read(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        """Return (y1 - y0, x1 - x0, C) uint8, uint16 or float32. Raises DataError if the file is broken."""

    def close(self) -> None:  # noqa: B027  nothing to do for images in memory
        """Close the file."""

    def __enter__(self) -> PixelSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_all(self) -> np.ndarray:
        """Return the whole image, (height, width, C)."""
        return self.read(0, 0, self.height, self.width)

    def overview(self, pixels: int = OVERVIEW_PIXELS) -> np.ndarray:
        """Return every k-th pixel of every k-th row (h, w, C), about `pixels` of them; all if there are fewer."""
        step = math.ceil(math.sqrt(self.height * self.width / pixels))
        height = max(self.row_height // step, 1) * step
        rows = [
            self.read(y, 0, min(y + height, self.height), self.width)[::step, ::step].copy()
            for y in range(0, self.height, height)
        ]
        return np.concatenate(rows)


class ArraySource(PixelSource):
    """An image (H, W, C) in memory."""

    def __init__(self, image: np.ndarray, facts: Mapping[str, Any], name: str = "image") -> None:
        self.name = name
        self.height, self.width = image.shape[:2]
        self.facts = dict(facts)
        self._image = image

    def read(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        """See PixelSource.read."""
        return to_image_type(self._image[y0:y1, x0:x1])


class PlaneSource(PixelSource):
    """One plane of an array with any axes, which can be read in parts.

    Args:
        get: returns the selection of the array by an index, in its own dtype.
        shape, axes: of the array, one letter per axis.
        name: of the file, for messages.
        fields: of the image in a COCO file; `plane` chooses the plane.

    Raises:
        DataError: see `choose_plane`; or too many channels. The message does not start with the name, because files are
            opened inside `readable`.
    """

    def __init__(self, get: Getter, shape: Sequence[int], axes: str, *, name: str, fields: Mapping[str, Any]) -> None:
        self.name = name
        self.plane = choose_plane(shape, axes, PlaneChoice.from_fields(fields))
        self.height, self.width = self.plane.length("Y"), self.plane.length("X")
        self.num_channels = self.plane.length(self.plane.channel)
        self.stack = {letter: self.plane.length(letter) for letter in "ZT" if self.plane.length(letter) > 1}
        self.facts = dict(fields)
        self.resources = ExitStack()  # closed with the source
        self._get = get
        if 0 in (self.height, self.width, self.num_channels):
            raise DataError(
                f"the image has no pixels ({self.height} x {self.width}, {self.num_channels} channels); {REMEDY}"
            )
        if self.num_channels > MAX_CHANNELS:
            raise DataError(
                f"expected the axes (height, width, channel) with at most {MAX_CHANNELS} channels, found the shape "
                f"{self.plane.shape} with the axes {self.plane.letters}; move the channels to the last axis, name the "
                "axes with --axes, or save every plane of a stack as a separate file"
            )

    def read(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        """See PixelSource.read."""
        with readable(self.name):
            return np.ascontiguousarray(to_image_type(self.values(y0, x0, y1, x1)))

    def values(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        """Return pixels (h, w, C) of the file's own dtype. Call it inside `readable`."""
        array = self.plane.read(self._get, slice(y0, y1), slice(x0, x1))
        return self.meaning(array if array.ndim == 3 else array[:, :, None])

    def meaning(self, array: np.ndarray) -> np.ndarray:
        """Convert stored pixels (h, w, C) to their meaning: a format may have palettes, or channels to be dropped."""
        return array

    def close(self) -> None:
        """See PixelSource.close."""
        self.resources.close()
