"""Writing COCO files: streamed, one annotation a line, whole or not at all."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from detseg.errors import DataError
from detseg.structures import rle as rle_codec
from detseg.structures.atomic_write import written_whole


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
