"""Writing COCO files: streamed, one annotation a line, whole or not at all."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from detseg.errors import DataError
from detseg.files.atomic import folder_for, written_whole
from detseg.structures import rle as rle_codec


def write_coco(
    path: str | os.PathLike[str],
    *,
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    categories: Iterable[Mapping[str, Any]],
    info: Mapping[str, Any] | None = None,
    further: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a COCO data set of any rows (gzip where the name ends in .gz).

    `annotations` may be a generator; see `annotations_of`. further: other keys of the file (licenses, ...).
    Raises DataError where the file exists, unless `overwrite`, and where it cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists already; pass --overwrite to replace it, or name another output")
    with json_file(path, "the COCO file") as file:
        file.write(f'{{"info": {json.dumps(dict(info or {}))}')
        for key, rows in (("categories", categories), ("images", images), ("annotations", annotations)):
            file.write(f',\n"{key}": [')
            for number, row in enumerate(rows):
                file.write(",\n" if number else "\n")
                file.write(json.dumps(row, separators=(",", ":")))
            file.write("]")
        for key, value in (further or {}).items():
            file.write(f",\n{json.dumps(key)}: {json.dumps(value)}")
        file.write("}\n")


@contextmanager
def json_file(path: Path, what: str) -> Iterator[TextIO]:
    """Open a text file for writing, UTF-8, gzip where its name ends in .gz; see `written_whole`.

    The same text gives the same bytes: neither name nor time are in the header of a compressed one. Its folder is made.
    """
    with folder_for(path.parent), written_whole(path, what) as temporary:
        if path.suffix != ".gz":
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                yield file
            return
        with (
            open(temporary, "wb") as raw,
            gzip.GzipFile(filename="", mode="wb", compresslevel=6, mtime=0, fileobj=raw) as packed,
            io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file,
        ):
            yield file


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
        yield {
            "id": first_id + number,
            "image_id": image_id,
            "category_id": int(category_ids[number]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": area,
            "iscrowd": int(crowd[number]) if crowd is not None else 0,
            "segmentation": json_rle(rle),
        }


def json_rle(rle: Mapping[str, Any]) -> dict[str, Any]:
    """Return an RLE as JSON can hold it: its counts as text; those that are a list of numbers are compressed."""
    counts = rle["counts"]
    if not isinstance(counts, (bytes, str)):
        counts = rle_codec.compress_counts(counts)
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in rle["size"]], "counts": text}


def image_root_for(images: Path, output: Path) -> str:
    """Return the folder of the images as a COCO file in the folder `output` names it.

    Relative where it is beside or below the output, so that both can move.
    """
    images, output = images.resolve(), output.resolve()
    try:
        relative = Path(os.path.relpath(images, output))
    except ValueError:  # another drive on Windows
        return images.as_posix()
    return relative.as_posix() if relative.parts.count("..") <= 1 else images.as_posix()
