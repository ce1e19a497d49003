"""Masks as COCO run-length encodings (RLE), in NumPy, without full-size masks where a crop suffices.

An RLE is `{"size": [height, width], "counts": bytes | str}`. The pixels of the mask are in column-major order; `counts`
has the lengths of alternating runs of zeros and ones, zeros first, compressed to text as by COCO's own tools (5 bits
per character, from the fourth count on as the difference to the count two before). Strings are identical to those of
pycocotools. Unlike pycocotools, the functions here validate their input: a malicious string raises `DataError` and
never reads memory out of bounds.

Symbols: N masks.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.structures.mask_crop import MaskCrop, crops_of_runs, runs_of_crops
from detseg.structures.runs import Runs, fill_runs

# COCO's text form of run lengths, for many masks at once.
#
# Every number is written in groups of 5 bits, lowest first, as in LEB128: a character is 48 + group, plus 32 if more
# groups follow; the highest bit of the last group is the sign. From the fourth number of a mask on, the difference to
# the number two before is written, since runs of neighbouring columns are similar.

# 8 groups hold 40 bits; a longer number exceeds any image.
MAX_GROUPS = 8


def compress_many(counts: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """Compress the counts of several masks.

    counts: (R,) int64, concatenated run lengths of all masks. lengths: number of counts of each mask.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(len(counts)) - np.repeat(offsets[:-1], lengths)
    values = counts.astype(np.int64)
    differences = np.flatnonzero(within > 2)
    values[differences] -= counts[differences - 2]

    groups = np.ones(len(values), dtype=np.int64)
    for more in range(1, MAX_GROUPS + 1):
        # A number fits into g groups when it lies within [-2^(5g-1), 2^(5g-1)).
        limit = 1 << (5 * more - 1)
        groups += (values < -limit) | (values >= limit)
    ends = np.cumsum(groups)
    text = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    for group in range(int(groups.max()) if len(groups) else 0):
        here = np.flatnonzero(groups > group)
        character = (values[here] >> (5 * group)) & 0x1F
        character += 48 + 32 * (groups[here] > group + 1)
        text[ends[here] - groups[here] + group] = character
    data = text.tobytes()
    ends_of_masks = np.concatenate([[0], ends])[offsets]
    return [data[start:end] for start, end in itertools.pairwise(ends_of_masks)]


def decompress_many(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the concatenated counts of several masks, (R,) int64, and the number of counts of each mask, (N,) int64.

    Raises DataError if a text is truncated or has an invalid character. Sums and signs are not checked here.
    """
    sizes = np.array([len(text) for text in texts], dtype=np.int64)
    characters = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.int64) - 48
    owner = np.repeat(np.arange(len(texts)), sizes)
    wrong = np.flatnonzero((characters < 0) | (characters > 63))
    if len(wrong):
        raise DataError(f"the RLE of mask {owner[wrong[0]]} has invalid characters")
    last = (characters & 0x20) == 0
    ends_of_masks = np.cumsum(sizes)
    nonempty = sizes > 0
    cut = np.flatnonzero(~last[ends_of_masks[nonempty] - 1])
    if len(cut):
        raise DataError(f"the RLE of mask {np.flatnonzero(nonempty)[cut[0]]} is truncated in the middle of a number")

    number_ends = np.flatnonzero(last)
    number_starts = np.concatenate([[0], number_ends[:-1] + 1]) if len(number_ends) else number_ends
    groups = number_ends - number_starts + 1
    if len(groups) and groups.max() > MAX_GROUPS:
        raise DataError(f"the RLE of mask {owner[number_starts[groups.argmax()]]} has a run longer than any image")
    shift = 5 * (np.arange(len(characters)) - np.repeat(number_starts, groups))
    values = np.add.reduceat((characters & 0x1F) << shift, number_starts) if len(groups) else groups
    negative = (characters[number_ends] & 0x10) != 0
    values = values - (negative.astype(np.int64) << (5 * groups))

    lengths = np.bincount(owner[number_ends], minlength=len(texts)).astype(np.int64)
    return _undo_differences(values, lengths), lengths


def _undo_differences(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Add to every number from a mask's fourth on the number two before, by two cumulative sums per mask."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(values)) - offsets[owner]
    counts = values.copy()
    # The chains start with the second and the third number; the first belongs to none.
    for chain in ((within % 2 == 1), (within % 2 == 0) & (within > 0)):
        index = np.flatnonzero(chain)
        if len(index) == 0:
            continue
        sums = np.cumsum(values[index])
        starts = np.flatnonzero(np.diff(owner[index], prepend=-1))
        before = np.concatenate([[0], sums])[starts]
        counts[index] = sums - np.repeat(before, np.diff(np.append(starts, len(index))))
    return counts


RLE = dict[str, Any]

# No image has more pixels than this; a larger size is broken or malicious.
MAX_PIXELS = 2**38


def encode_mask(mask: np.ndarray) -> RLE:
    """Encode one mask (H, W), bool or a dtype with 0 outside the object."""
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise DataError(f"expected a mask with the axes (height, width), not an array of the shape {mask.shape}")
    return encode_crop(mask, 0, 0, mask.shape[0], mask.shape[1])


def encode_crop(crop: np.ndarray, x0: int, y0: int, height: int, width: int) -> RLE:
    """Encode a crop (h, w) bool with its upper left pixel at (x0, y0) in an image height x width.

    Time and memory grow with the crop. The crop must lie inside the image.
    """
    return encode_crops([(crop, x0, y0)], height, width)[0]


def encode_crops(crops: Sequence[tuple[np.ndarray, int, int]], height: int, width: int) -> list[RLE]:
    """`encode_crop` for many crops (crop, x0, y0) of one image, vectorized."""
    return encode_runs(runs_of_crops(crops, height, width))


def encode_labels(labels: np.ndarray, count: int) -> list[RLE]:
    """Encode all objects 1..count of a label image (H, W) of integers in one pass.

    Returns `count` RLEs in the order of their labels; a label without pixels gets an empty mask.
    """
    height, width = labels.shape
    flat = np.ascontiguousarray(np.asarray(labels).T).ravel()
    begins = np.ones(len(flat), dtype=bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    starts = np.flatnonzero(begins)
    ends, values = np.append(starts, len(flat))[1:], flat[starts]
    inside = (values > 0) & (values <= count)
    starts, ends, owners = starts[inside], ends[inside], values[inside].astype(np.int64) - 1
    order = np.argsort(owners, kind="stable")
    return encode_runs(Runs(starts[order], ends[order], owners[order], np.full(count, height), np.full(count, width)))


def encode_runs(runs: Runs) -> list[RLE]:
    """Encode masks given as runs; touching runs of one mask are merged."""
    touch = (runs.starts[1:] == runs.ends[:-1]) & (runs.owners[1:] == runs.owners[:-1])
    number = len(runs.starts)
    is_first, is_last = np.append(True, ~touch)[:number], np.append(~touch, True)[:number]
    starts, ends, owners = runs.starts[is_first], runs.ends[is_last], runs.owners[is_last]
    count, total = len(runs), runs.heights * runs.widths
    runs_each = np.bincount(owners, minlength=count)
    first = np.concatenate([[0], np.cumsum(runs_each)])
    # A mask with r runs has 2 r counts, plus one if zeros follow its last run.
    last_end = np.zeros(count, dtype=np.int64)
    filled = runs_each > 0
    last_end[filled] = ends[first[1:][filled] - 1]
    tail = (last_end < total) | ~filled  # an empty image has one count, 0
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
    sizes = np.stack([runs.heights, runs.widths], axis=1).tolist()
    return [{"size": size, "counts": text} for size, text in zip(sizes, compress_many(counts, lengths), strict=True)]


def read_runs(rles: Sequence[Mapping[str, Any]]) -> Runs:
    """Decode and validate N RLEs, compressed or with a list of counts. Raises DataError with the first invalid one."""
    sizes = np.array([_size_of(rle, index) for index, rle in enumerate(rles)], dtype=np.int64).reshape(-1, 2)
    counts, lengths = _read_counts(rles, sizes)
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
            f"{height} x {width} = {height * width}; it may be of another image, or in row-major instead of "
            "column-major order"
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
            f'mask {index} not an RLE: {str(rle)[:80]}; expected {{"size": [height, width], "counts": text or numbers}}'
        )
    return int(height), int(width)


def _read_counts(rles: Sequence[Mapping[str, Any]], sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts of all RLEs concatenated (int64) and the number of counts of each. sizes: (N, 2)."""
    texts: list[bytes] = []
    for index, (rle, (height, width)) in enumerate(zip(rles, sizes.tolist(), strict=True)):
        counts = rle["counts"]
        # Runs without pixels are legal, but must be limited: each takes 50 times its byte in memory.
        if isinstance(counts, (str, bytes, list)) and len(counts) > 4 * (height * width + 100):
            raise DataError(
                f"the RLE of mask {index} has {len(counts)} characters or numbers, more than the mask of an image of "
                f"{height} x {width} pixels can have"
            )
        if isinstance(counts, str):
            try:
                counts = counts.encode("ascii")
            except UnicodeEncodeError:
                raise DataError(f"the RLE of mask {index} has invalid characters") from None
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
        raise DataError(f"expected run lengths as a list of whole numbers, not {str(counts)[:60]}") from None
    if array.size and (array.min() < 0 or array.max() > MAX_PIXELS):
        raise DataError(f"expected run lengths from 0 to the number of pixels, not {array.min()} to {array.max()}")
    return compress_many(array, np.array([len(array)]))[0]


def decode(rle: Mapping[str, Any]) -> np.ndarray:
    """Decode to a mask (H, W) bool."""
    runs = read_runs([rle])
    height, width = int(runs.heights[0]), int(runs.widths[0])
    return fill_runs(runs.starts, runs.ends, height * width).reshape(width, height).T


def decode_crop(rle: Mapping[str, Any]) -> MaskCrop:
    """Decode to the tight crop; an empty mask gives a crop of shape (0, 0) at (0, 0)."""
    return decode_crops([rle])[0]


def decode_crops(rles: Sequence[Mapping[str, Any]]) -> list[MaskCrop]:
    """`decode_crop` for many masks, vectorized."""
    return crops_of_runs(read_runs(rles))


def area(rles: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the number of pixels (N,) int64 of every mask."""
    return read_runs(rles).areas()


def bounding_boxes(rles: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the tight half-open boxes (N, 4) float32 XYXY of the masks; zeros for an empty one."""
    return read_runs(rles).boxes().astype(np.float32)


# Flips and transposes of masks, exact and without full-size masks.


def mirror_rles(
    rles: Sequence[Mapping[str, Any]], height: int, width: int, *, flip_x: bool = False, flip_y: bool = False
) -> list[RLE]:
    """Flip N masks of one image, height x width: left and right for flip_x, top and bottom for flip_y.

    Only runs are moved, so time grows with the number of runs. Raises DataError for an invalid RLE.
    """
    if not rles:
        return []
    runs = read_runs(rles).within_columns()
    column, first = np.divmod(runs.starts, height)
    length = runs.ends - runs.starts
    if flip_x:
        column = width - 1 - column
    if flip_y:
        first = height - first - length
    starts = column * height + first
    order = np.argsort(runs.owners * (height * width) + starts, kind="stable")
    starts, length = starts[order], length[order]
    return encode_runs(Runs(starts, starts + length, runs.owners, runs.heights, runs.widths))


def transpose_rles(rles: Sequence[Mapping[str, Any]], height: int, width: int) -> list[RLE]:
    """Transpose N masks of one image, height x width; the result is width x height."""
    return encode_crops([(crop.T, y0, x0) for crop, x0, y0 in decode_crops(rles)], width, height)
