"""Label images: every pixel has the number of its object, 0 is background; as TIFF or NPY.

Object n of an image, counted from 1 in the order of its file, has the label n, so that labels are the `id` of the table
of measurements.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from detseg.data.writers.objects import ImageObjects
from detseg.errors import DataError
from detseg.structures import rle as rle_codec
from detseg.structures.atomic_write import written_whole
from detseg.structures.label_layers import LabelLayers

REFUSE, TOP, LAYERS = "refuse", "top", "layers"
OVERLAPS = (REFUSE, TOP, LAYERS)


def to_label_image(objects: ImageObjects, overlaps: str = REFUSE) -> np.ndarray:
    """Draw the objects of an image.

    overlaps: what happens where several share a pixel: "refuse"; "top": the one of the highest score is seen, without
    scores the smallest; "layers": as many label images as it takes to show each object whole.

    Returns:
        (H, W), or (L, H, W) for layers, uint16, or uint32 for more than 65,535 objects.

    Raises:
        DataError: objects overlap, where that is refused.
    """
    dtype = np.uint16 if len(objects) <= np.iinfo(np.uint16).max else np.uint32
    if overlaps == LAYERS:
        layers = LabelLayers.from_rles(objects.rles, objects.height, objects.width).layers
        return layers.astype(dtype) if len(layers) else np.zeros((1, objects.height, objects.width), dtype)
    labels = np.zeros((objects.height, objects.width), dtype)
    areas = rle_codec.area(objects.rles)
    order = np.argsort(-areas if objects.scores is None else objects.scores, kind="stable")
    crops = rle_codec.decode_crops(objects.rles)
    for index in order:
        crop, x0, y0 = crops[index]
        labels[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]][crop] = index + 1
    if overlaps == REFUSE:
        _refuse_overlaps(objects, labels, areas)
    return labels


def _refuse_overlaps(objects: ImageObjects, labels: np.ndarray, areas: np.ndarray) -> None:
    lost = areas - np.bincount(labels.ravel(), minlength=len(objects) + 1)[1:]
    if lost.any():
        worst = int(lost.argmax())
        raise DataError(
            f"{objects.file_name}: {int((lost > 0).sum())} of {len(objects)} objects share pixels with others "
            f"({int(lost.sum())} pixels, {int(lost[worst])} of object {worst + 1}), and a label image has one number a "
            f"pixel; pass --overlaps {TOP} to show one of them, --overlaps {LAYERS} for several label images in one "
            "file, or choose a form that holds overlaps (geojson, imagej)"
        )


def write_tiff(path: Path, objects: ImageObjects, overlaps: str = REFUSE) -> None:
    """Write a compressed TIFF of 16 or 32 bits, with the pixel size where it is known; an existing file is replaced."""
    labels = to_label_image(objects, overlaps)
    metadata = {"axes": "CYX" if labels.ndim == 3 else "YX"}
    with written_whole(path, "the label image") as temporary:
        tifffile.imwrite(
            temporary, labels, compression="zlib", photometric="minisblack", metadata=metadata, **resolution_of(objects)
        )


def resolution_of(objects: ImageObjects) -> dict[str, Any]:
    """Return tifffile's arguments for the pixel size, {} where it is not known."""
    if objects.pixel_size is None:
        return {}
    y, x = objects.pixel_size
    return {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}


def write_npy(path: Path, objects: ImageObjects, overlaps: str = REFUSE) -> None:
    """Write a NumPy array of 16 or 32 bits; an existing file is replaced."""
    labels = to_label_image(objects, overlaps)
    with written_whole(path, "the label image") as temporary, open(temporary, "wb") as file:
        np.save(file, labels)
