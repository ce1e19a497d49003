"""Cellpose: images with NAME_masks.png (or .tif), or with NAME_seg.npy, as saved by its GUI and command line.

A `_seg.npy` is a pickled dict; it is read without executing anything in it, and only its masks are used.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from detseg.errors import DataError, first_line
from detseg.files.atomic import written_whole
from detseg.files.safe_pickle import as_array, as_list, loads
from detseg.formats.annotated_images import AnnotatedImages
from detseg.formats.label_images import LAYERS, REFUSE, to_label_image, write_tiff
from detseg.formats.objects import ImageObjects
from detseg.formats.reader import FoundObjects, objects_of_labels, path_name
from detseg.images.planes import SINGLE, PlaneChoice
from detseg.images.reading import SUFFIXES, decode_label_image
from detseg.structures import rle as rle_codec

SEG_SUFFIX = "_seg"
MASK_SUFFIXES = ("_cp_masks", "_masks", "_mask")
# Suffixes of other files that Cellpose writes next to an image, and of images in its own data set.
_OTHER_SUFFIXES = ("_flows", "_outlines", "_cp_outlines", "_cp_output", "_dP", "_cellprob")
_IMAGE_SUFFIX = "_img"


class Cellpose(AnnotatedImages):
    """Images of one class with Cellpose masks.

    If an image has both kinds, its `_seg.npy` is used: the GUI saves corrections there.
    """

    kind = "Cellpose masks"
    expected = "NAME_seg.npy, NAME_masks.png or .tif next to it"
    _num_both = 0

    def is_image(self, file: str) -> bool:
        is_other = PurePosixPath(file).stem.endswith((*_OTHER_SUFFIXES, SEG_SUFFIX))
        return not is_other and _name_of_masks(file) is None

    def image_of(self, file: str) -> str | None:
        name = _name_of_masks(file)
        # 000_masks.png belongs to 000.png, or to 000_img.png as in Cellpose's own data set.
        if name is not None and name not in self.file_of and name + _IMAGE_SUFFIX in self.file_of:
            return name + _IMAGE_SUFFIX
        return name

    def choose(self, files: Sequence[str]) -> Sequence[str]:
        segmentations = [file for file in files if file.lower().endswith(".npy")]
        self._num_both += 0 < len(segmentations) < len(files)
        return segmentations or files

    def closing_note(self) -> str:
        return f"{self._num_both} images have masks and a _seg.npy; the _seg.npy was used" if self._num_both else ""

    def read_annotation(self, data: bytes, where: str, height: int, width: int) -> FoundObjects:
        return objects_of_labels(decode_masks(data, where, self.plane), where, height, width)


def decode_masks(data: bytes, where: str, plane: PlaneChoice = SINGLE) -> np.ndarray:
    """Return the masks (H, W) int32 of a `_seg.npy` or of a label image.

    where: the file, for messages. plane: see `decode_label_image`.
    """
    is_segmentation = where.lower().endswith(f"{SEG_SUFFIX}.npy")
    return read_seg_npy(data, where) if is_segmentation else decode_label_image(data, where, plane)


def _name_of_masks(file: str) -> str | None:
    """Return the name of the image to which a mask file belongs, or None for other files."""
    suffix, name = PurePosixPath(file).suffix.lower(), path_name(file)
    if suffix == ".npy":
        return name.removesuffix(SEG_SUFFIX) if name.endswith(SEG_SUFFIX) else None
    if suffix not in SUFFIXES:
        return None
    return next((name.removesuffix(ending) for ending in MASK_SUFFIXES if name.endswith(ending)), None)


def read_seg_npy(data: bytes, where: str) -> np.ndarray:
    """Return the masks (H, W) int32 of a `_seg.npy`.

    Raises:
        DataError: it is damaged, has anything but plain values and arrays (nothing has been executed), no masks, or
            masks of several planes.
    """
    try:
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, number_type = read_header(file)
        content = None
        if number_type.hasobject and shape == ():
            content = as_list(loads(data[file.tell() :]))
    except Exception as error:  # a malicious file can make the reader fail in any way
        raise DataError(
            f"{where}: cannot be read as a _seg.npy of Cellpose ({first_line(error)}); save it again"
        ) from None
    if not content or not isinstance(content[0], dict) or "masks" not in content[0]:
        raise DataError(f"{where}: is not a _seg.npy of Cellpose; expected a dict with 'masks'")
    masks = as_array(content[0]["masks"])
    if masks is None or masks.dtype.kind not in "iub" or masks.ndim not in (2, 3):
        raise DataError(f"{where}: its 'masks' are not a label image (height, width) of whole numbers")
    if masks.ndim == 3 and masks.shape[0] == 1:
        masks = masks[0]
    if masks.ndim == 3:
        raise DataError(f"{where}: its masks have {masks.shape[0]} planes; save every plane as a separate file")
    if masks.size and (masks.min() < 0 or masks.max() > np.iinfo(np.int32).max):
        raise DataError(f"{where}: its masks have the labels {masks.min()} to {masks.max()}; expected 0 to 2147483647")
    return np.ascontiguousarray(masks, dtype=np.int32)


# Writing: `NAME_seg.npy` for Cellpose's GUI and training, and `NAME_masks.tif`.


def write_seg_npy(path: Path, objects: ImageObjects, overlaps: str = REFUSE) -> None:
    """Write the dict of Cellpose's GUI as a pickle in an NPY file; an existing file is replaced.

    Raises DataError if objects overlap and `overlaps` is not "top".
    """
    _refuse_layers(overlaps)
    labels = to_label_image(objects, overlaps)
    # The GUI takes the largest label as the number of objects, so labels of entirely hidden objects are skipped.
    seen = np.unique(labels[labels > 0])
    compact = np.zeros(len(objects) + 1, labels.dtype)
    compact[seen] = np.arange(1, len(seen) + 1)
    labels = compact[labels]
    # Outlines are the pixels with a 4-connected neighbour of another label or outside the image.
    padded = np.pad(labels, 1)
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    is_outline = np.any([labels != neighbour for neighbour in neighbours], axis=0)
    # As in Cellpose: the median diameter, in pixels, of disks with the objects' areas.
    diameters = 2 * np.sqrt(rle_codec.area(objects.rles) / np.pi)
    boxed: Any = np.empty((), dtype=object)
    boxed[()] = {
        "filename": Path(objects.file_name).name,
        "masks": labels,
        "outlines": labels * is_outline,
        "chan_choose": [0, 0],
        "ismanual": np.zeros(len(seen), dtype=bool),
        "est_diam": float(np.median(diameters)) if len(objects) else 30.0,
    }
    with written_whole(path, "the _seg.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, boxed, allow_pickle=True)


def write_masks(path: Path, objects: ImageObjects, overlaps: str = REFUSE) -> None:
    """Write the label image for Cellpose's training."""
    _refuse_layers(overlaps)
    write_tiff(path, objects, overlaps)


def _refuse_layers(overlaps: str) -> None:
    if overlaps == LAYERS:
        raise DataError("--overlaps layers: Cellpose files have one label per pixel; use --overlaps top or refuse")
