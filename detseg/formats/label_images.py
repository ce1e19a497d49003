"""Pairs of images and label images, and what is read from one pair."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from detseg.coco.index import is_text
from detseg.errors import DataError
from detseg.files.atomic import written_whole
from detseg.formats.objects import ImageObjects
from detseg.formats.source import LabelledImage
from detseg.images.planes import SINGLE, PlaneChoice
from detseg.images.reading import SUFFIXES, read_label_image, read_picture, stored_facts
from detseg.structures import rle as rle_codec
from detseg.structures.label_layers import LabelLayers

logger = logging.getLogger(__name__)

LABEL_SUFFIXES = ("_mask", "_masks", "_label", "_labels")


@dataclass(frozen=True)
class Pair:
    """An image and its label image. name: the image's path below its folder without suffix, with slashes."""

    name: str
    image: Path
    label: Path


def find_pairs(images: Path, labels: Path, label_suffix: str | None = None) -> tuple[list[Pair], list[str]]:
    """Match the images of a folder with the label images of another, or of the same one, by name.

    A label is named as its image, or has `label_suffix` (None: one of `LABEL_SUFFIXES`) after the name; subfolders are
    the same on both sides.

    Returns:
        The pairs in the order of their names, and the problems: images without label, labels without image, names that
        two files have.

    Raises:
        DataError: a folder is missing or holds no image.
    """
    problems: list[str] = []
    endings = ("", *LABEL_SUFFIXES) if label_suffix is None else (label_suffix,)
    if images.resolve() == labels.resolve():
        endings = tuple(ending for ending in endings if ending)
        if not endings:
            raise DataError(f"{images}: images and labels lie in one folder; tell them apart with --label-suffix")
        files = _list_files(images, problems, what="images")
        label_files = {name: path for name, path in files.items() if name.endswith(endings)}
        image_files = {name: path for name, path in files.items() if name not in label_files}
    else:
        image_files = _list_files(images, problems, what="images")
        label_files = _list_files(labels, problems, what="labels")
    pairs = []
    unused = set(label_files)
    for name, path in image_files.items():
        found = [name + ending for ending in endings if name + ending in label_files]
        unused.difference_update(found)
        if len(found) == 1:
            pairs.append(Pair(name, path, label_files[found[0]]))
        elif found:
            problems.append(
                f"{path}: has several label images: {', '.join(str(label_files[other]) for other in found)}"
            )
        else:
            problems.append(f"{path}: has no label image {name}{_either(endings)} in {labels}")
    problems += [f"{label_files[name]}: has no image of this name in {images}" for name in sorted(unused)]
    return pairs, problems


def _either(endings: Iterable[str]) -> str:
    """The endings as a pattern: (|_mask|_label).*"""
    listed = list(endings)
    return (listed[0] if len(listed) == 1 else f"({'|'.join(listed)})") + ".*"


def _list_files(folder: Path, problems: list[str], *, what: str) -> dict[str, Path]:
    """Return name (below the folder, without suffix) -> path of the image files, hidden ones left out."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of {what}")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if path.suffix.lower() not in SUFFIXES or any(part.startswith(".") for part in below.parts):
            continue
        name = below.with_suffix("").as_posix()
        if not is_text(name):
            problems.append(f"{str(path)!a}: its name is no UTF-8; rename the file")
        elif name in files:
            problems.append(f"{path}: has the same name as {files[name]}; keep one of them")
        else:
            files[name] = path
    if not files:
        raise DataError(f"{folder}: there are no {what} in this folder; expected files {', '.join(SUFFIXES)}")
    return files


def read_pair(pair: Pair, file_name: str, plane: PlaneChoice = SINGLE) -> LabelledImage:
    """Read both files of a pair; objects are in ascending order of their labels.

    Raises DataError where one cannot be read, or their sizes differ.
    """
    labels = read_label_image(pair.label)
    image, facts = read_picture(pair.image, plane.fields())
    if image.shape[:2] != labels.shape:
        raise DataError(
            f"{pair.label}: has {labels.shape[0]} x {labels.shape[1]} pixels (height x width), its image "
            f"{pair.image.name} {image.shape[0]} x {image.shape[1]}; expected the same size"
        )
    layers = LabelLayers.from_label_image(labels)
    if len(layers) == 1 and labels.max() == 255:
        logger.warning(
            "%s: has the values 0 and 255 only, as a mask of all objects together has; it is taken for one object. "
            "Where it shows several, give every object a number of its own.",
            pair.label,
        )
    numbers = np.unique(labels)
    names = [str(number) for number in numbers[numbers > 0]]
    return LabelledImage(
        pair.name, file_name, *labels.shape, layers.to_rles(), labels=names, fields=stored_facts(facts)
    )


class LabelImages:
    """A folder of images and one of label images as a `Source` of one class; images stay where they are."""

    parts = None
    unlabelled: Sequence[str] = ()
    default_column = None

    def __init__(
        self, images: Path, labels: Path, *, label_suffix: str | None = None, class_name: str = "cell"
    ) -> None:
        """Match the files. Raises DataError where a folder is missing or holds no image."""
        pairs, self.problems = find_pairs(images, labels, label_suffix)
        self.description = f"label images of {labels}"
        self.class_names = [class_name]
        self.plane = SINGLE
        self.columns: dict[str, dict[str, str]] = {}
        self._images = images
        self._pairs = {pair.name: pair for pair in pairs}
        self.names = list(self._pairs)

    def aliases(self, name: str) -> list[str]:
        image = self._pairs[name].image
        return [name, name + image.suffix, image.stem, image.name]

    def describe(self, name: str) -> str:
        return str(self._pairs[name].image)

    def read(self, name: str) -> tuple[LabelledImage, list[str]]:
        pair = self._pairs[name]
        return read_pair(pair, pair.image.relative_to(self._images).as_posix(), self.plane), []

    def image_root(self, output: Path) -> Path:
        return self._images

    def check_target(self, images: Sequence[LabelledImage], output: Path, *, overwrite: bool) -> None:
        """Nothing is written."""

    def provide(self, images: Sequence[LabelledImage], output: Path) -> None:
        """They are there."""


# Label images: every pixel has the number of its object, 0 is background; as TIFF or NPY.
#
# Object n of an image, counted from 1 in the order of its file, has the label n, so that labels are the `id` of the
# table
# of measurements.

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


# Label images that are too large for memory: a tiled, compressed BigTIFF, written one row of tiles after the other.

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
