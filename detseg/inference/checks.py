"""What an image must be to be predicted: an array of a known kind, a file of the size that its data set says."""

from __future__ import annotations

import numpy as np

from detseg.data.coco import ImageRecord
from detseg.errors import DataError


def check_size(record: ImageRecord, height: int, width: int) -> None:
    """Raise DataError for a file of height x width pixels where the data set says another size."""
    if record.height and record.width and (record.height, record.width) != (height, width):
        raise DataError(
            f"{record.file_name or 'image'}: the file has {height} x {width} pixels (height x width), but the data set "
            f"says {record.height} x {record.width}; its masks belong to another version of the image"
        )


def as_image(array: np.ndarray) -> np.ndarray:
    """Return an array given by the caller as (H, W, C) uint8, uint16 or float32. Raises DataError for anything else."""
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or 0 in array.shape:
        raise DataError(f"expected an image (height, width) or (height, width, channels), got the shape {array.shape}")
    if array.dtype in (np.uint8, np.uint16, np.float32):
        return array
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    raise DataError(f"expected an image of uint8, uint16 or float, got {array.dtype}; convert it to one of them")
