"""Run-lengths as competitions write them: pairs "start length", the first pixel is 1, read by columns or by rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.structures import rle as rle_codec
from detseg.structures.rle import Runs

# Digits beyond this are no position in any image; int64 holds them.
_NUMBER = re.compile(r"[0-9]{1,15}")

Encoder = Callable[[Sequence[tuple[np.ndarray, np.ndarray]], int, int], list[dict[str, Any]]]


def parse_pairs(text: str, num_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the runs of one mask.

    Returns:
        starts, ends: (R,) int64 positions from 0 on, half-open, ascending.

    Raises:
        DataError: what is no number, an odd count, runs outside of 1..num_pixels, empty, descending or overlapping.
    """
    words = text.split()
    if not words:
        raise DataError("the mask is empty (no run-lengths); remove the row, or draw the object")
    for word in words:
        if not _NUMBER.fullmatch(word):
            raise DataError(f"{word[:30]!r} is no run-length; expected pairs of whole numbers, start and length")
    if len(words) % 2:
        raise DataError(f"{len(words)} run-lengths; expected pairs, start and length: is the row cut off?")
    numbers = np.array(words, dtype=np.int64)
    starts, lengths = numbers[0::2] - 1, numbers[1::2]
    ends = starts + lengths
    _check(starts, lengths, ends, num_pixels)
    return starts, ends


def _check(starts: np.ndarray, lengths: np.ndarray, ends: np.ndarray, num_pixels: int) -> None:
    def first(wrong: np.ndarray) -> str | None:
        """Return the first wrong run as the file has it, or None."""
        index = np.flatnonzero(wrong)
        return f"{starts[index[0]] + 1} {lengths[index[0]]}" if len(index) else None

    if run := first(starts < 0):
        raise DataError(f"the run {run} starts before the first pixel, which is 1")
    if run := first(lengths < 1):
        raise DataError(f"the run {run} has no length; expected 1 or more")
    if run := first(ends > num_pixels):
        raise DataError(f"the run {run} leaves the image, which has {num_pixels} pixels: was it made for another size?")
    if run := first(np.append(False, starts[1:] < starts[:-1])):
        raise DataError(f"the run {run} starts before the one in front of it; expected ascending starts")
    if run := first(np.append(False, starts[1:] < ends[:-1])):
        raise DataError(f"the run {run} overlaps the one in front of it")


def encode_by_columns(masks: Sequence[tuple[np.ndarray, np.ndarray]], height: int, width: int) -> list[dict[str, Any]]:
    """Return N COCO RLEs of masks given by runs that go down the columns, as those of COCO itself do."""
    return rle_codec.encode_runs(_join(masks, height, width), height, width)


def encode_by_rows(masks: Sequence[tuple[np.ndarray, np.ndarray]], height: int, width: int) -> list[dict[str, Any]]:
    """Return N COCO RLEs of masks given by runs that go along the rows.

    By columns these are the runs of the transposed image; its crops are transposed, so that nothing as large as the
    image is made for a mask, and masks may overlap.
    """
    crops = rle_codec.crops_of(_join(masks, width, height))
    return rle_codec.encode_crops([(crop.T, y0, x0) for crop, x0, y0 in crops], height, width)


def _join(masks: Sequence[tuple[np.ndarray, np.ndarray]], height: int, width: int) -> Runs:
    nothing = np.zeros(0, dtype=np.int64)
    return Runs(
        starts=np.concatenate([nothing, *(starts for starts, _ in masks)]),
        ends=np.concatenate([nothing, *(ends for _, ends in masks)]),
        owners=np.repeat(np.arange(len(masks)), [len(starts) for starts, _ in masks]),
        heights=np.full(len(masks), height, dtype=np.int64),
        widths=np.full(len(masks), width, dtype=np.int64),
    )
