"""Predictions as label images, which ImageJ, QuPath, CellProfiler and napari open."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import tifffile

from detseg.errors import DataError
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions


def to_label_image(predictions: Predictions) -> np.ndarray:
    """Draw predictions: detection n has the label n + 1; where several overlap, the highest score is seen.

    Returns:
        (H, W) uint16, or uint32 for more than 65,535 detections.

    Raises:
        DataError: the predictions are boxes without masks.
    """
    if predictions.rles is None:
        raise DataError(f"{predictions.file_name}: a label image needs masks, but these predictions are boxes alone")
    dtype = np.uint16 if len(predictions) <= np.iinfo(np.uint16).max else np.uint32
    labels = np.zeros((predictions.height, predictions.width), dtype)
    crops = rle_codec.decode_crops(predictions.rles)
    for index in np.argsort(predictions.scores, kind="stable"):
        crop, x0, y0 = crops[index]
        labels[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]][crop] = index + 1
    return labels


def label_paths(folder: str | os.PathLike[str], file_names: Iterable[str]) -> dict[str, Path]:
    """Where the label image of every image goes: the image's name with the suffix .tif, subfolders kept.

    Raises:
        DataError: two images would get the same file, or a name leads out of the folder.
    """
    taken: dict[Path, str] = {}
    for name in file_names:
        relative = PurePosixPath(name.replace("\\", "/")).with_suffix(".tif")
        if relative.is_absolute() or ".." in relative.parts or ":" in relative.parts[0]:
            raise DataError(f"{name}: no label image can be written for a file name that leads out of its folder")
        path = Path(folder, *relative.parts)
        if path in taken:
            raise DataError(
                f"{taken[path]} and {name} would both get the label image {path}; predict them in separate calls"
            )
        taken[path] = name
    return {name: path for path, name in taken.items()}


def write_label_image(path: Path, predictions: Predictions) -> None:
    """Write a compressed TIFF, under a temporary name first; an existing file is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        tifffile.imwrite(temporary, to_label_image(predictions), compression="zlib", photometric="minisblack")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
