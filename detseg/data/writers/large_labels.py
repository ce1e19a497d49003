"""Label images that are too large for memory: a tiled, compressed BigTIFF, written one row of tiles after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from detseg.data.writers.label_images import TOP, resolution_of, write_tiff
from detseg.data.writers.objects import ImageObjects
from detseg.structures import rle as rle_codec
from detseg.structures.atomic_write import written_whole

# Images of more pixels are written in tiles of this size.
LARGE = 2**25
TILE = 512


def write_labels(path: Path, objects: ImageObjects) -> None:
    """Write a label image, of overlapping objects the best on top, in memory that does not grow with the image."""
    if objects.height * objects.width <= LARGE:
        write_tiff(path, objects, TOP)
    else:
        write_tiled(path, objects)


def write_tiled(path: Path, objects: ImageObjects, tile: int = TILE) -> None:
    """Write a BigTIFF of 16 or 32 bits in tiles; labels are as those of `label_images.to_label_image`."""
    dtype = np.uint16 if len(objects) <= np.iinfo(np.uint16).max else np.uint32
    with written_whole(path, "the label image") as temporary, tifffile.TiffWriter(temporary, bigtiff=True) as writer:
        writer.write(
            _tiles(objects, dtype, tile),
            shape=(objects.height, objects.width),
            dtype=dtype,
            tile=(tile, tile),
            compression="zlib",
            photometric="minisblack",
            metadata={"axes": "YX"},
            **resolution_of(objects),
        )


def _tiles(objects: ImageObjects, dtype: type, tile: int) -> Iterator[np.ndarray]:
    """Tiles row by row, whole ones: TIFF fills up those at the border."""
    places = _places(objects)
    scores = np.zeros(len(objects)) if objects.scores is None else objects.scores
    for y in range(0, objects.height, tile):
        band = np.zeros((tile, -(-objects.width // tile) * tile), dtype=dtype)
        inside = np.flatnonzero((places[:, 1] < y + tile) & (places[:, 3] > y))
        inside = inside[np.argsort(scores[inside], kind="stable")]
        for index, (crop, x0, y0) in zip(
            inside, rle_codec.decode_crops([objects.rles[index] for index in inside]), strict=True
        ):
            rows = crop[max(y - y0, 0) : y + tile - y0]
            top = max(y0 - y, 0)
            band[top : top + len(rows), x0 : x0 + crop.shape[1]][rows] = index + 1
        for x in range(0, band.shape[1], tile):
            yield np.ascontiguousarray(band[:, x : x + tile])


def _places(objects: ImageObjects, at_once: int = 20_000) -> np.ndarray:
    """Tight boxes (N, 4) of the masks."""
    parts = [
        rle_codec.bounding_boxes(objects.rles[start : start + at_once]) for start in range(0, len(objects), at_once)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 4), dtype=np.float32)
