"""Read a large JSON file piece by piece: a COCO file's annotations are never all Python objects at once.

A file with a million polygons is 1 GB of text but 10 GB as lists; here the text is kept and the lists are temporary.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

import numpy as np

from detseg.errors import DataError
from detseg.files.atomic import check_free, folder_for, written_whole
from detseg.files.reading import open_plain_or_gzip
from detseg.structures import rle as rle_codec

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_CLOSING = {"[": "]", "{": "}"}
_EMPTY = re.compile(r"\{[ \t\n\r]*\}")


def open_json(path: Path, *, errors: str = "strict") -> IO[str]:
    """Open a UTF-8 text file, or a gzip of one, recognized by its first bytes."""
    return io.TextIOWrapper(open_plain_or_gzip(path), encoding="utf-8", errors=errors)


def read_json_text(path: Path) -> str:
    """Read a JSON file, or a gzip of one, as ASCII text, so that characters are bytes."""
    try:
        with open_plain_or_gzip(path) as file:
            text = file.read().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path") from None
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON text (UTF-8, or gzip of it): {error}; write or copy it again") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if text.isascii():
        return text
    try:
        return json.dumps(json.loads(text), separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise not_json(path, error) from None


def not_json(path: Path, error: Exception) -> DataError:
    """Return the error for a truncated file or one that is not JSON."""
    reason = "its brackets are nested too deeply" if isinstance(error, RecursionError) else str(error)
    return DataError(f"{path}: is truncated or not JSON ({reason}); write or copy it again")


def scan_object(text: str, key: str, visit: Callable[[Any, int, int], None], path: Path) -> dict[str, Any]:
    """Decode the object in `text`; the elements of its list `key` are passed to `visit` one by one instead.

    An object in place of the list stands for its values, as in LIVECell's files for single cell types.
    `visit(element, start, end)` gets each element and its position in the text. Returns the other keys with their
    values, and `key` with its number of elements. Raises DataError if the text is not a JSON object.
    """
    values: dict[str, Any] = {}
    try:
        position = _expect(text, _skip(text, 0), "{")
        while text[position : position + 1] != "}":
            found, position = _DECODER.raw_decode(text, position)
            if not isinstance(found, str):
                raise json.JSONDecodeError("expected a key", text, position)
            position = _expect(text, _skip(text, position), ":")
            opening = text[position : position + 1]
            if found == key and opening in _CLOSING and not _EMPTY.match(text, position):
                values[found], position = _scan_elements(text, position + 1, _CLOSING[opening], visit)
            else:
                values[found], position = _DECODER.raw_decode(text, position)
            position = _next(text, position, "}")
        if _skip(text, position + 1) != len(text):
            raise json.JSONDecodeError("expected the end", text, position + 1)
    except (ValueError, RecursionError) as error:
        raise not_json(path, error) from None
    return values


def _scan_elements(text: str, position: int, closing: str, visit: Callable[[Any, int, int], None]) -> tuple[int, int]:
    """Visit the elements of a list, or the values of an object, starting after its bracket.

    Returns their number and the position after the closing bracket.
    """
    count = 0
    position = _skip(text, position)
    while text[position : position + 1] != closing:
        if closing == "}":
            _, position = _DECODER.raw_decode(text, position)
            position = _expect(text, _skip(text, position), ":")
        element, end = _DECODER.raw_decode(text, position)
        visit(element, position, end)
        count += 1
        position = _next(text, end, closing)
    return count, position + 1


def _next(text: str, position: int, closing: str) -> int:
    """Return the position of the next element, or of the closing bracket, after the end of an element."""
    position = _skip(text, position)
    if text[position : position + 1] == closing:
        return position
    position = _expect(text, position, ",")
    if text[position : position + 1] == closing:
        raise json.JSONDecodeError("expected a value after the comma", text, position)
    return position


def _expect(text: str, position: int, character: str) -> int:
    if text[position : position + 1] != character:
        raise json.JSONDecodeError(f"expected {character!r}", text, position)
    return _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    return _SPACE.match(text, position).end()  # type: ignore[union-attr]


# Writing of COCO files: streamed, one annotation per line, atomic.


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
    """Write a COCO data set from its rows (gzip if the name ends in .gz).

    `annotations` may be a generator; see `annotations_of`. further: additional keys of the file (licenses, ...).
    Raises DataError if the file exists, unless `overwrite`, or cannot be written.
    """
    path = Path(path)
    check_free(path, overwrite=overwrite)
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
    """Open a text file for writing, UTF-8, gzip if its name ends in .gz; see `written_whole`.

    The same text gives the same bytes: a gzip header has neither name nor time. The folder is created.
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

    Ids count from `first_id`.
    """
    if not len(rles) == len(category_ids) == (len(rles) if crowd is None else len(crowd)):
        raise DataError(
            f"image {image_id}: {len(rles)} masks and {len(category_ids)} classes; expected one class per mask"
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
    """Return an RLE for JSON, with its counts as a string; lists of numbers are compressed."""
    counts = rle["counts"]
    if not isinstance(counts, (bytes, str)):
        counts = rle_codec.compress_counts(counts)
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in rle["size"]], "counts": text}


def image_root_for(images: Path, output: Path) -> str:
    """Return the image folder for `info.image_root` of a COCO file in the folder `output`.

    It is relative if it is inside or next to the output, so that both can be moved together.
    """
    images, output = images.resolve(), output.resolve()
    try:
        relative = Path(os.path.relpath(images, output))
    except ValueError:  # another drive on Windows
        return images.as_posix()
    return relative.as_posix() if relative.parts.count("..") <= 1 else images.as_posix()
