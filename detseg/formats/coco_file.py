"""A COCO file of any kind as a source: to split it, or to leave out what is wrong in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from detseg.coco.catalog import read_input_keys
from detseg.coco.dataset import CocoDataset
from detseg.coco.learnable import object_warnings
from detseg.errors import DataError, list_problems
from detseg.formats.file_sets import FolderFiles
from detseg.formats.reader import FoundObjects, Reader

KEEP, CLEAR = "keep", "clear"


class CocoFile(Reader):
    """The images and annotations of a COCO file; images stay where they are.

    Masks of all forms become compressed run-lengths, ids are written anew, further fields of images are kept.
    """

    def __init__(
        self, annotations: Path, *, image_root: Path | None = None, last_part: bool = False, iscrowd: str = KEEP
    ) -> None:
        """Read the file; what is wrong with its images and annotations becomes `problems`.

        last_part: see CocoDataset.load. iscrowd: `KEEP`, or `CLEAR` to make objects of what is marked as crowd.

        Raises DataError where it is no COCO file, or has no image that can be used.
        """
        self.input_keys = read_input_keys(annotations)
        problems: list[str] = []
        self._dataset = CocoDataset.load(annotations, image_root, skipped=problems, last_part=last_part)
        if iscrowd == CLEAR:
            self._dataset = self._dataset.without_crowd()
        images = self._dataset.images
        if not images:
            raise DataError(f"{annotations}: lists no images that can be used\n{list_problems(problems, 5)}".rstrip())
        paths = [PurePosixPath(record.file_name.replace("\\", "/")) for record in images]
        root = image_root or images[0].path.parents[len(paths[0].parts) - 1]
        if not any(record.path.exists() for record in images) and (root / paths[0].name).exists():
            raise DataError(
                f"{annotations}: none of its images is below {root} by its name ({paths[0]}, ...), but {paths[0].name} "
                "is: give the folder that the names begin in, or --last-part, which takes the last part of each name"
            )
        super().__init__(FolderFiles(root, [str(path) for path in paths]))
        self.problems = problems
        self.description = f"prepared from {annotations}"
        self.class_names = self._dataset.class_names
        without = [path.with_suffix("") for path in paths]
        counts = Counter(without)
        # a.png and a.jpg keep their ending.
        names = [str(bare if counts[bare] == 1 else path) for bare, path in zip(without, paths, strict=True)]
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


def objects_of_record(dataset: CocoDataset, index: int, where: str, height: int, width: int) -> FoundObjects:
    """Return the annotations of an image of height x width. Raises DataError where the COCO file says another size."""
    record = dataset.images[index]
    if (height, width) != (record.height, record.width):
        raise DataError(
            f"{where}: the image has {height} x {width} pixels (height x width), but {dataset.name} says "
            f"{record.height} x {record.width}: its masks do not fit; put back the images that the file was "
            "made from"
        )
    rles, classes, crowd = dataset.annotations(index)
    return FoundObjects(rles, classes.tolist(), crowd=crowd.tolist())
