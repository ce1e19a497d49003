"""COCO files: any of them to images, classes and masks, and ours out of them.

Masks stay text until their image is asked for, so that a data set of a million objects takes as much memory as its file
and goes to worker processes as one shared block.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from detseg.coco.index import AnnotationTable, Category, ImageEntry, index_coco, is_text, shown
from detseg.errors import DataError, list_problems
from detseg.files.atomic import written_whole
from detseg.images.reading import read_picture
from detseg.structures import rle as rle_codec
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

__all__ = ["Category", "CocoDataset", "ImageAnnotations", "ImageRecord", "annotations_of", "write_coco"]


@dataclass(frozen=True)
class ImageRecord:
    """One image of a data set. height, width: pixels. metadata: the further fields of the image in the COCO file."""

    image_id: int | str
    file_name: str
    path: Path
    height: int
    width: int
    metadata: dict[str, Any] = field(default_factory=dict)


class ImageAnnotations(NamedTuple):
    """The N annotations of one image, in the file's order.

    rles: compressed COCO RLEs of the image's size. classes: (N,) int64, 0-based. crowd: (N,) bool, True for a region
    that is neither object nor background.
    """

    rles: list[dict[str, Any]]
    classes: np.ndarray
    crowd: np.ndarray


class CocoDataset:
    """Images with annotations. Class index c is `categories[c]`; categories are sorted by id unless reordered.

    origins: (images,) int64, of which of several data sets that were joined every image comes.
    """

    def __init__(
        self,
        images: list[ImageRecord],
        categories: list[Category],
        table: AnnotationTable,
        name: str,
        origins: np.ndarray | None = None,
    ) -> None:
        self.images = images
        self.categories = categories
        self.table = table
        self.name = name
        self.origins = np.zeros(len(images), dtype=np.int64) if origins is None else origins

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        image_root: str | os.PathLike[str] | None = None,
        *,
        skipped: list[str] | None = None,
    ) -> CocoDataset:
        """Read a COCO file (.json or .json.gz): polygons, RLE compressed or not, crowds; area and bbox are not needed.

        Args:
            path: the file.
            image_root: folder that file names are relative to. None: the file's `info.image_root` (relative to the
                file's folder), else the file's folder.
            skipped: where given, bad images and annotations are left out, and what is wrong with them is added to it.

        Raises:
            DataError: the file is missing or no COCO data set; or all that is wrong with its images, categories and
                annotations, in one list. The images themselves are not looked at: see `check_images_exist`.
        """
        path = Path(path)
        info, entries, categories, table = index_coco(path, skipped)
        said = info.get("image_root") or ""
        if not is_text(said) or "\0" in said:
            raise DataError(f"{path}: its info.image_root is {shown(said)}; expected the path of a folder")
        root = Path(image_root) if image_root else path.parent / said
        return cls.of_entries(entries, categories, table, root=root, name=str(path))

    @classmethod
    def of_entries(
        cls, entries: Sequence[ImageEntry], categories: list[Category], table: AnnotationTable, *, root: Path, name: str
    ) -> CocoDataset:
        """Return the data set of what `index_coco` found; file names are relative to `root`."""
        return cls([_record(entry, root) for entry in entries], categories, table, name)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"CocoDataset({self.name}: {len(self)} images, {self.num_objects} objects, {self.class_names})"

    @property
    def class_names(self) -> list[str]:
        return [category.name for category in self.categories]

    @property
    def num_objects(self) -> int:
        """The number of annotations that are no crowd."""
        return int((~self.table.crowd).sum())

    def objects_per_image(self) -> np.ndarray:
        """Return (images, classes) int64: how many objects of every class an image has; crowds are none."""
        counts = np.zeros((len(self), len(self.categories)), dtype=np.int64)
        image = np.repeat(np.arange(len(self)), np.diff(self.table.offsets))
        objects = ~self.table.crowd
        np.add.at(counts, (image[objects], self.table.classes[objects]), 1)
        return counts

    def annotations(self, index: int) -> ImageAnnotations:
        """Return the annotations of image number `index`. Polygons that cover no pixel are left out."""
        record = self.images[index]
        rles, empty = self.table.rles(index, record.height, record.width)
        rows = self.table.rows(index)
        classes, crowd = self.table.classes[rows].astype(np.int64), self.table.crowd[rows].copy()
        if not empty.any():
            return ImageAnnotations(rles, classes, crowd)
        kept = [rle for rle, nothing in zip(rles, empty, strict=True) if not nothing]
        return ImageAnnotations(kept, classes[~empty], crowd[~empty])

    def read_sample(self, index: int) -> Sample:
        """Read image number `index` as the file has it, with its objects; crowds become `ignore`.

        Raises DataError where the image cannot be read or has another size than the COCO file says.
        """
        record = self.images[index]
        image, facts = self.read_picture(index)
        rles, classes, crowd = self.annotations(index)
        objects = [rle for rle, is_crowd in zip(rles, crowd, strict=True) if not is_crowd]
        ignore = None
        if crowd.any():
            ignore = np.zeros((record.height, record.width), dtype=bool)
            for number in np.flatnonzero(crowd):
                ignore |= rle_codec.decode(rles[number])
        return Sample(
            image=image,
            layers=LabelLayers.from_rles(objects, record.height, record.width),
            classes=classes[~crowd],
            ignore=ignore,
            image_id=record.image_id,
            file_name=record.file_name,
            metadata=facts,
        )

    def read_image(self, index: int) -> np.ndarray:
        """Read image number `index`, (H, W, C), and check its size against the COCO file."""
        return self.read_picture(index)[0]

    def read_picture(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Read image number `index` as `read_image`, with its metadata and what its file says of itself."""
        record = self.images[index]
        image, facts = read_picture(record.path, record.metadata)
        if image.shape[:2] != (record.height, record.width):
            raise DataError(
                f"{record.path}: the image has {image.shape[0]} x {image.shape[1]} pixels (height x width), but "
                f"{self.name} says {record.height} x {record.width}: its masks would not lie on it; prepare the data "
                "set again from these images, or put back those that it was made from"
            )
        return image, facts

    def check_images_exist(self) -> None:
        """Raise DataError that lists all images whose file is missing."""
        missing = [str(record.path) for record in self.images if not os.path.isfile(record.path)]
        if missing:
            raise DataError(
                f"{self.name}: {len(missing)} of {len(self)} images are missing; set DATASETS.IMAGE_ROOT (or the "
                f"file's info.image_root) to the folder that their names are relative to:\n{list_problems(missing)}"
            )

    def select(self, indices: Sequence[int] | np.ndarray) -> CocoDataset:
        """Return the data set of these images, in this order."""
        indices = np.asarray(indices, dtype=np.int64)
        images = [self.images[index] for index in indices]
        return CocoDataset(images, self.categories, self.table.select(indices), self.name, self.origins[indices])

    def with_classes(self, names: Sequence[str]) -> CocoDataset:
        """Return the data set with the classes in the order of `names`, which must be those of its categories."""
        if sorted(names) != sorted(self.class_names):
            raise DataError(
                f"{self.name}: its classes are {', '.join(self.class_names)}; expected {', '.join(names)} "
                "(DATASETS.CLASSES, or the first data set's); rename the categories, or list the same names"
            )
        by_name = {category.name: number for number, category in enumerate(self.categories)}
        order = [by_name[name] for name in names]
        new_index = np.argsort(order)
        table = dataclasses.replace(self.table, classes=new_index[self.table.classes].astype(np.int32))
        categories = [self.categories[number] for number in order]
        return CocoDataset(self.images, categories, table, self.name, self.origins)

    def with_objects_of(self, names: Sequence[str]) -> CocoDataset:
        """Return the data set with the classes `names`, in this order; objects of its other classes are left out.

        Raises DataError where it has none of these classes.
        """
        ids = {category.name: category.id for category in self.categories}
        if not any(name in ids for name in names):
            raise DataError(
                f"{self.name}: its classes are {', '.join(self.class_names)}; none of {', '.join(names)} is among "
                "them: rename its categories"
            )
        categories = [Category(ids.get(name, -1), name) for name in names]
        index = {name: number for number, name in enumerate(names)}
        new_index = np.array([index.get(name, -1) for name in self.class_names], dtype=np.int32)
        classes = new_index[self.table.classes]
        table = dataclasses.replace(self.table, classes=np.maximum(classes, 0))
        return CocoDataset(self.images, categories, table.keep((classes >= 0) | table.crowd), self.name, self.origins)

    @classmethod
    def concatenate(cls, datasets: Sequence[CocoDataset]) -> CocoDataset:
        """Join data sets of the same classes (matched by name, in the order of the first) for training."""
        if not datasets:
            raise DataError("no data set is named; set DATASETS.TRAIN")
        if len(datasets) == 1:
            return datasets[0]
        datasets = [dataset.with_classes(datasets[0].class_names) for dataset in datasets]
        images = [record for dataset in datasets for record in dataset.images]
        table = AnnotationTable.concatenate([dataset.table for dataset in datasets])
        origins = np.repeat(np.arange(len(datasets)), [len(dataset) for dataset in datasets])
        return cls(images, datasets[0].categories, table, " + ".join(dataset.name for dataset in datasets), origins)


def _record(entry: ImageEntry, root: Path) -> ImageRecord:
    return ImageRecord(
        image_id=entry.image_id,
        file_name=entry.file_name,
        path=root / entry.file_name.replace("\\", "/"),
        height=entry.height,
        width=entry.width,
        metadata=entry.metadata,
    )


# Writing COCO files: streamed, one annotation a line, whole or not at all.


def write_coco(
    path: str | os.PathLike[str],
    *,
    images: Sequence[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]],
    info: Mapping[str, Any] | None = None,
    further: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a COCO data set (gzip where the name ends in .gz) to a temporary name, then rename it.

    `annotations` may be a generator; see `annotations_of`. further: other keys of the file (licenses, ...).
    Raises DataError where the file exists, unless `overwrite`, and where it cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists already; pass --overwrite to replace it, or name another output")
    make_folder(path.parent)
    with (
        written_whole(path, "the COCO file") as temporary,
        _open_text(temporary, compress=path.suffix == ".gz") as file,
    ):
        file.write(f'{{"info": {json.dumps(dict(info or {}))},\n"categories": ')
        _write_list(file, categories)
        file.write(',\n"images": ')
        _write_list(file, images)
        file.write(',\n"annotations": ')
        _write_list(file, annotations)
        for key, value in (further or {}).items():
            file.write(f",\n{json.dumps(key)}: {json.dumps(value)}")
        file.write("}\n")


def image_root_for(images: Path, output: Path) -> str:
    """Return the folder of the images as a COCO file in the folder `output` names it.

    Relative where it lies beside or below the output, so that both can move.
    """
    images, output = images.resolve(), output.resolve()
    try:
        relative = Path(os.path.relpath(images, output))
    except ValueError:  # another drive on Windows
        return images.as_posix()
    return relative.as_posix() if relative.parts.count("..") <= 1 else images.as_posix()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises DataError where that is impossible, and where a file has its name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: the output folder cannot be made ({error.strerror or error}); name another one"
        ) from None


@contextlib.contextmanager
def _open_text(path: Path, *, compress: bool) -> Iterator[TextIO]:
    if not compress:
        with open(path, "w", encoding="ascii", newline="\n") as file:
            yield file
        return
    # Without a name and a time in the header the same data give the same bytes.
    with (
        open(path, "wb") as raw,
        gzip.GzipFile(filename="", mode="wb", mtime=0, fileobj=raw) as packed,
        io.TextIOWrapper(packed, encoding="ascii", newline="\n") as file,
    ):
        yield file


def _write_list(file: TextIO, rows: Iterable[Mapping[str, Any]]) -> None:
    file.write("[")
    for number, row in enumerate(rows):
        file.write(",\n" if number else "\n")
        file.write(json.dumps(row, separators=(",", ":")))
    file.write("]")


def annotations_of(
    rles: Sequence[Mapping[str, Any]],
    category_ids: Sequence[int] | np.ndarray,
    *,
    image_id: int | str,
    first_id: int,
    crowd: Sequence[bool] | np.ndarray | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the annotations of one image, with area and bbox (x, y, width, height), from its N compressed RLEs.

    Ids count from `first_id` on.
    """
    if not len(rles) == len(category_ids) == (len(rles) if crowd is None else len(crowd)):
        raise DataError(
            f"image {image_id}: {len(rles)} masks and {len(category_ids)} classes; expected one class a mask"
        )
    if not len(rles):
        return
    areas = rle_codec.area(rles).tolist()
    boxes = rle_codec.bounding_boxes(rles).astype(np.int64).tolist()
    for number, (rle, area, (x0, y0, x1, y1)) in enumerate(zip(rles, areas, boxes, strict=True)):
        counts = rle["counts"]
        yield {
            "id": first_id + number,
            "image_id": image_id,
            "category_id": int(category_ids[number]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": area,
            "iscrowd": int(crowd[number]) if crowd is not None else 0,
            "segmentation": {
                "size": [int(side) for side in rle["size"]],
                "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
            },
        }
