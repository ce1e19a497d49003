"""Read images and label images, whole or in parts: a file that cannot be read completely is always an error.

An image is (H, W, C), uint8, uint16 or float32, RGB if C = 3. Pixels are as stored in the file: an EXIF orientation is
not applied, since masks are drawn on the stored pixels, and COCO's `height` and `width` refer to them too. For a file
with slices or time points, the field `plane` of the COCO image chooses the plane.

Pillow reads everything but TIFF (tifffile), Zarr (zarr), vendor formats (`microscopes`), NPY (NumPy) and colour PNG of
16 bits, which Pillow reduces to 8 (OpenCV). OpenCV is not used for all, because up to version 4 it silently fills the
missing part of a truncated PNG.
"""

from __future__ import annotations

import dataclasses
import io
import math
import mmap
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from detseg.errors import DataError
from detseg.files.reading import check_regular
from detseg.images.microscopes import SUFFIXES as MICROSCOPES
from detseg.images.microscopes import has_reader, is_microscope_file, open_microscope_file
from detseg.images.pixel_source import REMEDY, PixelSource, PlaneSource, readable, tell_orientation
from detseg.images.planes import PROJECTION, SINGLE, PlaneChoice
from detseg.images.size import check_size
from detseg.images.tiff import LOSSY, TiffSource
from detseg.images.tiff import SIGNATURES as TIFF_SIGNATURES
from detseg.images.zarr_source import is_zarr, open_zarr

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy", *MICROSCOPES)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_image(path: str | os.PathLike[str], fields: Mapping[str, Any] | None = None) -> np.ndarray:
    """Read an image file of any of `SUFFIXES` (recognized by its content, except NPY), or a Zarr folder.

    fields: of the image in a COCO file; `plane` chooses a plane of a file with several.

    Returns:
        (H, W, C) uint8, uint16 or float32: C = 1 for grayscale, RGB for colour, without alpha. 8 and 16 bits are kept,
        bool becomes 0 and 255, all other numbers become float32. A palette is applied, CMYK becomes RGB.

    Raises:
        DataError: the file is missing, truncated, not an image, larger than `size.max_pixels`, has several images and
            none is chosen, or non-finite values.
    """
    return read_picture(path, fields)[0]


def read_picture(
    path: str | os.PathLike[str], fields: Mapping[str, Any] | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Read an image file as `read_image`, with facts about the image.

    Returns:
        The image, and its facts: `pixel_size` (micrometres: a number, or [y, x]), `channel_names` and `unnamed_pages`
        (pages without a name that were used as channels), if the file has them; `fields` override them.
    """
    with open_pixels(path, fields) as source:
        return _read_whole(source)


def stored_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of `read_picture` that a COCO file stores as image fields."""
    return {name: value for name, value in facts.items() if name != "unnamed_pages"}


def decode_image(data: bytes, name: str | os.PathLike[str], fields: Mapping[str, Any] | None = None) -> np.ndarray:
    """`read_image` from the bytes of a file. name: for messages; its suffix identifies NPY."""
    return decode_picture(data, name, fields)[0]


def decode_picture(
    data: bytes, name: str | os.PathLike[str], fields: Mapping[str, Any] | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """`read_picture` from the bytes of a file. name: for messages; its suffix identifies NPY."""
    with _opened(data, None, os.fspath(name), fields or {}) as source:
        return _read_whole(source)


def _read_whole(source: PixelSource) -> tuple[np.ndarray, dict[str, Any]]:
    with readable(source.name):
        check_size(source.height, source.width)
    return source.read_all(), source.facts


def read_label_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a label image: 0 is background, every other number is one object.

    Returns:
        (H, W) int32. The indices of a palette image are its labels.

    Raises:
        DataError: as `read_image`, or the file has colours, fractions, negative numbers or numbers beyond int32.
    """
    with _open_file(Path(path), {}, as_labels=True) as source:
        return _labels_of(source)


def decode_label_image(data: bytes, name: str | os.PathLike[str], plane: PlaneChoice = SINGLE) -> np.ndarray:
    """`read_label_image` from the bytes of a file.

    name: for messages; its suffix identifies NPY. plane: that of the image, also used for a file of several label
    images.
    """

    def read(choice: PlaneChoice) -> np.ndarray:
        with _opened(data, None, os.fspath(name), choice.fields(), as_labels=True) as source:
            return _labels_of(source)

    try:
        return read(SINGLE)  # a single label image for a stack or its projection
    except DataError:
        if plane == SINGLE:
            raise
    if plane.z == PROJECTION:
        read(dataclasses.replace(plane, z=0))
        raise DataError(
            f"{name}: has label images of several slices, which have no maximum projection; choose a slice with --z N, "
            "or give one label image for the projection"
        )
    return read(plane)


def _labels_of(source: PlaneSource) -> np.ndarray:
    with readable(source.name):
        check_size(source.height, source.width)
        array = source.values(0, 0, source.height, source.width)
        if array.shape[2] != 1:
            raise DataError(
                f"a label image has one number per pixel, but this one has {array.shape[2]} channels; save the object "
                "numbers as a grayscale PNG (16 bit), a TIFF or an NPY file"
            )
        array = array[:, :, 0]
        if array.dtype.kind == "f":
            if not np.array_equal(array, np.round(array)):
                raise DataError(f"a label image has whole numbers, but this one has fractions ({array.dtype})")
        elif array.dtype.kind not in "iub":
            raise DataError(f"a label image has whole numbers, not {array.dtype}")
        lowest, highest = array.min(), array.max()
        if lowest < 0 or highest > np.iinfo(np.int32).max:
            raise DataError(
                f"labels are between 0 (background) and 2147483647, these are between {lowest} and {highest}"
            )
        return np.ascontiguousarray(array, dtype=np.int32)


def open_pixels(path: str | os.PathLike[str], fields: Mapping[str, Any] | None = None) -> PixelSource:
    """Open an image to read parts of it; see `reads_parts`. It may exceed the size limit for whole images.

    fields: as in `read_picture`.

    Raises:
        DataError: as in `read_picture`; for TIFF and NPY, broken pixels are detected when they are read.
    """
    path = Path(path)
    if is_microscope_file(path):
        return open_microscope_file(path, fields or {})
    return open_zarr(path, fields or {}) if is_zarr(path) else _open_file(path, fields or {})


def reads_parts(path: str | os.PathLike[str]) -> bool:
    """Whether `open_pixels` can read parts of this file without reading all of it: Zarr, TIFF, NPY, CZI, LIF, ND2."""
    path = Path(path)
    if is_zarr(path):
        return True
    if is_microscope_file(path):
        return has_reader(path) and path.is_file()
    try:
        check_regular(path)
        with open(path, "rb") as file:
            return _is_mapped(path, file.read(4))
    except (OSError, ValueError, DataError):
        return False


def _is_mapped(path: Path, start: bytes) -> bool:
    return start[:4] in TIFF_SIGNATURES or path.suffix.lower() == ".npy"


def _open_file(path: Path, fields: Mapping[str, Any], *, as_labels: bool = False) -> PlaneSource:
    """Open a file; formats that are read in parts are mapped into memory."""
    with ExitStack() as stack:
        try:
            check_regular(path)
            file = stack.enter_context(open(path, "rb"))
            is_mapped = _is_mapped(path, file.read(4)) and os.fstat(file.fileno()).st_size > 0
            file.seek(0)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if is_mapped else file.read()
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such file; check the path and the image root") from None
        except IsADirectoryError:
            raise DataError(f"{path}: is a folder; expected an image") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{path}: cannot be read ({reason}); check its permissions") from None
        if isinstance(data, mmap.mmap):
            stack.callback(_close_map, data)
        source = _opened(data, file, str(path), fields, as_labels=as_labels)
        source.resources.push(stack.pop_all())
        return source


def _close_map(data: mmap.mmap) -> None:
    # The traceback of a raised error holds arrays on the map; the map is freed with them.
    with suppress(BufferError):
        data.close()


def _opened(
    data: Any, stream: BinaryIO | None, name: str, fields: Mapping[str, Any], *, as_labels: bool = False
) -> PlaneSource:
    """Open the bytes of a file, or a map of the file `stream`."""
    with readable(name):
        if not len(data):
            raise DataError(f"the file is empty (0 bytes); {REMEDY}")
        if name.lower().endswith(MICROSCOPES):
            raise DataError(
                "label images are PNG, TIFF or NPY; export it as TIFF"
                if as_labels
                else "files of this kind cannot be read inside an archive; unpack it"
            )
        if not as_labels and PlaneChoice.from_fields(fields).scene is not None:
            raise DataError(f"a scene is chosen, but only {', '.join(MICROSCOPES)} have scenes; remove --scene")
        if as_labels and data[:3] == b"\xff\xd8\xff":
            raise DataError(f"the label image is a JPEG, {LOSSY}")
        if name.lower().endswith(".npy"):
            return _open_npy(data, name, fields)
        if data[:4] in TIFF_SIGNATURES:
            return TiffSource(data, stream, name=name, fields=fields, as_labels=as_labels)
        array = _decode_with_pillow(data, name, keep_indices=as_labels)
        return PlaneSource(array.__getitem__, array.shape, "YXS"[: array.ndim], name=name, fields=fields)


def _open_npy(data: Any, name: str, fields: Mapping[str, Any]) -> PlaneSource:
    header = io.BytesIO(data[: 2**16])
    version = np.lib.format.read_magic(header)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(header)
    offset = header.tell()
    if dtype.kind not in "iubf":
        raise DataError(f"expected an array of numbers, found {dtype}")
    axes = PlaneChoice.from_fields(fields).axes or "YXC"[: len(shape)]
    if len(shape) != len(axes) or len(shape) < 2:
        raise DataError(
            f"expected the axes (height, width) or (height, width, channel), found the shape {shape}; name other axes "
            'with --axes (in a COCO file the image\'s field "plane": {"axes": "CYX"})'
        )

    def get(index: tuple[Any, ...]) -> np.ndarray:
        expected, found = math.prod(shape) * dtype.itemsize, len(data) - offset
        if found < expected:
            raise DataError(f"the image is truncated: {found} bytes of {expected} are there; {REMEDY}")
        array = np.frombuffer(data, dtype, count=math.prod(shape), offset=offset)
        # A copy, so that nothing references the mapped file.
        return array.reshape(shape, order="F" if is_fortran else "C")[index].copy()

    return PlaneSource(get, shape, axes, name=name, fields=fields)


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Reset Pillow's global switches, which other packages change.

    With LOAD_TRUNCATED_IMAGES, half an image would pass for a whole one; for MAX_IMAGE_PIXELS see `size`.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def _decode_with_pillow(data: bytes, name: str, *, keep_indices: bool) -> np.ndarray:
    """Return (H, W) or (H, W, C), without alpha. keep_indices: do not apply a palette."""
    if data[:8] == _PNG_SIGNATURE and b"IEND" not in data:
        raise DataError(f"the image is truncated: its end is missing; {REMEDY}")
    with _strict_pillow():
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            kinds = ", ".join(suffix[1:].upper() for suffix in SUFFIXES if suffix not in (".jpeg", ".tiff"))
            raise DataError(f"the file is not an image (none of the known kinds: {kinds}); {REMEDY}") from None
        check_size(image.height, image.width)
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise DataError(f"the file has {image.n_frames} images; save every image as a separate file")
        image.load()
        tell_orientation(image.getexif().get(ExifTags.Base.Orientation), name)
    if data[:8] == _PNG_SIGNATURE and data[24] == 16 and data[25] in (2, 4, 6):
        return _decode_deep_png(data)
    if image.mode == "P":
        if keep_indices:
            return np.asarray(image)
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        image = image.convert("RGB")
    elif image.mode in ("PA", "La", "RGBa"):
        image = image.convert("RGBA")
    array = np.asarray(image)
    if image.mode == "I" and image.format == "PNG":
        array = array.astype(np.uint16)  # older Pillow versions read 16-bit grayscale PNG as int32
    return array[:, :, :-1] if image.mode in ("LA", "RGBA") else array


def _decode_deep_png(data: bytes) -> np.ndarray:
    """Decode a PNG with 16 bits in several channels; Pillow has checked that it is complete."""
    array = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise DataError("OpenCV cannot decode this PNG of 16 bits")
    if array.ndim == 2:
        return array
    color = array[:, :, 2::-1]  # OpenCV's order is blue, green, red, alpha
    return color[:, :, :1] if data[25] == 4 else color  # grayscale with alpha: OpenCV repeats the gray channel
