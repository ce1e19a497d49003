"""A COCO file of any kind as a source: to split it, or to leave out what is wrong in it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from detseg.coco.catalog import read_input_keys
from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.formats.source import LabelledImage
from detseg.images.planes import SINGLE
from detseg.images.reading import stored_facts


class CocoFile:
    """The images and annotations of a COCO file as a `Source`; images stay where they are.

    Masks of all forms become compressed run-lengths, ids are written anew, further fields of images are kept.
    """

    parts = None
    unlabelled: Sequence[str] = ()
    default_column = None

    def __init__(self, path: Path, *, image_root: Path | None = None) -> None:
        """Read the file; what is wrong with its images and annotations becomes `problems`.

        Raises DataError where it is no COCO file, or has no image that can be used.
        """
        self.problems: list[str] = []
        self.plane = SINGLE
        self.input_keys = read_input_keys(path)
        self._dataset = CocoDataset.load(path, image_root, skipped=self.problems)
        if not len(self._dataset):
            raise DataError(
                f"{path}: lists no images that can be used" + "".join(f"\n  - {p}" for p in self.problems[:20])
            )
        self.description = f"prepared from {path}"
        self.class_names = self._dataset.class_names
        self._root = Path(image_root) if image_root else _root_of(self._dataset)
        paths = [PurePosixPath(record.file_name.replace("\\", "/")) for record in self._dataset.images]
        stems = Counter(path.with_suffix("") for path in paths)
        # a.png and a.jpg keep their suffix.
        names = [str(path.with_suffix("") if stems[path.with_suffix("")] == 1 else path) for path in paths]
        self._index_of = {name: index for index, name in enumerate(names)}
        self.names = sorted(self._index_of)
        keys = {
            key
            for record in self._dataset.images
            for key, value in record.metadata.items()
            if isinstance(value, (str, int, float))
        }
        self.columns = {
            key: {
                name: str(self._dataset.images[index].metadata.get(key, "")) for name, index in self._index_of.items()
            }
            for key in sorted(keys)
        }

    def aliases(self, name: str) -> list[str]:
        path = PurePosixPath(self._dataset.images[self._index_of[name]].file_name.replace("\\", "/"))
        return [name, str(path), path.stem, path.name]

    def describe(self, name: str) -> str:
        return str(self._dataset.images[self._index_of[name]].path)

    def read(self, name: str) -> tuple[LabelledImage, list[str]]:
        index = self._index_of[name]
        record = self._dataset.images[index]
        if self.plane != SINGLE:
            record = dataclasses.replace(record, metadata={**record.metadata, **self.plane.fields()})
            self._dataset.images[index] = record
        _, facts = self._dataset.read_picture(index)
        rles, classes, crowd = self._dataset.annotations(index)
        file_name = record.file_name.replace("\\", "/")
        image = LabelledImage(
            name, file_name, record.height, record.width, rles, classes.tolist(), stored_facts(facts), crowd.tolist()
        )
        return image, []

    def image_root(self, output: Path) -> Path:
        return self._root

    def check_target(self, images: Sequence[LabelledImage], output: Path, *, overwrite: bool) -> None:
        """Nothing is written."""

    def provide(self, images: Sequence[LabelledImage], output: Path) -> None:
        """They are there."""


def _root_of(dataset: CocoDataset) -> Path:
    """Return the folder that the file names of a data set are relative to."""
    record = dataset.images[0]
    below = PurePosixPath(record.file_name.replace("\\", "/"))
    return record.path.parents[len(below.parts) - 1]
