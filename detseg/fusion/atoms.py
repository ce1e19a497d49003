"""The pixels of an image sorted by what lies on them: which predictions, which objects of the truth.

All pixels on which the same masks lie are one atom. Whatever a setting keeps or drops, every atom goes to the best
prediction that is left on it, so that areas and intersections are sums over a few thousand atoms: no mask is looked at
again.

Symbols: N predictions, M objects, A atoms, E entries (an atom and a mask on it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.structures import rle as rle_codec
from detseg.structures.bit_masks import spread

# Every mask gets a random 64-bit number; sums of these tell which masks lie on a pixel. That two different sets of
# masks of one image have one sum is less likely than one in 10^11.
_KEYS_SEED = 20180115


@dataclass(frozen=True)
class Atoms:
    """areas: (A,) int64. entry_atom, entry_mask: (E,) int64, sorted by atom, then mask.

    Masks are numbered through: those of the predictions first, 0 to N - 1, then those of the truth.
    """

    areas: np.ndarray
    entry_atom: np.ndarray
    entry_mask: np.ndarray


def find_atoms(masks: Sequence[Mapping[str, Any]]) -> Atoms:
    """Cut the masks of one image, N + M COCO RLEs, into atoms. Time and memory grow with the number of runs."""
    runs = rle_codec.read_runs(masks)
    places, position = np.unique(np.concatenate([runs.starts, runs.ends]), return_inverse=True)
    if not len(places):
        nothing = np.zeros(0, dtype=np.int64)
        return Atoms(nothing, nothing, nothing)
    first, end = position[: len(runs.starts)], position[len(runs.starts) :]
    key = np.random.default_rng(_KEYS_SEED).integers(1, 2**63, len(masks), dtype=np.uint64)[runs.owners]
    steps = np.zeros(len(places), dtype=np.uint64)
    np.add.at(steps, first, key)
    np.subtract.at(steps, end, key)
    # Segments between two places where a run begins or ends, and the sum of the keys of the masks on each.
    sums, lengths = np.cumsum(steps)[:-1], np.diff(places)
    sums[np.cumsum(_ones_at(first, end, len(places)))[:-1] == 0] = 0
    kinds, example, atom = np.unique(sums, return_index=True, return_inverse=True)
    areas = np.bincount(atom, weights=lengths, minlength=len(kinds)).astype(np.int64)
    # The masks of an atom are those of any of its segments.
    is_example = np.zeros(len(sums), dtype=bool)
    is_example[example[kinds != 0]] = True
    examples_before = np.concatenate([[0], np.cumsum(is_example)])
    counts = examples_before[end] - examples_before[first]
    run, step = spread(counts)
    segment = np.flatnonzero(is_example)[examples_before[first][run] + step]
    entry_atom, entry_mask = atom[segment], runs.owners[run]
    order = np.lexsort((entry_mask, entry_atom))
    return Atoms(areas, entry_atom[order], entry_mask[order])


def _ones_at(first: np.ndarray, end: np.ndarray, count: int) -> np.ndarray:
    """Return how many more runs begin than end at every place (count,) int64."""
    return np.bincount(first, minlength=count) - np.bincount(end, minlength=count)
