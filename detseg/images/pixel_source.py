"""Images of which parts are read: the pixels of a rectangle without those around it, where the file allows it."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from detseg.errors import DataError
from detseg.images.planes import PlaneChoice, axis_letters, choose_plane
from detseg.images.reading import MAX_CHANNELS, read_picture, to_image_type

if TYPE_CHECKING:
    from typing_extensions import Self

# Pixels of which the intensities of a whole image are measured; smaller images are measured whole.
OVERVIEW_PIXELS = 2**22


class PixelSource(ABC):
    """An image (height, width, channels), and what is known of it: `facts` as of `images.read_picture`.

    Use it as a context manager. `read` may be called from several threads.
    """

    name: str
    height: int
    width: int
    facts: dict[str, Any]
    # Slices ("Z") and points in time ("T") of the file, where there are several.
    stack: Mapping[str, int] = MappingProxyType({})
    # Reading along whole rows of this many pixels high is fastest.
    row_height: int = 512

    @abstractmethod
    def read(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        """Return (y1 - y0, x1 - x0, C) uint8, uint16 or float32. Raises DataError where the file is broken."""

    def close(self) -> None:  # noqa: B027  nothing to do where all is in memory
        """Let go of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def overview(self, pixels: int = OVERVIEW_PIXELS) -> np.ndarray:
        """Return every k-th pixel of every k-th row (h, w, C), about `pixels` of them; all where there are fewer."""
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
        return self._image[y0:y1, x0:x1]


class MissingCodecError(DataError):
    """A compression that only the package imagecodecs knows by parts."""


class PlaneSource(PixelSource):
    """One picture of an array of any axes, of which parts are read.

    get: returns what an index selects of it, in numbers of its own dtype. shape, axes: of the array, a letter an axis.
    fields: those of the image in a COCO file; `plane` chooses the picture.

    Raises:
        DataError: see `choose_plane`; or more channels than an image has.
    """

    def __init__(
        self, get: Any, shape: Sequence[int], axes: str, *, name: str, fields: Mapping[str, Any], facts: dict[str, Any]
    ) -> None:
        self.name = name
        self._get = get
        self._shape, self._axes = tuple(int(length) for length in shape), axes
        try:
            self._choice = PlaneChoice.from_fields(fields)
            self.letters = axis_letters(self._shape, axes, self._choice)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        pixel, self.channel_axis = self._picture(0, 0, 1, 1)
        self.height, self.width = (self._shape[self.letters.index(letter)] for letter in "YX")
        self.num_channels = pixel.shape[2] if pixel.ndim == 3 else 1
        if self.num_channels > MAX_CHANNELS or not self.height * self.width:
            raise DataError(
                f"{name}: expected an image of 1 to {MAX_CHANNELS} channels, found the shape {self._shape} with the "
                f"axes {self.letters}; name the axes with --axes"
            )
        self.stack = {
            letter: length
            for letter, length in zip(self.letters, self._shape, strict=True)
            if letter in "ZT" and length > 1
        }
        self.facts = {**facts, **fields}

    def _picture(self, y0: int, x0: int, y1: int, x1: int) -> tuple[np.ndarray, str]:
        """Pixels (h, w) or (h, w, C) of the array, and the letter of its channels."""
        places = {"Y": slice(y0, y1), "X": slice(x0, x1)}

        def get(index: tuple[Any, ...]) -> np.ndarray:
            return self._get(tuple(places.get(letter, one) for letter, one in zip(self.letters, index, strict=True)))

        try:
            return choose_plane(get, self._shape, self._axes, self._choice)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None
        # Decoders raise nearly anything for a broken file.
        except Exception as error:
            if "imagecodecs" in str(error):
                raise MissingCodecError(f"{self.name}: {error}; pip install imagecodecs") from None
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(
                f"{self.name}: rows {y0} to {y1}, columns {x0} to {x1} cannot be read ({reason}); copy or download the "
                "file again"
            ) from error

    def read(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        """See PixelSource.read."""
        array, _ = self._picture(y0, x0, y1, x1)
        array = array if array.ndim == 3 else array[:, :, None]
        return np.ascontiguousarray(to_image_type(self.finished(array), self.name))

    def finished(self, array: np.ndarray) -> np.ndarray:
        """Return pixels (h, w, C) as they are meant: a kind of file may turn or drop channels."""
        return array


def open_pixels(path: str | os.PathLike[str], fields: Mapping[str, Any] | None = None) -> PixelSource:
    """Open an image for reading parts: TIFF, Zarr and NPY; all others are read whole.

    fields: as of `images.read_picture`.

    Raises:
        DataError: as `read_picture`.
    """
    from detseg.images.tiff_source import is_tiff, open_tiff
    from detseg.images.zarr_source import is_zarr, open_zarr

    path, fields = Path(path), fields or {}
    if is_zarr(path):
        return open_zarr(path, fields)
    if path.suffix.lower() == ".npy" and path.is_file():
        return _open_npy(path, fields)
    if is_tiff(path):
        return open_tiff(path, fields)
    return ArraySource(*read_picture(path, fields), str(path))


def read_image_file(
    path: str | os.PathLike[str], fields: Mapping[str, Any] | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """`images.read_picture`, of Zarr too."""
    from detseg.images.size import check_size
    from detseg.images.zarr_source import is_zarr, open_zarr

    if not is_zarr(Path(path)):
        return read_picture(path, fields)
    source = open_zarr(Path(path), fields or {})
    try:
        check_size(source.height, source.width)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return source.read(0, 0, source.height, source.width), source.facts


def reads_parts(path: str | os.PathLike[str]) -> bool:
    """Whether `open_pixels` reads parts of this file without reading all of it."""
    from detseg.images.tiff_source import is_tiff
    from detseg.images.zarr_source import is_zarr

    path = Path(path)
    return is_zarr(path) or is_tiff(path) or (path.suffix.lower() == ".npy" and path.is_file())


def _open_npy(path: Path, fields: Mapping[str, Any]) -> PixelSource:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: the file is truncated or no array of numbers ({error})") from None
    axes = PlaneChoice.from_fields(fields).axes or "YXC"[: array.ndim]
    if array.dtype.kind not in "iubf" or len(axes) != array.ndim or array.ndim < 2:
        raise DataError(
            f"{path}: expected an array of numbers with the axes (height, width) or (height, width, channel), found "
            f"{array.dtype} of shape {array.shape}; name other axes with --axes"
        )
    return PlaneSource(lambda index: array[index], array.shape, axes, name=str(path), fields=fields, facts={})
