"""Masks as COCO run-lengths, in NumPy, without ever making a full-size mask where a crop will do.

An RLE is `{"size": [height, width], "counts": bytes | str}`. The pixels of the mask are read column by column; `counts`
holds the lengths of the runs of zeros and ones in turn, zeros first, compressed to text exactly as COCO's own tools do
(5 bits a character, from the fourth count on as the difference to the count two before). Strings made here and by
pycocotools are identical. Unlike those of pycocotools, the readers here check what they read: a hostile string ends in
`DataError`, never in memory that belongs to something else.

Symbols: N masks, R runs, `start` and `end` positions in the column-major order of the whole image, half-open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.structures.rle_text import compress_many, decompress_many

RLE = dict[str, Any]

# No image has more pixels than this; a larger claim is a broken or hostile file.
MAX_PIXELS = 2**38
# The largest mask or crop that is made in memory, 2 GiB: a few characters of text can claim any size.
MAX_DECODED = 2**31


def encode_mask(mask: np.ndarray) -> RLE:
    """Encode one mask (H, W), bool or anything that is zero outside the object."""
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise DataError(f"a mask has the axes (height, width), but this array has the shape {mask.shape}")
    return encode_crop(mask, 0, 0, mask.shape[0], mask.shape[1])


def encode_crop(crop: np.ndarray, x0: int, y0: int, height: int, width: int) -> RLE:
    """Encode a mask given by a crop (h, w), bool, whose upper left pixel lies at (x0, y0) of an image height x width.

    Time and memory grow with the crop. The crop must lie inside the image.
    """
    return encode_crops([(crop, x0, y0)], height, width)[0]


def encode_crops(crops: Sequence[tuple[np.ndarray, int, int]], height: int, width: int) -> list[RLE]:
    """`encode_crop` for many crops (crop, x0, y0) of one image; what they share is done at once."""
    nothing = np.zeros(0, dtype=np.int64)
    runs = [_crop_runs(np.asarray(crop), x0, y0, height, width) for crop, x0, y0 in crops]
    starts = np.concatenate([nothing, *(start for start, _ in runs)])
    ends = np.concatenate([nothing, *(end for _, end in runs)])
    owners = np.repeat(np.arange(len(runs)), [len(start) for start, _ in runs])
    return _from_runs(starts, ends, owners, len(runs), height, width)


def _crop_runs(crop: np.ndarray, x0: int, y0: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and ends of the runs of one crop, in the column-major order of the whole image."""
    crop_height, crop_width = crop.shape
    if x0 < 0 or y0 < 0 or x0 + crop_width > width or y0 + crop_height > height:
        raise DataError(
            f"a crop of {crop_height} x {crop_width} pixels at x {x0}, y {y0} leaves the image of {height} x {width}"
        )
    # One row of zeros below every column keeps runs of neighbouring columns apart; one zero goes before the first.
    flat = np.zeros(crop_width * (crop_height + 1) + 1, dtype=bool)
    flat[1:].reshape(crop_width, crop_height + 1)[:, :crop_height] = crop.T
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    column, row = np.divmod(changes, crop_height + 1)
    positions = (column + x0) * height + row + y0
    starts, ends = positions[0::2], positions[1::2]
    if crop_height == height:
        # Runs that reach the bottom row and go on at the top of the next column are one run.
        joined = np.flatnonzero(starts[1:] == ends[:-1])
        starts, ends = np.delete(starts, joined + 1), np.delete(ends, joined)
    return starts, ends


def encode_labels(labels: np.ndarray, count: int) -> list[RLE]:
    """Encode all objects 1..count of a label image (H, W) of integers in one pass over the image.

    Returns `count` RLEs in the order of their labels; a label without a pixel gets an empty mask.
    """
    height, width = labels.shape
    flat = np.ascontiguousarray(np.asarray(labels).T).ravel()
    starts, ends, values = _label_runs(flat)
    inside = (values > 0) & (values <= count)
    starts, ends, owners = starts[inside], ends[inside], values[inside].astype(np.int64) - 1
    order = np.argsort(owners, kind="stable")
    return _from_runs(starts[order], ends[order], owners[order], count, height, width)


def _label_runs(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, end and value of every run of equal values in a flat array."""
    if len(flat) == 0:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, flat[:0]
    boundaries = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], boundaries])
    ends = np.concatenate([boundaries, [len(flat)]])
    return starts, ends, flat[starts]


def _from_runs(
    starts: np.ndarray, ends: np.ndarray, owners: np.ndarray, count: int, height: int, width: int
) -> list[RLE]:
    """Compress the runs of ones of `count` masks; runs are sorted by owner and position and do not touch."""
    total = height * width
    runs_each = np.bincount(owners, minlength=count)
    first = np.concatenate([[0], np.cumsum(runs_each)])
    # A mask of r runs has 2 r counts, and one more where zeros follow its last run.
    last_end = np.zeros(count, dtype=np.int64)
    filled = runs_each > 0
    last_end[filled] = ends[first[1:][filled] - 1]
    tail = (last_end < total) | ~filled
    lengths = 2 * runs_each + tail
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    counts = np.zeros(offsets[-1], dtype=np.int64)
    position = offsets[owners] + 2 * (np.arange(len(starts)) - first[owners])
    previous_end = np.zeros(len(starts), dtype=np.int64)
    previous_end[1:] = ends[:-1]
    previous_end[first[:-1][filled]] = 0
    counts[position] = starts - previous_end
    counts[position + 1] = ends - starts
    counts[(offsets[1:] - 1)[tail]] = (total - last_end)[tail]
    return [{"size": [height, width], "counts": text} for text in compress_many(counts, lengths)]


@dataclass(frozen=True)
class Runs:
    """The runs of ones of N masks of images height[n] x width[n].

    starts, ends, owners: (R,) int64, sorted by owner and position; empty runs are left out.
    """

    starts: np.ndarray
    ends: np.ndarray
    owners: np.ndarray
    heights: np.ndarray
    widths: np.ndarray

    def __len__(self) -> int:
        return len(self.heights)


def encode_runs(runs: Runs, height: int, width: int) -> list[RLE]:
    """Encode the runs of masks that all have height x width pixels; runs of one mask that touch become one."""
    touch = (runs.starts[1:] == runs.ends[:-1]) & (runs.owners[1:] == runs.owners[:-1])
    count = len(runs.starts)
    is_first, is_last = np.append(True, ~touch)[:count], np.append(~touch, True)[:count]
    return _from_runs(runs.starts[is_first], runs.ends[is_last], runs.owners[is_last], len(runs), height, width)


def read_runs(rles: Sequence[Mapping[str, Any]]) -> Runs:
    """Read and check N RLEs, compressed or with a list of counts. Raises DataError naming the first broken one."""
    sizes = np.array([_size_of(rle, index) for index, rle in enumerate(rles)], dtype=np.int64).reshape(-1, 2)
    counts, lengths = _read_counts(rles)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    owner = np.repeat(np.arange(len(rles)), lengths)
    negative = np.flatnonzero(counts < 0)
    if len(negative):
        raise DataError(f"the RLE of mask {owner[negative[0]]} has a run of negative length {counts[negative[0]]}")
    totals = sizes[:, 0] * sizes[:, 1]
    too_long = np.flatnonzero(counts > totals[owner])
    if len(too_long):
        raise DataError(
            f"the RLE of mask {owner[too_long[0]]} has a run of {counts[too_long[0]]} pixels, but its image has "
            f"{totals[owner[too_long[0]]]}"
        )
    cumulated = np.concatenate([[0], np.cumsum(counts)])
    sums = cumulated[offsets[1:]] - cumulated[offsets[:-1]]
    wrong = np.flatnonzero(sums != totals)
    if len(wrong):
        height, width = sizes[wrong[0]]
        raise DataError(
            f"the runs of the RLE of mask {wrong[0]} add up to {sums[wrong[0]]} pixels, but its size is "
            f"{height} x {width} = {height * width}; was it made for another image, or row by row "
            "instead of column by column?"
        )
    within = np.arange(len(counts)) - offsets[owner]
    ones = (within % 2 == 1) & (counts > 0)
    ends = (cumulated[1:] - cumulated[offsets[owner]])[ones]
    return Runs(ends - counts[ones], ends, owner[ones], sizes[:, 0], sizes[:, 1])


def _size_of(rle: Mapping[str, Any], index: int) -> tuple[int, int]:
    try:
        height, width = rle["size"]
        valid = int(height) == height and int(width) == width and height >= 0 and width >= 0
        valid = valid and height * width <= MAX_PIXELS and "counts" in rle
    except (KeyError, TypeError, ValueError, OverflowError):
        valid = False
    if not valid:
        raise DataError(
            f'mask {index} is no RLE: {str(rle)[:80]}; expected {{"size": [height, width], "counts": text or numbers}}'
        )
    return int(height), int(width)


def _read_counts(rles: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts of all RLEs behind each other (int64) and the number of counts of each."""
    texts: list[bytes] = []
    for index, rle in enumerate(rles):
        counts = rle["counts"]
        if isinstance(counts, str):
            try:
                counts = counts.encode("ascii")
            except UnicodeEncodeError:
                raise DataError(f"the RLE of mask {index} has characters that no compressed RLE has") from None
        if not isinstance(counts, bytes):
            counts = compress_counts(counts)
        texts.append(counts)
    return decompress_many(texts)


def compress_counts(counts: Sequence[int] | np.ndarray) -> bytes:
    """Compress the run lengths of one mask to COCO's text."""
    try:
        array = np.asarray(counts)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ValueError
        array = array.astype(np.int64)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"run lengths are a list of whole numbers, not {str(counts)[:60]}") from None
    if array.size and (array.min() < 0 or array.max() > MAX_PIXELS):
        raise DataError(f"run lengths lie between 0 and the number of pixels, not {array.min()} to {array.max()}")
    return compress_many(array, np.array([len(array)]))[0]


def decompress_counts(text: bytes | str) -> np.ndarray:
    """Return the run lengths (R,) int64, zeros first, of COCO's compressed text."""
    return _read_counts([{"counts": text}])[0]


def validate(rle: Mapping[str, Any]) -> None:
    """Raise DataError, saying why, where `rle` is not a well-formed COCO RLE."""
    read_runs([rle])


def decode(rle: Mapping[str, Any]) -> np.ndarray:
    """Decode to a mask (H, W) bool."""
    runs = read_runs([rle])
    height, width = int(runs.heights[0]), int(runs.widths[0])
    return _fill(runs.starts, runs.ends, height * width).reshape(width, height).T


def decode_crop(rle: Mapping[str, Any]) -> tuple[np.ndarray, int, int]:
    """Decode to the smallest crop (h, w) bool that holds the mask, and the x0 and y0 of its upper left pixel.

    An empty mask gives a crop of shape (0, 0) at (0, 0).
    """
    return decode_crops([rle])[0]


def decode_crops(rles: Sequence[Mapping[str, Any]]) -> list[tuple[np.ndarray, int, int]]:
    """`decode_crop` for many masks; what they share is read at once."""
    return crops_of(read_runs(rles))


def crops_of(runs: Runs) -> list[tuple[np.ndarray, int, int]]:
    """`decode_crops` for runs that are read already."""
    boxes = _boxes_of(runs)
    bounds = np.searchsorted(runs.owners, np.arange(len(runs) + 1))
    crops = []
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        if x1 <= x0:
            crops.append((np.zeros((0, 0), dtype=bool), 0, 0))
            continue
        inside = slice(bounds[index], bounds[index + 1])
        starts, lengths = runs.starts[inside], runs.ends[inside] - runs.starts[inside]
        column, row = np.divmod(starts, runs.heights[index])
        crop_starts = (column - x0) * (y1 - y0) + row - y0
        flat = _fill(crop_starts, crop_starts + lengths, int((y1 - y0) * (x1 - x0)))
        crops.append((flat.reshape(x1 - x0, y1 - y0).T, int(x0), int(y0)))
    return crops


def _fill(starts: np.ndarray, ends: np.ndarray, length: int) -> np.ndarray:
    """Return a flat bool array of `length` that is True inside the runs."""
    if length > MAX_DECODED:
        raise DataError(
            f"a mask of {length} pixels is not decoded, the limit is {MAX_DECODED}: is the size of its RLE right?"
        )
    steps = np.zeros(length + 1, dtype=np.int8)
    steps[starts] += 1
    steps[ends] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8).view(bool)


def area(rles: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the number of pixels (N,) int64 of every mask."""
    runs = read_runs(rles)
    cumulated = np.concatenate([[0], np.cumsum(runs.ends - runs.starts)])
    bounds = np.searchsorted(runs.owners, np.arange(len(rles) + 1))
    return cumulated[bounds[1:]] - cumulated[bounds[:-1]]


def bounding_boxes(rles: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the tight half-open boxes (N, 4) float32 XYXY of the masks; zeros for an empty one."""
    return _boxes_of(read_runs(rles)).astype(np.float32)


def _boxes_of(runs: Runs) -> np.ndarray:
    """Return tight half-open boxes (N, 4) int64; zeros for empty masks."""
    height = runs.heights[runs.owners]
    first_column, first_row = np.divmod(runs.starts, np.maximum(height, 1))
    last_column, last_row = np.divmod(runs.ends - 1, np.maximum(height, 1))
    # A run over several columns leaves one at the bottom and enters the next at the top.
    wraps = last_column > first_column
    first_row = np.where(wraps, 0, first_row)
    last_row = np.where(wraps, height - 1, last_row)
    count = len(runs)
    boxes = np.zeros((count, 4), dtype=np.int64)
    boxes[:, :2] = np.iinfo(np.int64).max
    np.minimum.at(boxes[:, 0], runs.owners, first_column)
    np.minimum.at(boxes[:, 1], runs.owners, first_row)
    np.maximum.at(boxes[:, 2], runs.owners, last_column + 1)
    np.maximum.at(boxes[:, 3], runs.owners, last_row + 1)
    boxes[boxes[:, 2] == 0] = 0
    return boxes


# Run-lengths turned and mirrored exactly, without full-size masks.
#
# Symbols as in rle.py: runs lie in the column-major order of an image of height x width, half-open.


def mirror_rles(
    rles: Sequence[Mapping[str, Any]], height: int, width: int, *, flip_x: bool = False, flip_y: bool = False
) -> list[RLE]:
    """Mirror N masks of one image, height x width: left and right are exchanged by flip_x, top and bottom by flip_y.

    Runs are moved, no pixel is looked at: time grows with the number of runs. Raises DataError for a broken RLE.
    """
    if not rles:
        return []
    columns = _by_columns(read_runs(rles))
    column, first = np.divmod(columns.starts, height)
    length = columns.ends - columns.starts
    if flip_x:
        column = width - 1 - column
    if flip_y:
        first = height - first - length
    starts = column * height + first
    order = np.argsort(columns.owners * (height * width) + starts, kind="stable")
    starts, length = starts[order], length[order]
    return encode_runs(Runs(starts, starts + length, columns.owners, columns.heights, columns.widths), height, width)


def transpose_rles(rles: Sequence[Mapping[str, Any]], height: int, width: int) -> list[RLE]:
    """Exchange x and y of N masks of one image, height x width; the answer is of width x height."""
    crops = crops_of(read_runs(rles)) if rles else []
    return encode_crops([(crop.T, y0, x0) for crop, x0, y0 in crops], width, height)


def _by_columns(runs: Runs) -> Runs:
    """Cut runs that go on from one column into the next, so that every run lies in one column."""
    height = runs.heights[runs.owners]
    first, last = runs.starts // height, (runs.ends - 1) // height
    pieces = last - first + 1
    if (pieces == 1).all():
        return runs
    number = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    top = (np.repeat(first, pieces) + number) * np.repeat(height, pieces)
    starts = np.maximum(np.repeat(runs.starts, pieces), top)
    ends = np.minimum(np.repeat(runs.ends, pieces), top + np.repeat(height, pieces))
    return Runs(starts, ends, np.repeat(runs.owners, pieces), runs.heights, runs.widths)
