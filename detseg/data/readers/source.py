"""What a reader finds in a source, and what `prepare` makes COCO files of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class LabelledImage:
    """One image with its N objects.

    name: of the image in lists and tables. file_name: its path below the source's image root, with slashes. height,
    width: pixels. rles: N compressed COCO RLEs. classes: N class indices, 0-based; empty: all of class 0. fields:
    further fields of the image in the COCO file. crowd: N flags, True for a region to be ignored; empty: none. labels:
    what the source calls each object (its number in a label image, the name of its class); empty: as its class.
    """

    name: str
    file_name: str
    height: int
    width: int
    rles: list[dict[str, Any]]
    classes: Sequence[int] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    crowd: Sequence[bool] = ()
    labels: Sequence[str] = ()

    @property
    def class_of_each(self) -> Sequence[int]:
        """N class indices, 0-based."""
        return self.classes if len(self.classes) else [0] * len(self.rles)


class Source(Protocol):
    """A data set as it was downloaded.

    description: for the COCO file's info. class_names: of class 0, 1, ...; empty where the `labels` of objects are the
    names of their classes. names: of the images, each once, sorted. parts: the split that the data come with, part ->
    names, used where no other is asked for; None: they have none.
    unlabelled: names of images that nobody has labelled; they go to a file of their own. problems: found while listing.
    columns: column -> image name -> value, what the source itself says of its images. default_column: the one of them
    that splits are stratified by unless another is named, or None.

    A source whose files may hold several pictures has a `plane` too, a `planes.PlaneChoice` that is set before reading;
    one that carries INPUT keys has them as `input_keys` (see `data.input_keys`).
    """

    description: str
    class_names: Sequence[str]
    names: Sequence[str]
    parts: Mapping[str, Sequence[str]] | None
    unlabelled: Sequence[str]
    problems: Sequence[str]
    columns: Mapping[str, Mapping[str, str]]
    default_column: str | None

    def aliases(self, name: str) -> Sequence[str]:
        """Return what a table of the images may call one of them, the best first."""
        ...

    def describe(self, name: str) -> str:
        """Return what messages call the image."""
        ...

    def read(self, name: str) -> tuple[LabelledImage, list[str]]:
        """Read one image and its masks.

        Returns the image with its good masks, and what is wrong with the others. Raises DataError where nothing of the
        image can be used.
        """
        ...

    def image_root(self, output: Path) -> Path:
        """Return the folder that file names are relative to."""
        ...

    def check_target(self, images: Sequence[LabelledImage], output: Path, *, overwrite: bool) -> None:
        """Raise DataError where `provide` would replace files, unless `overwrite`."""
        ...

    def provide(self, images: Sequence[LabelledImage], output: Path) -> None:
        """Make the images lie below `image_root`."""
        ...
