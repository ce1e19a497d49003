"""Base of all readers: a downloaded data set, image by image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.formats.file_sets import FolderFiles, ZipFiles, open_files
from detseg.formats.plausibility import is_label_picture
from detseg.images.planes import SINGLE
from detseg.images.reading import SUFFIXES, stored_facts
from detseg.structures import rle as rle_codec
from detseg.structures.label_layers import LabelLayers
from detseg.structures.mask_crop import MaskCrop


@dataclass
class FoundObjects:
    """The N objects that a reader found in an image, and problems of others.

    rles: compressed COCO RLEs. classes: N indices into the reader's class names; default all 0. labels: name of each
    object in the data (its number in a label image, the name of its class); default its class. crowd: N flags, True for
    a region to be ignored; default none. problems: of unusable objects.
    """

    rles: Sequence[dict[str, Any]] = ()
    classes: Sequence[int] = ()
    labels: Sequence[str] = ()
    crowd: Sequence[bool] = ()
    problems: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.classes = self.classes if len(self.classes) else [0] * len(self.rles)
        self.crowd = self.crowd if len(self.crowd) else [False] * len(self.rles)


@dataclass(frozen=True)
class LabelledImage:
    """One image with its objects.

    name: of the image in lists and tables. file_name: its path below the image root, with slashes. height, width:
    pixels. fields: additional fields of the image in the COCO file. is_labels: see `plausibility.is_label_picture`.
    """

    name: str
    file_name: str
    height: int
    width: int
    objects: FoundObjects
    fields: Mapping[str, Any] = field(default_factory=dict)
    is_labels: bool = False


class Reader(ABC):
    """A downloaded data set, from which `detseg prepare` makes COCO files.

    A subclass has two required members, `file_of` (set by its constructor, which takes the options of its row in
    `table.FORMATS`) and `find_objects`; all others have defaults. Images with a mask NAME_cells.png each:

        class CellMasks(Reader):
            class_names = ("cell",)

            def __init__(self, source: Path) -> None:
                super().__init__(source)
                images = [file for file in self.files.names if not file.endswith("_cells.png")]
                self.file_of = image_names(images, self.problems)

            def find_objects(self, name: str, height: int, width: int) -> FoundObjects:
                mask = self.files.read(f"{name}_cells.png")
                return objects_of_labels(decode_label_image(mask, f"{name}_cells.png"), name, height, width)

    files: the folder or zip archive of the images. file_of: image name -> its file there. description: for the COCO
    file's info. class_names: of class 0, 1, ...; empty if the `labels` of objects are their class names. parts: split
    of the data, part -> image names, used unless another one is given; None without a split. unlabelled: names of
    images without annotations, which go to a separate COCO file. problems: found while listing. columns: column ->
    image name -> value, image properties in the data. stratify_by: default column to stratify splits by, or None.
    input_keys: INPUT keys for the COCO files, see `coco.catalog`. has_metadata: whether image files may have several
    planes (see `plane`), pixel size and channel names. one_class_per_image: whether all objects of an image have one
    class, for `--repair`. plane: which plane of its file an image is; set from the user's options before images are
    read.
    """

    description = ""
    class_names: Sequence[str] = ()
    parts: Mapping[str, Sequence[str]] | None = None
    unlabelled: Sequence[str] = ()
    stratify_by: str | None = None
    input_keys: Mapping[str, Any] = {}
    has_metadata = True
    one_class_per_image = False
    plane = SINGLE
    file_of: Mapping[str, str]

    def __init__(self, source: Path | FolderFiles) -> None:
        """Open the folder or zip archive of the images. Raises DataError if it cannot be opened."""
        self.files: FolderFiles | ZipFiles = open_files(source) if isinstance(source, Path) else source
        self.problems: list[str] = list(self.files.problems)
        self.columns: dict[str, dict[str, str]] = {}

    @abstractmethod
    def find_objects(self, name: str, height: int, width: int) -> FoundObjects:
        """Return the objects of an image of height x width pixels. Raises DataError if it has no annotation."""

    def fields(self, name: str) -> Mapping[str, Any]:
        """Return additional fields of an image for the COCO file."""
        return {}

    def closing_note(self) -> str:
        """Return a message to show after all images have been read."""
        return ""

    @property
    def names(self) -> list[str]:
        """The names of the labelled images, sorted."""
        return sorted(set(self.file_of) - set(self.unlabelled))

    def aliases(self, name: str) -> list[str]:
        """Return the names by which tables may refer to an image, best first."""
        path = PurePosixPath(self.file_of[name])
        return [name, str(path), PurePosixPath(path_name(str(path))).name, path.name]

    def describe(self, name: str) -> str:
        """Return the name of an image for messages."""
        return self.files.describe(self.file_of[name])

    def read(self, name: str) -> LabelledImage:
        """Read one image and its objects.

        Raises DataError if none of its objects is usable, because it would then look like an image without objects.
        """
        own = self.fields(name)
        picture, facts = self.files.read_picture(self.file_of[name], {**own, **self.plane.fields()})
        height, width = picture.shape[:2]
        found = FoundObjects() if name in self.unlabelled else self.find_objects(name, height, width)
        if found.problems and not len(found.rles):
            raise DataError(
                f"{self.describe(name)}: none of its {len(found.problems)} masks can be used; {found.problems[0]}"
            )
        fields = stored_facts(facts) if self.has_metadata else own
        is_labels = is_label_picture(picture, found.rles)
        return LabelledImage(name, self.file_of[name], height, width, found, fields, is_labels)


def objects_of_labels(labels: np.ndarray, where: str, height: int, width: int) -> FoundObjects:
    """Return the objects of a label image (H, W) int32, labelled by number. Raises DataError if sizes differ."""
    check_mask_size(labels, where, height, width)
    numbers = np.unique(labels)
    rles = LabelLayers.from_label_image(labels).to_rles()
    return FoundObjects(rles, labels=[str(number) for number in numbers[numbers > 0]])


def objects_of_crops(crops: Sequence[MaskCrop], height: int, width: int, **further: Any) -> FoundObjects:
    """Return the objects of mask crops. further: other fields of `FoundObjects`."""
    return FoundObjects(rle_codec.encode_crops(crops, height, width), **further)


def check_mask_size(mask: np.ndarray, where: str, height: int, width: int) -> None:
    """Raise DataError if the size of a mask (H, W) differs from its image's."""
    if mask.shape != (height, width):
        found = " x ".join(map(str, mask.shape))
        raise DataError(f"{where}: has {found} pixels (height x width), its image {height} x {width}")


def path_name(file: str) -> str:
    """Return the path without its suffix; .ome.tif is one suffix."""
    path = PurePosixPath(file).with_suffix("")
    return (path.with_suffix("") if path.suffix.lower() == ".ome" else path).as_posix()


def image_names(files: Iterable[str], problems: list[str], name_of: Callable[[str], str] = path_name) -> dict[str, str]:
    """Return name -> file of the images among files; further files with the same name go to `problems`."""
    names: dict[str, str] = {}
    for file in files:
        if PurePosixPath(file).suffix.lower() not in SUFFIXES:
            continue
        other = names.setdefault(name_of(file), file)
        if other != file:
            problems.append(f"{file}: has the same name as {other}; keep one of them")
    return names


def parts_by_folder(names: Sequence[str]) -> dict[str, list[str]] | None:
    """Return the split of images in folders train, val(idation) and test; None if an image is in none of them."""
    parts: dict[str, list[str]] = {}
    known = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test"}
    for name in names:
        folders = [folder.lower() for folder in PurePosixPath(name).parent.parts]
        part = next((known[folder] for folder in folders if folder in known), None)
        if part is None:
            return None
        parts.setdefault(part, []).append(name)
    return parts if len(parts) > 1 else None
