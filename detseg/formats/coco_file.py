"""COCO files of any kind as a source: to join or split them, or to remove what is wrong in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from detseg.coco.catalog import read_input_keys
from detseg.coco.dataset import CocoDataset
from detseg.coco.learnable import object_warnings
from detseg.errors import DataError, list_problems
from detseg.files.names import without_ending
from detseg.formats.file_sets import FolderFiles
from detseg.formats.reader import FoundObjects, Reader

KEEP, CLEAR = "keep", "clear"


class CocoFile(Reader):
    """The images and annotations of COCO files; images stay where they are.

    Masks of all forms become compressed RLEs, ids are renumbered, additional image fields are kept.
    """

    def __init__(
        self,
        annotations: Sequence[Path],
        *,
        image_root: Path | None = None,
        last_part: bool = False,
        iscrowd: str = KEEP,
    ) -> None:
        """Read the files; problems of their images and annotations go to `problems`.

        annotations: several are joined, with the classes of the first. last_part: see CocoDataset.load. iscrowd:
        `KEEP`, or `CLEAR` to turn crowd annotations into objects.

        Raises DataError if one is not a COCO file, if none has a usable image, and if they cannot be joined: other
        classes, other INPUT keys, an image that is in two.
        """
        told = [(path, keys) for path in annotations if (keys := read_input_keys(path))]
        for path, keys in told:
            if keys != told[0][1]:
                raise DataError(
                    f"{path}: its info.input is {keys}, but that of {told[0][0]} is {told[0][1]}; only files with the "
                    "same preprocessing can be joined"
                )
        self.input_keys = told[0][1] if told else {}
        problems: list[str] = []
        sets = [CocoDataset.load(path, image_root, skipped=problems, last_part=last_part) for path in annotations]
        _refuse_images_in_two(sets)
        self._dataset = CocoDataset.concatenate(sets)
        if iscrowd == CLEAR:
            self._dataset = self._dataset.without_crowd()
        images, source = self._dataset.images, self._dataset.name
        if not images:
            raise DataError(f"{source}: has no usable images\n{list_problems(problems, 5)}".rstrip())
        root, file_names = self._dataset.common_root()
        paths = [PurePosixPath(name.replace("\\", "/")) for name in file_names]
        if not any(record.path.exists() for record in images) and (root / paths[0].name).exists():
            raise DataError(
                f"{source}: none of its images is in {root} under its name ({paths[0]}, ...), but {paths[0].name} "
                "is: give the folder to which the names are relative, or --last-part to use the last part of each name"
            )
        super().__init__(FolderFiles(root, [str(path) for path in paths]))
        self.problems = problems
        self.description = f"prepared from {source}"
        self.class_names = self._dataset.class_names
        names = without_ending(file_names)
        self.file_of = {name: str(path) for name, path in zip(names, paths, strict=True)}
        self._index_of = {name: index for index, name in enumerate(names)}
        keys = {
            key for record in images for key, value in record.metadata.items() if isinstance(value, (str, int, float))
        }
        self.columns = {
            key: {name: str(record.metadata.get(key, "")) for name, record in zip(names, images, strict=True)}
            for key in sorted(keys)
        }

    def closing_note(self) -> str:
        return "\n".join(f"WARNING: {text}" for text in object_warnings(self._dataset))

    def fields(self, name: str) -> Mapping[str, Any]:
        return self._dataset.images[self._index_of[name]].metadata

    def find_objects(self, name: str, height: int, width: int) -> FoundObjects:
        return objects_of_record(self._dataset, self._index_of[name], self.describe(name), height, width)


def _refuse_images_in_two(sets: Sequence[CocoDataset]) -> None:
    """Raise DataError if data sets have an image in common."""
    first_in: dict[Path, str] = {}
    doubled = []
    for dataset in sets:
        own = {record.path.resolve() for record in dataset.images}
        doubled += [f"{path}: in {first_in[path]} and {dataset.name}" for path in sorted(own & first_in.keys())]
        first_in |= dict.fromkeys(own, dataset.name)
    if doubled:
        raise DataError(f"images are in several of the files; remove them from all but one:\n{list_problems(doubled)}")


def objects_of_record(dataset: CocoDataset, index: int, where: str, height: int, width: int) -> FoundObjects:
    """Return the annotations of an image of height x width. Raises DataError if the COCO file has another size."""
    record = dataset.images[index]
    if (height, width) != (record.height, record.width):
        raise DataError(
            f"{where}: the image has {height} x {width} pixels (height x width), but {dataset.name} says "
            f"{record.height} x {record.width}, so its masks do not fit; restore the images that the file was made "
            "from"
        )
    rles, classes, crowd = dataset.annotations(index)
    return FoundObjects(rles, classes.tolist(), crowd=crowd.tolist())
