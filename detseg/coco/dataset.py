"""COCO data sets: reading and writing COCO files; images, classes and masks.

Masks stay text until their image is requested, so that a data set with a million objects needs as much memory as its
file, and is passed to worker processes as one shared block.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detseg.coco.checking import read_coco
from detseg.coco.json_files import annotations_of, image_root_for, write_coco
from detseg.coco.pseudo_labels import labels_of_file
from detseg.coco.records import AnnotationTable, Category, ImageRecord
from detseg.errors import DataError, list_problems
from detseg.images.reading import read_picture
from detseg.structures import rle as rle_codec
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

__all__ = ["AnnotationTable", "Category", "CocoDataset", "ImageAnnotations", "ImageRecord"]


class ImageAnnotations(NamedTuple):
    """The N annotations of one image, in the file's order.

    rles: compressed COCO RLEs of the image's size. classes: (N,) int64, 0-based. crowd: (N,) bool, True for a region
    that is neither object nor background.
    """

    rles: list[dict[str, Any]]
    classes: np.ndarray
    crowd: np.ndarray

    @property
    def objects(self) -> ImageAnnotations:
        """The annotations that are not crowd regions."""
        rles = list(itertools.compress(self.rles, ~self.crowd))
        return ImageAnnotations(rles, self.classes[~self.crowd], np.zeros(len(rles), dtype=bool))


@dataclass(eq=False, repr=False)
class CocoDataset:
    """Images with annotations. Class index c is `categories[c]`; categories are sorted by id unless reordered.

    name: for messages. origins: (images,) int64, index of the data set of every image, after joining. info, further:
    the file's info, and its additional keys (licenses, ...).
    """

    images: list[ImageRecord]
    categories: list[Category]
    table: AnnotationTable
    name: str
    origins: np.ndarray = None  # type: ignore[assignment]  (zeros)
    info: dict[str, Any] = field(default_factory=dict)
    further: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.origins is None:
            self.origins = np.zeros(len(self.images), dtype=np.int64)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        image_root: str | os.PathLike[str] | None = None,
        *,
        skipped: list[str] | None = None,
        keep_empty: bool = False,
        boxes: bool = False,
        last_part: bool = False,
    ) -> CocoDataset:
        """Read a COCO file (.json or .json.gz): polygons, RLE compressed or not, crowds; area and bbox are not
        required.

        Args:
            path: the file.
            image_root: folder to which file names are relative. None: the file's `info.image_root` (relative to the
                file's folder), else the file's folder.
            skipped: if given, bad images and annotations are skipped, and their problems appended to it.
            keep_empty: keep annotations without pixels, to be repaired.
            boxes: use the pixels of the bbox for a missing mask, for models with boxes only.
            last_part: use only the last part of every file name, for images that are all in the image root.

        Raises:
            DataError: the file is missing or not a COCO data set; or a list of all problems of its images, categories
                and annotations. Image files are not opened: see `check_images_exist`.
        """
        root = Path(image_root) if image_root else None
        options = {"skipped": skipped, "keep_empty": keep_empty, "boxes": boxes, "last_part": last_part}
        return cls(name=str(path), **read_coco(Path(path), root, **options))

    @classmethod
    def from_predictions(
        cls,
        path: str | os.PathLike[str],
        sure: float | Mapping[str, float],
        ignore_from: float | Mapping[str, float],
        image_root: str | os.PathLike[str] | None = None,
    ) -> CocoDataset:
        """Make pseudo-labels from a Predictions file by scores alone.

        Predictions with a score of at least `sure` become objects, the others with at least `ignore_from` become
        ignored regions, neither object nor background; the rest is listed in `further["dropped"]`. Masks are used as
        they are: fuse or postprocess the predictions first, so that no two are of one object.
        `detseg.semi_supervised` has further gates.

        Args:
            path: the file.
            sure, ignore_from: scores, `ignore_from` <= `sure`; one each, or one per class by name.
            image_root: folder to which file names are relative. None: the folder of the file.

        Raises:
            DataError: the file is not a Predictions file, has no masks, or the limits are not for its classes.
        """
        return cls(**labels_of_file(path, sure, ignore_from, image_root))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        annotations: Iterable[Mapping[str, Any]] | None = None,
        image_fields: Sequence[Mapping[str, Any]] | None = None,
        info: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write a COCO file with the content of the data set's own file and the given changes.

        Args:
            path: .json or .json.gz; `info.image_root` is adapted to it.
            annotations: instead of `raw_annotations`.
            image_fields: additional fields of each image.
            info: additional keys of the file's info.
            overwrite: replace an existing file; otherwise it raises DataError.
        """
        path = Path(path)
        root, names = self.common_root()
        fields = image_fields or [{}] * len(self)
        write_coco(
            path,
            images=(
                {"id": record.image_id, "file_name": name, "height": record.height, "width": record.width}
                | {**record.metadata, **more}
                for record, name, more in zip(self.images, names, fields, strict=True)
            ),
            annotations=self.raw_annotations() if annotations is None else annotations,
            categories=(
                {"id": one.id, "name": one.name, **one.metadata}
                for one in sorted(self.categories, key=lambda category: category.position)
            ),
            info={**self.info, "image_root": image_root_for(root, path.parent), **(info or {})},
            further=self.further,
            overwrite=overwrite,
        )

    def raw_annotations(self) -> Iterator[dict[str, Any]]:
        """Yield all annotations as in the file, in the order of the images."""
        for index in range(len(self)):
            rows = self.table.rows(index)
            classes, crowd = self.table.classes[rows].tolist(), self.table.crowd[rows].tolist()
            for row, class_index, is_crowd in zip(self.table.decode(index), classes, crowd, strict=True):
                # The id can change when data sets with different ids are joined.
                row["category_id"] = self.categories[class_index].id
                if "iscrowd" in row:  # as a number, which other programs expect
                    row["iscrowd"] = int(is_crowd)
                yield row

    def rle_annotations(self) -> Iterator[dict[str, Any]]:
        """Yield all annotations in the order of the images, as compressed RLEs with area, bbox and new ids."""
        first_id = 1
        for index, record in enumerate(self.images):
            rles, classes, crowd = self.annotations(index)
            ids = [self.categories[class_index].id for class_index in classes.tolist()]
            yield from annotations_of(rles, ids, image_id=record.image_id, first_id=first_id, crowd=crowd)
            first_id += len(rles)

    def common_root(self) -> tuple[Path, list[str]]:
        """Return the folder that contains all images, and their names relative to it; those in one root are kept."""
        names = [record.file_name.replace("\\", "/") for record in self.images]
        roots = {
            record.path.parents[len(Path(name).parts) - 1] for record, name in zip(self.images, names, strict=True)
        }
        if len(roots) <= 1:
            return (roots.pop() if roots else Path(self.name).parent), [record.file_name for record in self.images]
        root = Path(os.path.commonpath([path.resolve() for path in roots]))
        return root, [record.path.resolve().relative_to(root).as_posix() for record in self.images]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"CocoDataset({self.name}: {len(self)} images, {self.num_objects} objects, {self.class_names})"

    @property
    def class_names(self) -> list[str]:
        return [category.name for category in self.categories]

    @property
    def num_objects(self) -> int:
        """The number of annotations with pixels that are not crowd regions."""
        return int(self.table.is_object.sum())

    def objects_per_image(self) -> np.ndarray:
        """Return (images, classes) int64: the number of objects per image and class, without crowd regions and masks
        without pixels.
        """
        counts = np.zeros((len(self), len(self.categories)), dtype=np.int64)
        image = np.repeat(np.arange(len(self)), np.diff(self.table.offsets))
        objects = self.table.is_object
        np.add.at(counts, (image[objects], self.table.classes[objects]), 1)
        return counts

    def annotations_hash(self) -> str:
        """Return 16 hexadecimal digits that identify the annotations of these images, in any order of images."""
        digests = []
        for index, record in enumerate(self.images):
            rows = self.table.rows(index)
            digest = hashlib.sha256(record.file_name.encode("utf-8", "surrogatepass"))
            digest.update(repr([self.class_names[number] for number in self.table.classes[rows].tolist()]).encode())
            for start, end in zip(self.table.starts[rows], self.table.ends[rows], strict=True):
                digest.update(self.table.text[start:end])
            digests.append(digest.hexdigest())
        return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:16]

    def annotations(self, index: int) -> ImageAnnotations:
        """Return the annotations of image `index`, without polygons that cover no pixel."""
        record = self.images[index]
        rles, empty = self.table.rles(index, record.height, record.width)
        rows = self.table.rows(index)
        classes, crowd = self.table.classes[rows].astype(np.int64), self.table.crowd[rows].copy()
        return ImageAnnotations(list(itertools.compress(rles, ~empty)), classes[~empty], crowd[~empty])

    def object_fields(self, index: int) -> list[dict[str, Any]]:
        """Return the annotations of the objects of image `index` as in the file, in the order of `read_sample`."""
        record, rows = self.images[index], self.table.rows(index)
        left_out = self.table.rles(index, record.height, record.width)[1] | self.table.crowd[rows]
        return list(itertools.compress(self.table.decode(index), ~left_out))

    def read_sample(self, index: int) -> Sample:
        """Read image `index` unprocessed, with its objects; crowd regions become `ignore`.

        Raises DataError if the image cannot be read, or its size differs from the COCO file's.
        """
        record = self.images[index]
        image, facts = self.read_picture(index)
        layers, classes, ignore = self.labels(index)
        return Sample(
            image=image,
            layers=layers,
            classes=classes,
            ignore=ignore,
            image_id=record.image_id,
            file_name=record.file_name,
            metadata=facts,
        )

    def labels(self, index: int) -> tuple[LabelLayers, np.ndarray, np.ndarray | None]:
        """Return the N objects of image `index`, their classes (N,), and its crowd regions (H, W) bool or None."""
        record = self.images[index]
        annotations, ignore = self.annotations(index), None
        if annotations.crowd.any():
            ignore = np.zeros((record.height, record.width), dtype=bool)
            for rle in itertools.compress(annotations.rles, annotations.crowd):
                ignore |= rle_codec.decode(rle)
        objects = annotations.objects
        return LabelLayers.from_rles(objects.rles, record.height, record.width), objects.classes, ignore

    def read_image(self, index: int) -> np.ndarray:
        """Read image `index`, (H, W, C), and check its size against the COCO file."""
        return self.read_picture(index)[0]

    def read_picture(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Read image `index` as `read_image`, with its metadata and the facts stored in its file."""
        record = self.images[index]
        image, facts = read_picture(record.path, record.metadata)
        if image.shape[:2] != (record.height, record.width):
            raise DataError(
                f"{record.path}: the image has {image.shape[0]} x {image.shape[1]} pixels (height x width), but "
                f"{self.name} says {record.height} x {record.width}, so its masks would not fit; prepare the data set "
                "again from these images, or restore the images that it was made from"
            )
        return image, facts

    def check_images_exist(self) -> None:
        """Raise DataError with all images whose file is missing."""
        missing = [str(record.path) for record in self.images if not os.path.isfile(record.path)]
        if missing:
            raise DataError(
                f"{self.name}: {len(missing)} of {len(self)} images are missing; set DATASETS.IMAGE_ROOT (or the "
                f"file's info.image_root) to the folder to which their names are relative:\n{list_problems(missing)}"
            )

    def select(self, indices: Sequence[int] | np.ndarray) -> CocoDataset:
        """Return the data set with these images, in this order."""
        indices = np.asarray(indices, dtype=np.int64)
        images = [self.images[index] for index in indices]
        return dataclasses.replace(self, images=images, table=self.table.select(indices), origins=self.origins[indices])

    @property
    def used_classes(self) -> set[str]:
        """The names of the categories with annotations."""
        return {self.class_names[number] for number in np.unique(self.table.classes).tolist()}

    @property
    def group_names(self) -> set[str]:
        """The names of categories that are the supercategory of others, as written by Roboflow and QuPath."""
        parents = ((one.name, one.metadata.get("supercategory")) for one in self.categories)
        above = {parent for name, parent in parents if isinstance(parent, str) and parent != name}
        return above & set(self.class_names)

    def with_classes(self, names: Sequence[str], *, drop: bool = False) -> CocoDataset:
        """Return the data set with the classes `names`, in this order, matched by name.

        A class that it lacks has no objects; its other categories are removed.

        drop: remove the objects of other classes. Raises DataError if there are some, unless `drop`, and if it has none
        of the classes.
        """
        known = {category.name: category for category in self.categories}
        others = [name for name in self.class_names if name not in names and name in self.used_classes]
        if not any(name in known for name in names) or (others and not drop):
            every = [*names, *others]
            learned = f', or set DATASETS.CLASSES "{every}" and MODEL.ROI_HEADS.NUM_CLASSES {len(every)}'
            learned = learned if len(every) < len(names) + len(known) and not drop else ""
            raise DataError(
                f"{self.name}: its classes are {', '.join(self.class_names)}; expected {', '.join(names)} "
                "(DATASETS.CLASSES, or the first data set's). Rename them (`detseg prepare coco --annotations FILE "
                f"--output DIR --split 1 --classes-from map:NAMES.yaml`, with a line `OLD: NEW` per class){learned}"
            )
        free = itertools.count(1 + max((category.id for category in self.categories), default=0))
        categories = [known[name] if name in known else Category(next(free), name) for name in names]
        index = {name: number for number, name in enumerate(names)}
        new_index = np.array([index.get(name, -1) for name in self.class_names], dtype=np.int32)
        classes = new_index[self.table.classes]
        table = dataclasses.replace(self.table, classes=np.maximum(classes, 0))
        if (classes < 0).any():
            table = table.keep((classes >= 0) | table.crowd)
        return dataclasses.replace(self, categories=categories, table=table)

    def without_crowd(self) -> CocoDataset:
        """Return the data set with crowd annotations turned into objects."""
        return dataclasses.replace(self, table=dataclasses.replace(self.table, crowd=np.zeros_like(self.table.crowd)))

    @staticmethod
    def match_classes(datasets: Sequence[CocoDataset], names: Sequence[str] = ()) -> list[CocoDataset]:
        """Return the data sets with the same classes, matched by name: `names`, or those of the first.

        Groups of classes that no data set uses are removed. Raises DataError like `with_classes`.
        """
        if not names and datasets:
            used = set().union(*(dataset.used_classes for dataset in datasets))
            groups = datasets[0].group_names - used
            names = [name for name in datasets[0].class_names if name not in groups]
        return [dataset.with_classes(names) for dataset in datasets]

    @classmethod
    def concatenate(cls, datasets: Sequence[CocoDataset]) -> CocoDataset:
        """Join data sets of the same classes (matched by name, in the order of the first) for training."""
        if not datasets:
            raise DataError("no data set is given; set DATASETS.TRAIN")
        if len(datasets) == 1:
            return datasets[0]
        datasets = [dataset.with_classes(datasets[0].class_names) for dataset in datasets]
        images = [record for dataset in datasets for record in dataset.images]
        table = AnnotationTable.concatenate([dataset.table for dataset in datasets])
        origins = np.repeat(np.arange(len(datasets)), [len(dataset) for dataset in datasets])
        return cls(images, datasets[0].categories, table, " + ".join(dataset.name for dataset in datasets), origins)
