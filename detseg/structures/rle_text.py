"""COCO's text form of run lengths, for many masks at once.

Every number is written in groups of 5 bits, lowest first, as in LEB128: a character is 48 + group, plus 32 where more
groups follow; the highest bit of the last group is the sign. From the fourth number of a mask on, the difference to the
number two before is written, since runs of neighbouring columns are alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from detseg.errors import DataError

# 8 groups hold 40 bits; a number that needs more is longer than any image.
MAX_GROUPS = 8


def compress_many(counts: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """Compress the counts of several masks.

    counts: (R,) int64, the run lengths of all masks concatenated. lengths: how many of them each mask has.
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
    """Return the concatenated counts of several masks, (R,) int64, and how many each mask has, (N,) int64.

    Raises DataError where a text is cut off or has a character that cannot occur. Sums and signs are not checked here.
    """
    sizes = np.array([len(text) for text in texts], dtype=np.int64)
    characters = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.int64) - 48
    owner = np.repeat(np.arange(len(texts)), sizes)
    wrong = np.flatnonzero((characters < 0) | (characters > 63))
    if len(wrong):
        raise DataError(f"the RLE of mask {owner[wrong[0]]} has characters that no compressed RLE has")
    last = (characters & 0x20) == 0
    ends_of_masks = np.cumsum(sizes)
    nonempty = sizes > 0
    cut = np.flatnonzero(~last[ends_of_masks[nonempty] - 1])
    if len(cut):
        raise DataError(f"the RLE of mask {np.flatnonzero(nonempty)[cut[0]]} is cut off in the middle of a number")

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
    """Add to every number from a mask's fourth on the number two before: two cumulated sums a mask, odd and even."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(values)) - offsets[owner]
    counts = values.copy()
    # The chains start with the second and with the third number; the first belongs to none.
    for chain in ((within % 2 == 1), (within % 2 == 0) & (within > 0)):
        index = np.flatnonzero(chain)
        if len(index) == 0:
            continue
        sums = np.cumsum(values[index])
        starts = np.flatnonzero(np.diff(owner[index], prepend=-1))
        before = np.concatenate([[0], sums])[starts]
        counts[index] = sums - np.repeat(before, np.diff(np.append(starts, len(index))))
    return counts
