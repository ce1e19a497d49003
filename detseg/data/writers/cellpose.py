"""Cellpose: `NAME_seg.npy`, which its window opens and its training reads, and `NAME_masks.tif`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from detseg.data.writers.label_images import LAYERS, REFUSE, to_label_image, write_tiff
from detseg.data.writers.objects import ImageObjects
from detseg.errors import DataError
from detseg.structures import rle as rle_codec
from detseg.structures.atomic_write import written_whole


def write_seg_npy(path: Path, objects: ImageObjects, overlaps: str = REFUSE) -> None:
    """Write the dict of Cellpose's window as a pickle in an NPY file; an existing file is replaced.

    Raises DataError where objects overlap and `overlaps` is not "top", or one of them is hidden altogether: the window
    counts objects by the largest label.
    """
    labels = _labels(objects, overlaps)
    seen = np.unique(labels[labels > 0])
    compact = np.zeros(len(objects) + 1, labels.dtype)
    compact[seen] = np.arange(1, len(seen) + 1)
    labels = compact[labels]
    content = {
        "filename": Path(objects.file_name).name,
        "masks": labels,
        "outlines": labels * _is_outline(labels),
        "chan_choose": [0, 0],
        "ismanual": np.zeros(len(seen), dtype=bool),
        "est_diam": _diameter(objects),
    }
    boxed: Any = np.empty((), dtype=object)
    boxed[()] = content
    with written_whole(path, "the _seg.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, boxed, allow_pickle=True)


def write_masks(path: Path, objects: ImageObjects, overlaps: str = REFUSE) -> None:
    """Write the label image that Cellpose's training reads."""
    _labels(objects, overlaps)
    write_tiff(path, objects, overlaps)


def _labels(objects: ImageObjects, overlaps: str) -> np.ndarray:
    if overlaps == LAYERS:
        raise DataError("--overlaps layers: Cellpose's files have one label a pixel; take --overlaps top or refuse")
    return to_label_image(objects, overlaps)


def _is_outline(labels: np.ndarray) -> np.ndarray:
    """Return which pixels of objects (H, W) have a neighbour, across an edge, of another label or outside the image."""
    padded = np.pad(labels, 1)
    inner = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (labels > 0) & np.any([inner != neighbour for neighbour in neighbours], axis=0)


def _diameter(objects: ImageObjects) -> float:
    """Return the median diameter, in pixels, of discs of the objects' areas, as Cellpose counts it."""
    return float(np.median(2 * np.sqrt(rle_codec.area(objects.rles) / np.pi))) if len(objects) else 30.0
