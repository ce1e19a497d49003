"""Export a COCO or Predictions file to files of other formats; each file is written atomically."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from detseg.coco.dataset import ImageRecord
from detseg.errors import ConfigError, DataError
from detseg.files.atomic import check_free, folder_for
from detseg.files.names import has_drive, without_ending
from detseg.files.table import write_csv
from detseg.formats.label_images import OVERLAPS, REFUSE, to_label_image
from detseg.formats.objects import ImageObjects, ObjectsFile
from detseg.formats.table import WRITERS
from detseg.structures import rle as rle_codec
from detseg.structures.sample import PixelSize, pixel_size_of

OBJECTS_NAME = "objects.csv"


@dataclass(frozen=True)
class ExportOptions:
    """How objects are exported.

    overlaps: one of `label_images.OVERLAPS`, for formats with one label per pixel. score_threshold: predictions below
    it are left out. pixel_size: (y, x) micrometres for all images; None: that of each, if known. pictures: image id ->
    image, for all images or none, for intensities and for the facts in the image files.
    """

    overlaps: str = REFUSE
    score_threshold: float = 0.0
    pixel_size: PixelSize | None = None
    pictures: Mapping[int | str, ImageRecord] = dataclasses.field(default_factory=dict)
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.overlaps not in OVERLAPS:
            raise ConfigError(f"the overlaps are {self.overlaps!r}; expected one of {', '.join(OVERLAPS)}")


@dataclass
class ExportCount:
    """Numbers of exported images and objects; ignored regions and empty masks, both left out; files."""

    images: int = 0
    objects: int = 0
    ignored: int = 0
    empty: int = 0
    files: list[Path] = dataclasses.field(default_factory=list)


def export(
    source: ObjectsFile,
    form_name: str,
    output: Path,
    options: ExportOptions = ExportOptions(),
    *,
    progress: Callable[[Iterable[ImageObjects]], Iterable[ImageObjects]] = iter,
) -> ExportCount:
    """Write all images of a file in a format, below the folder `output`.

    progress: wraps the loop over the images.

    Raises:
        ConfigError: unknown format. DataError: files exist, unless `overwrite`; names collide or lead out of the
            folder; objects overlap and that is refused (nothing is written then); files cannot be written.
    """
    form = WRITERS.get(form_name)
    if form is None:
        raise ConfigError(f"there is no form {form_name!r}; there are: {', '.join(WRITERS)}")
    targets = {} if form.is_table else image_targets(output, source.names, form.ending)
    tables = [output / form.ending] if form.is_table else [] if form.has_classes else [output / OBJECTS_NAME]
    files = [*targets.values(), *tables]
    check_free(*files, overwrite=options.overwrite)
    if not form.has_overlaps and options.overlaps == REFUSE:
        for objects in _exported(source, options, ExportCount()):
            to_label_image(objects)
    count = ExportCount(files=files)
    images = _exported(progress(source), options, count)
    write = form.load()
    with ExitStack() as folders:
        for folder in sorted({output, *(path.parent for path in files)}):
            folders.enter_context(folder_for(folder))
        if form.is_table:
            write(tables[0], images, source.class_names)
            return count
        # Label images lack the class and score of every label.
        rows: list[tuple[object, ...]] = [("image", "label", "class", "score")]
        for objects in images:
            write(targets[objects.file_name], objects, source.class_names if form.has_overlaps else options.overlaps)
            for index, class_index in enumerate(objects.classes.tolist()):
                score = "" if objects.scores is None else f"{objects.scores[index]:.6g}"
                rows.append((objects.file_name, index + 1, source.class_names[class_index], score))
        if tables:
            write_csv(tables[0], rows, "the table")
    return count


def _exported(source: Iterable[ImageObjects], options: ExportOptions, count: ExportCount) -> Iterator[ImageObjects]:
    """Yield the exported objects of each image, and count them."""
    for objects in source:
        if objects.scores is not None and options.score_threshold > 0:
            objects = objects.select(objects.scores >= np.float32(options.score_threshold))
        size = options.pixel_size or objects.pixel_size
        fields, picture = objects.fields, None
        if options.pictures:
            record = options.pictures[objects.image_id]
            fields, picture = {**record.metadata, **fields}, record.path
            size = size or pixel_size_of(fields, objects.file_name)
        count.images += 1
        empty = int((rle_codec.area(objects.rles) == 0).sum())
        count.objects += len(objects) - empty
        count.empty += empty
        count.ignored += objects.num_ignored
        yield dataclasses.replace(objects, pixel_size=size, fields=fields, picture=picture)


def image_targets(folder: Path, file_names: Sequence[str], ending: str) -> dict[str, Path]:
    """Return the output file of every image: the image's name with another suffix, in the same subfolders.

    The suffix is appended to the whole name if images differ only in their suffixes: `x.png.tif`, `x.jpg.tif`.

    Raises:
        DataError: two images would get the same file nevertheless, or a name leads out of the folder.
    """
    taken: dict[Path, str] = {}
    for name in file_names:
        relative = PurePosixPath(name.replace("\\", "/"))
        if not relative.name or relative.is_absolute() or ".." in relative.parts or has_drive(name):
            raise DataError(f"{name}: a file name that leads out of its folder cannot be exported")
    for name, bare in zip(file_names, without_ending(file_names), strict=True):
        path = folder / f"{bare}{ending}"
        if path in taken:
            raise DataError(f"{taken[path]} and {name} would both be written to {path}; rename one of them")
        taken[path] = name
    return {name: path for path, name in taken.items()}
