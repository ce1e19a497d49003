"""Reading images and label images: one error for a file that cannot be read, never half an image.

An image is (H, W, C), uint8, uint16 or float32, RGB where C = 3. The pixels come as the file stores them: an EXIF
orientation is not applied, since masks are drawn on the stored pixels, and COCO's `height` and `width` mean them too.
Of a file with slices or points in time, the field `plane` of the COCO image says which picture is meant.

Pillow reads everything but TIFF (tifffile), NPY (NumPy) and colour PNG of 16 bits, which Pillow cuts to 8 (OpenCV).
OpenCV alone will not do: up to version 4 it fills the missing part of a truncated PNG in silence.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from detseg.errors import DataError
from detseg.images.planes import PlaneChoice, choose_plane
from detseg.images.size import check_size
from detseg.images.tiff import read_tiff

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy")

# More channels than any microscope records at once: a larger last axis is a stack, or channels come first.
MAX_CHANNELS = 32

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_REMEDY = "copy or download the file again, or take it out of the data set"


def read_image(path: str | os.PathLike[str], fields: Mapping[str, Any] | None = None) -> np.ndarray:
    """Read an image file of any of `SUFFIXES` (told by its content, save for NPY).

    fields: those of the image in a COCO file; `plane` chooses a picture of a file that holds several.

    Returns:
        (H, W, C) uint8, uint16 or float32: gray gives C = 1, colour RGB, alpha is dropped. 8 and 16 bits stay as they
        are, bool becomes 0 and 255, all other numbers become float32. A palette is applied, CMYK becomes RGB.

    Raises:
        DataError: the file is missing, truncated, no image, larger than `image_size.max_pixels`, holds several images
            of which none is chosen, or values that are no numbers.
    """
    return read_picture(path, fields)[0]


def read_picture(
    path: str | os.PathLike[str], fields: Mapping[str, Any] | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Read an image file as `read_image`, and what is known of the image.

    Returns:
        The image, and its facts: `pixel_size` (micrometres: a number, or [y, x]), `channel_names` and `unnamed_pages`
        (pages without a name that were taken for channels), where the file says so; `fields` go before.
    """
    fields = fields or {}
    with _opened(Path(path)) as (data, stream):
        image, facts = _decode_image(data, path, fields, stream)
    return image, {**facts, **fields}


def stored_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of `read_picture` that a COCO file stores as fields of the image."""
    return {name: value for name, value in facts.items() if name != "unnamed_pages"}


def decode_image(data: bytes, name: str | os.PathLike[str], fields: Mapping[str, Any] | None = None) -> np.ndarray:
    """`read_image` from the bytes of a file. name: what messages call it; its suffix tells NPY."""
    return decode_picture(data, name, fields)[0]


def decode_picture(
    data: bytes, name: str | os.PathLike[str], fields: Mapping[str, Any] | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """`read_picture` from the bytes of a file. name: what messages call it; its suffix tells NPY."""
    image, facts = _decode_image(data, name, fields or {}, None)
    return image, {**facts, **(fields or {})}


def _decode_image(
    data: Any, name: str | os.PathLike[str], fields: Mapping[str, Any], stream: BinaryIO | None
) -> tuple[np.ndarray, dict[str, Any]]:
    array, has_alpha, facts = _decode(data, name, fields, keep_indices=False, stream=stream)
    if array.ndim == 2:
        array = array[:, :, None]
    _check_shape(array, name)
    if has_alpha:
        array = array[:, :, :-1]
    return np.ascontiguousarray(to_image_type(array, name)), facts


def read_label_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a label image: 0 is background, every other number is one object.

    Returns:
        (H, W) int32. The indices of a palette image are its labels.

    Raises:
        DataError: as `read_image`, or the file has colours, fractions, negative numbers or numbers beyond int32.
    """
    with _opened(Path(path)) as (data, _):
        return decode_label_image(data, path)


def decode_label_image(data: bytes, name: str | os.PathLike[str]) -> np.ndarray:
    """`read_label_image` from the bytes of a file. name: what messages call it; its suffix tells NPY."""
    array, has_alpha, _ = _decode(data, name, {}, keep_indices=True)
    if array.ndim == 3 and (array.shape[2] == 1 or (has_alpha and array.shape[2] == 2)):
        array = array[:, :, 0]
    if array.ndim != 2:
        raise DataError(
            f"{name}: a label image has one number a pixel, but this one has {array.shape[2]} channels; "
            "save the object numbers as a gray PNG (16 bit), a TIFF or an NPY file"
        )
    _check_shape(array[:, :, None], name)
    if array.dtype.kind == "f":
        if not np.array_equal(array, np.round(array)):
            raise DataError(f"{name}: a label image has whole numbers, but this one has fractions ({array.dtype})")
    elif array.dtype.kind not in "iub":
        raise DataError(f"{name}: a label image has whole numbers, not {array.dtype}")
    lowest, highest = array.min(), array.max()
    if lowest < 0 or highest > np.iinfo(np.int32).max:
        raise DataError(
            f"{name}: labels lie between 0 (background) and 2147483647, these between {lowest} and {highest}"
        )
    return np.ascontiguousarray(array, dtype=np.int32)


_TIFF_SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, BinaryIO | None]]:
    """Give the bytes of a file; a TIFF, which may be a large stack, is mapped into memory and comes with its stream."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
            is_tiff = file.read(4) in _TIFF_SIGNATURES
            file.seek(0)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if is_tiff else file.read()
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such file; check the path and the image root") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{path}: cannot be read ({reason}); check its permissions") from None
        try:
            yield data, file if is_tiff else None
        finally:
            # An error on its way holds arrays on the map, which goes with them.
            with contextlib.suppress(BufferError, AttributeError):
                data.close()


def _decode(
    data: Any,
    name: str | os.PathLike[str],
    fields: Mapping[str, Any],
    *,
    keep_indices: bool,
    stream: BinaryIO | None = None,
) -> tuple[np.ndarray, bool, dict[str, Any]]:
    """Return (H, W) or (H, W, C) of any dtype, whether the last channel is alpha, and what the file says of itself."""
    if not len(data):
        raise DataError(f"{name}: the file is empty (0 bytes); {_REMEDY}")
    try:
        choice = PlaneChoice.from_fields(fields)
        if os.fspath(name).lower().endswith(".npy"):
            return _decode_npy(data, choice), False, {}
        if data[:4] in _TIFF_SIGNATURES:
            return read_tiff(data, keep_indices=keep_indices, choice=choice, stream=stream)
        array, has_alpha = _decode_with_pillow(data, keep_indices=keep_indices)
        array, _ = choose_plane(array.__getitem__, array.shape, "YXS"[: array.ndim], choice)
        return array, has_alpha, {}
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        kinds = ", ".join(suffix[1:].upper() for suffix in SUFFIXES if suffix not in (".jpeg", ".tiff"))
        raise DataError(f"{name}: the file is no image (its content is of no known kind: {kinds}); {_REMEDY}") from None
    # The decoders raise nearly anything for a broken file (struct.error, SyntaxError, zlib.error, ...).
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{name}: the image is truncated or unreadable ({reason}); {_REMEDY}") from error


def _decode_npy(data: bytes, choice: PlaneChoice) -> np.ndarray:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.kind not in "iubf":
        raise DataError(f"expected an array of numbers, found {dtype}")
    axes = choice.axes or "YXC"[: len(shape)]
    if len(shape) != len(axes) or len(shape) < 2:
        raise DataError(
            f"expected the axes (height, width) or (height, width, channel), found the shape {shape}; name other axes "
            'with --axes (in a COCO file the image\'s field "plane": {"axes": "CYX"})'
        )
    # NumPy takes the memory that the header asks for before it looks at what follows.
    check_size(shape[axes.index("Y")], shape[axes.index("X")])
    expected, found = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
    if found < expected:
        raise DataError(f"the image is truncated: {found} bytes of {expected} are there; {_REMEDY}")
    array = np.load(io.BytesIO(data), allow_pickle=False)
    return choose_plane(array.__getitem__, array.shape, axes, choice)[0]


@contextlib.contextmanager
def _strict_pillow() -> Iterator[None]:
    """Set aside Pillow's switches for the whole program, which other packages change.

    With LOAD_TRUNCATED_IMAGES half an image would pass for a whole one; MAX_IMAGE_PIXELS knows no remedy, see
    `image_size`.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def _decode_with_pillow(data: bytes, *, keep_indices: bool) -> tuple[np.ndarray, bool]:
    if data[:8] == _PNG_SIGNATURE and b"IEND" not in data:
        raise DataError(f"the image is truncated: it has no end; {_REMEDY}")
    with _strict_pillow():
        image = Image.open(io.BytesIO(data))
        check_size(image.height, image.width)
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise DataError(f"the file holds {image.n_frames} pictures; save every picture as a file of its own")
        image.load()
    if data[:8] == _PNG_SIGNATURE and data[24] == 16 and data[25] in (2, 4, 6):
        return _decode_deep_png(data)
    if image.mode == "P":
        if keep_indices:
            return np.asarray(image), False
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        image = image.convert("RGB")
    elif image.mode in ("PA", "La", "RGBa"):
        image = image.convert("RGBA")
    array = np.asarray(image)
    if image.mode == "I" and image.format == "PNG":
        array = array.astype(np.uint16)  # older Pillow widens a gray PNG of 16 bits to int32
    return array, image.mode in ("LA", "RGBA")


def _decode_deep_png(data: bytes) -> tuple[np.ndarray, bool]:
    """Decode a PNG with 16 bits in several channels; Pillow has already seen that it is whole."""
    array = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise DataError("OpenCV cannot decode this PNG of 16 bits")
    if array.ndim == 2:
        return array, False
    has_alpha = array.shape[2] == 4
    color = array[:, :, 2::-1]
    if data[25] == 4:  # gray with alpha: OpenCV repeats the gray
        color = color[:, :, :1]
    return (np.concatenate([color, array[:, :, 3:]], axis=2), True) if has_alpha else (color, False)


def _check_shape(array: np.ndarray, path: str | os.PathLike[str]) -> None:
    height, width, channels = array.shape
    if 0 in array.shape:
        raise DataError(f"{path}: the image has no pixels ({height} x {width}, {channels} channels)")
    if channels > MAX_CHANNELS:
        raise DataError(
            f"{path}: expected the axes (height, width, channel) with at most {MAX_CHANNELS} channels, found the shape "
            f"{array.shape}; move the channels to the last axis, or save every picture of a stack as a file of its own"
        )


def to_image_type(array: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    """Return the array as uint8, uint16 or float32, as `read_image` does. Raises DataError for NaN and infinity."""
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise DataError(f"{path}: the image has values that are not finite (NaN or infinity); replace them by numbers")
    return array
