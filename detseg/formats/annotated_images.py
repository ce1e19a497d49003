"""Base of readers of images with one annotation file each, matched by name."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from detseg.errors import DataError
from detseg.formats.file_sets import open_files
from detseg.formats.reader import FoundObjects, Reader, image_names, parts_by_folder, path_name
from detseg.images.reading import SUFFIXES


class AnnotatedImages(Reader):
    """Images with one annotation file each, in one folder or zip archive, or in two.

    A subclass has two required members, `image_of` and `read_annotation`. kind: of annotations, for the description.
    annotation: word for the annotation of one image. expected: the file names that it may have. unlabelled_folders:
    whether images are unlabelled if no image of their folder has an annotation.
    """

    kind = "annotations"
    annotation = "annotation file"
    expected = ""
    unlabelled_folders = False

    def __init__(
        self,
        source: Path,
        annotations: Path | None = None,
        *,
        class_name: str | None = None,
        allow_empty: bool = False,
    ) -> None:
        """Match images and annotations.

        annotations: another folder or archive with these. class_name: of all objects. allow_empty: an image without
        annotation file has no objects; otherwise it is a problem.

        Raises DataError if there are no images, or no annotations.
        """
        super().__init__(source)
        self.description = f"{self.kind} of {source}"
        self.class_names = [] if class_name is None else [class_name]
        self.annotation_files = self.files
        if annotations is not None:
            self.annotation_files = open_files(annotations)
            self.problems += self.annotation_files.problems
        images = [file for file in self.files.names if self.is_image(file)]
        self.file_of = image_names(images, self.problems, self.image_name)
        found: dict[str, Sequence[str]] = {}
        for file in self.annotation_files.names:
            name = self.image_of(file)
            if name is not None:
                found[name] = [*found.get(name, ()), file]
        if not self.file_of or not found:
            where, missing = (source, "images") if not self.file_of else (annotations or source, self.annotation + "s")
            raise DataError(
                f"{where}: there are no {missing}; expected images ({', '.join(SUFFIXES)}) and {self.expected}"
            )
        found = {name: self.choose(files) for name, files in found.items()}
        matched = match_names(self.file_of, list(found))
        self.annotation_of = {name: found[other][0] for name, other in matched.items()}
        lost = self._check_matches(matched, found, allow_empty)
        self.file_of = {name: file for name, file in self.file_of.items() if name not in lost}
        self.parts = parts_by_folder(self.names)

    @abstractmethod
    def image_of(self, file: str) -> str | None:
        """Return the name of the image to which an annotation file belongs, or None for other files."""

    @abstractmethod
    def read_annotation(self, data: bytes, where: str, height: int, width: int) -> FoundObjects:
        """Read an annotation file of an image of height x width pixels. where: name of the file for messages."""

    def choose(self, files: Sequence[str]) -> Sequence[str]:
        """Return the annotation files of one image that count; several are a problem."""
        return files

    def image_name(self, file: str) -> str:
        """Return the name of the image in a file: its path without suffix."""
        return path_name(file)

    def is_image(self, file: str) -> bool:
        """Whether a file with an image suffix is an image."""
        return self.annotation_files is not self.files or self.image_of(file) is None

    def _check_matches(
        self, matched: Mapping[str, str], found: Mapping[str, Sequence[str]], allow_empty: bool
    ) -> set[str]:
        """Record problems; return the names of unusable images."""
        lost = set()
        folders = {PurePosixPath(name).parent for name in matched}
        without = [name for name in self.file_of if name not in matched]
        if self.unlabelled_folders:
            self.unlabelled = sorted(name for name in without if PurePosixPath(name).parent not in folders)
            without = [name for name in without if PurePosixPath(name).parent in folders]
        if not allow_empty:
            lost.update(without)
            self.problems += [
                f"{self.describe(name)}: has no {self.annotation}; expected "
                f"{self.expected.replace('NAME', PurePosixPath(name).name)}; with --allow-empty it has no objects"
                for name in without
            ]
        for name, other in matched.items():
            if len(found[other]) > 1:
                lost.add(name)
                files = ", ".join(map(self.annotation_files.describe, found[other]))
                self.problems.append(f"{self.describe(name)}: has several {self.annotation}s; keep one of {files}")
        unused = set(found) - set(matched.values())
        self.problems += [
            f"{self.annotation_files.describe(file)}: has no image of this name in {self.files}"
            for other in found
            if other in unused
            for file in found[other]
        ]
        return lost

    def find_objects(self, name: str, height: int, width: int) -> FoundObjects:
        file = self.annotation_of.get(name)
        if file is None:
            return FoundObjects()
        return self.read_annotation(
            self.annotation_files.read(file), self.annotation_files.describe(file), height, width
        )


def match_names(images: Sequence[str] | Mapping[str, str], annotations: Sequence[str]) -> dict[str, str]:
    """Match paths without suffix: equal ones, then those with equal last parts that are unique on each side.

    Returns name of an image -> name of its annotation, for those that have one.
    """
    matched = {name: name for name in annotations if name in images}
    sides = [
        {PurePosixPath(name).name: name for name in names if name not in matched} for names in (images, annotations)
    ]
    counts = [
        Counter(PurePosixPath(name).name for name in names if name not in matched) for names in (images, annotations)
    ]
    for last_part, name in sides[0].items():
        if counts[0][last_part] == counts[1][last_part] == 1:
            matched[name] = sides[1][last_part]
    return matched
