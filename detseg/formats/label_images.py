"""Label images: every pixel has the number of its object, 0 is background; as TIFF, PNG or NPY."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tifffile

from detseg.errors import DataError
from detseg.files.atomic import written_whole
from detseg.formats.annotated_images import AnnotatedImages
from detseg.formats.objects import ImageObjects
from detseg.formats.plausibility import split_regions
from detseg.formats.reader import FoundObjects, objects_of_labels, path_name
from detseg.images.reading import SUFFIXES, decode_label_image
from detseg.structures import rle as rle_codec
from detseg.structures.label_layers import LabelLayers
from detseg.structures.mask_crop import paint

LABEL_SUFFIXES = ("_mask", "_masks", "_label", "_labels")


class LabelImages(AnnotatedImages):
    """A folder (or zip archive) of images and one of label images of one class; both may be the same folder."""

    annotation = "label image"

    def __init__(
        self,
        images: Path,
        labels: Path,
        *,
        class_name: str = "cell",
        label_suffix: str | None = None,
        background: int | None = None,
        split_regions: bool = False,
        allow_empty: bool = False,
    ) -> None:
        """label_suffix: follows the image's name in the label's; None: nothing, or one of `LABEL_SUFFIXES`.

        background: a value that is background like 0. split_regions: every connected component of a value is an object.
        """
        self._background, self._splits_regions = background, split_regions
        self._endings = ("", *LABEL_SUFFIXES) if label_suffix is None else (label_suffix,)
        is_one = images.resolve() == labels.resolve()
        if is_one:
            self._endings = tuple(ending for ending in self._endings if ending)
            if not self._endings:
                raise DataError(f"{images}: images and labels are in one folder; distinguish them with --label-suffix")
        self.expected = f"NAME({'|'.join(self._endings)}).* in {labels}"
        super().__init__(images, None if is_one else labels, class_name=class_name, allow_empty=allow_empty)
        self.description = f"label images of {labels}"

    def is_image(self, file: str) -> bool:
        return self.annotation_files is not self.files or not path_name(file).endswith(self._endings)

    def image_of(self, file: str) -> str | None:
        is_one = self.annotation_files is self.files
        if PurePosixPath(file).suffix.lower() not in SUFFIXES or (is_one and self.is_image(file)):
            return None
        name = path_name(file)
        without = (name.removesuffix(ending) for ending in self._endings if name.endswith(ending))
        return next((other for other in without if other in self.file_of), name)

    def read_annotation(self, data: bytes, where: str, height: int, width: int) -> FoundObjects:
        labels = decode_label_image(data, where, self.plane)
        if self._background is not None:
            labels[labels == self._background] = 0
        found = objects_of_labels(labels, where, height, width)
        if not self._splits_regions:
            return found
        regions, owner = split_regions(rle_codec.read_runs(found.rles))
        return FoundObjects(rle_codec.encode_runs(regions), labels=[found.labels[index] for index in owner])


# Writing: object n of an image, counted from 1 in the order of its file, has the label n, which is its `id` in the
# table of measurements.

REFUSE, TOP, LAYERS = "refuse", "top", "layers"
OVERLAPS = (REFUSE, TOP, LAYERS)


def to_label_image(objects: ImageObjects, overlaps: str = REFUSE) -> np.ndarray:
    """Draw the objects of an image.

    overlaps: for pixels shared by several objects. "refuse"; "top": the one with the highest score, without scores the
    smallest, is on top; "layers": as many label images as needed to show each object completely.

    Returns:
        (H, W), or (L, H, W) for layers, uint16, or uint32 for more than 65,535 objects.

    Raises:
        DataError: objects overlap and that is refused.
    """
    dtype = np.uint16 if len(objects) <= np.iinfo(np.uint16).max else np.uint32
    if overlaps == LAYERS:
        layers = LabelLayers.from_rles(objects.rles, objects.height, objects.width).layers
        return layers.astype(dtype) if len(layers) else np.zeros((1, objects.height, objects.width), dtype)
    areas = rle_codec.area(objects.rles)
    order = np.argsort(-areas if objects.scores is None else objects.scores, kind="stable")[::-1]
    labels, seen = paint(rle_codec.decode_crops(objects.rles), order, objects.height, objects.width)
    lost = areas - seen
    if overlaps == REFUSE and lost.any():
        worst = int(lost.argmax())
        raise DataError(
            f"{objects.file_name}: {int((lost > 0).sum())} of {len(objects)} objects share pixels with others "
            f"({int(lost.sum())} pixels, {int(lost[worst])} of object {worst + 1}), but a label image has one number "
            f"per pixel; give --overlaps {TOP} to show one of them, --overlaps {LAYERS} for several label images in "
            "one "
            "file, or use a format with overlaps (geojson, imagej)"
        )
    return labels.astype(dtype)


def write_tiff(path: Path, objects: ImageObjects, overlaps: str = REFUSE) -> None:
    """Write a compressed TIFF of 16 or 32 bits, with the pixel size if known; an existing file is replaced."""
    labels = to_label_image(objects, overlaps)
    metadata = {"axes": "CYX" if labels.ndim == 3 else "YX"}
    with written_whole(path, "the label image") as temporary:
        tifffile.imwrite(
            temporary, labels, compression="zlib", photometric="minisblack", metadata=metadata, **resolution_of(objects)
        )


def resolution_of(objects: ImageObjects) -> dict[str, Any]:
    """Return tifffile's arguments for the pixel size, {} if it is unknown."""
    if objects.pixel_size is None:
        return {}
    y, x = objects.pixel_size
    return {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}


def write_npy(path: Path, objects: ImageObjects, overlaps: str = REFUSE) -> None:
    """Write a NumPy array of 16 or 32 bits; an existing file is replaced."""
    labels = to_label_image(objects, overlaps)
    with written_whole(path, "the label image") as temporary, open(temporary, "wb") as file:
        np.save(file, labels)


# Images with more pixels are written in tiles of this side, one row of tiles in memory at a time.
LARGE = 2**25  # pixels
TILE = 512


def write_labels(path: Path, objects: ImageObjects) -> None:
    """Write a label image with the best of overlapping objects on top, in memory independent of the image size."""
    if objects.height * objects.width <= LARGE:
        write_tiff(path, objects, TOP)
    else:
        write_tiled(path, objects)


def write_tiled(path: Path, objects: ImageObjects, tile: int = TILE) -> None:
    """Write a BigTIFF of 16 or 32 bits in tiles; with the labels of `to_label_image`."""
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
    """Yield tiles row by row, at full size: TIFF pads those at the border."""
    at_once = 20_000  # masks whose runs are in memory at once
    starts = range(0, len(objects), at_once)
    boxes = [rle_codec.bounding_boxes(objects.rles[start : start + at_once]) for start in starts]
    boxes = np.concatenate([np.zeros((0, 4), dtype=np.float32), *boxes])
    scores = np.zeros(len(objects)) if objects.scores is None else objects.scores
    for y in range(0, objects.height, tile):
        band = np.zeros((tile, -(-objects.width // tile) * tile), dtype=dtype)
        inside = np.flatnonzero((boxes[:, 1] < y + tile) & (boxes[:, 3] > y))
        inside = inside[np.argsort(scores[inside], kind="stable")]
        crops = rle_codec.decode_crops([objects.rles[index] for index in inside])
        for index, (crop, x0, y0) in zip(inside, crops, strict=True):
            rows = crop[max(y - y0, 0) : y + tile - y0]
            top = max(y0 - y, 0)
            band[top : top + len(rows), x0 : x0 + crop.shape[1]][rows] = index + 1
        for x in range(0, band.shape[1], tile):
            yield np.ascontiguousarray(band[:, x : x + tile])
