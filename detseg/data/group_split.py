"""Parts of a data set that are alike in many respects at once, with whole groups in one part.

A table of features says what of every image shall be spread evenly: the image itself, its objects of every class, its
kind, how full it is. Groups are dealt out greedily, large ones first, then moved and exchanged between parts as long as
that makes them more alike. Everything is decided by a hash of (seed, name) where it is not by the numbers, so that a
split can be made again on any machine.

U groups, F features, P parts.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from detseg.errors import DataError

# Groups of a part that are tried against those of another one, and exchanges at most.
_TRIED, _MOST_EXCHANGES = 400, 2000
# Few groups fit badly: the best of several attempts is taken.
_STARTS, _FEW = 8, 500


def split_groups(
    features: np.ndarray,
    groups: np.ndarray,
    shares: Sequence[float],
    *,
    seed: int,
    names: Sequence[str],
    weights: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """Split N images into P parts.

    Args:
        features: (N, F) numbers >= 0; every part gets its share of each column's sum as nearly as whole groups allow.
        groups: (N,) numbers of groups; a group goes to one part.
        shares: of the P parts, positive, with the sum 1.
        seed: another seed is another split.
        names: of the images, each once: the split depends on them and not on the order of the images.
        weights: (F,) how much each feature counts; None: all alike.

    Returns:
        (N,) int64, the part of every image; no part is empty.

    Raises:
        DataError: fewer images or groups than parts.
    """
    units, inverse = np.unique(groups, return_inverse=True)
    if len(names) < len(shares):
        raise DataError(f"{len(names)} image{'s' * (len(names) != 1)} cannot be split into {len(shares)} parts")
    if len(units) < len(shares):
        raise DataError(
            f"{len(names)} images in {len(units)} group{'s' * (len(units) != 1)} (look-alikes stay together) cannot be "
            f"split into {len(shares)} parts without tearing one; ask for fewer parts, or group by something finer"
        )
    shares = np.asarray(shares, dtype=np.float64)
    scaled = _scaled(features, weights)
    table = np.zeros((len(units), scaled.shape[1]))
    np.add.at(table, inverse, scaled)
    sizes = np.bincount(inverse)
    found = []
    for start in range(_STARTS if len(units) <= _FEW else 1):
        order = _order(inverse, names, f"{seed}" if start == 0 else f"{seed}/{start}")
        # Large groups first, since they fit in few places; among those of one order of magnitude chance decides.
        order = order[np.argsort(-np.floor(np.log2(sizes[order])), kind="stable")]
        part_of = np.empty(len(units), dtype=np.int64)
        part_of[order] = _exchange(table[order], _deal(table[order], shares), shares)
        found.append((_cost(table, part_of, shares), start, part_of))
    return min(found, key=lambda one: one[:2])[2][inverse]


def _cost(table: np.ndarray, part_of: np.ndarray, shares: np.ndarray) -> float:
    """Return how far the parts are from their shares: squared differences, by share, rounded against noise."""
    sums = np.stack([table[part_of == part].sum(axis=0) for part in range(len(shares))])
    return round(float((((sums - shares[:, None] * table.sum(axis=0)) ** 2).sum(axis=1) / shares).sum()), 9)


def _order(inverse: np.ndarray, names: Sequence[str], seed: str) -> np.ndarray:
    """Return the groups in the order of the hashes of (seed, first name)."""
    first: dict[int, str] = {}
    for unit, name in zip(inverse.tolist(), names, strict=True):
        first[unit] = min(first.get(unit, name), name)
    hashes = [hashlib.sha256(f"{seed}:{first[unit]}".encode()).digest() for unit in range(len(first))]
    return np.array(sorted(range(len(first)), key=lambda unit: hashes[unit]), dtype=np.int64)


def _scaled(features: np.ndarray, weights: Sequence[float] | np.ndarray | None) -> np.ndarray:
    """Return features whose columns sum to the square root of their weight, so that squared differences add up."""
    features = np.asarray(features, dtype=np.float64)
    sums = features.sum(axis=0)
    roots = np.sqrt(np.ones(features.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64))
    return features[:, sums > 0] / sums[sums > 0] * roots[sums > 0]


def _deal(table: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Give each unit, in order, to the part that it brings nearest to its share."""
    lacking = shares[:, None] * table.sum(axis=0)
    part_of = np.empty(len(table), dtype=np.int64)
    empty = np.ones(len(shares), dtype=bool)
    for number, unit in enumerate(table):
        costs = (unit @ unit - 2 * (lacking @ unit)) / shares
        if empty.sum() == len(table) - number:  # those that are left are needed for the empty parts
            costs[~empty] = np.inf
        part = int(np.argmin(costs))
        part_of[number], empty[part] = part, False
        lacking[part] -= unit
    return part_of


def _exchange(table: np.ndarray, part_of: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Move single units and exchange pairs between parts, the best one first, while that brings parts nearer."""
    part_of = part_of.copy()
    excess = np.stack([table[part_of == part].sum(axis=0) for part in range(len(shares))])
    excess -= shares[:, None] * table.sum(axis=0)
    fresh = dict.fromkeys(itertools.combinations(range(len(shares)), 2))
    for _ in range(_MOST_EXCHANGES):
        for a, b in fresh:
            if fresh[a, b] is None:
                fresh[a, b] = _best_exchange(table, part_of, shares, excess, a, b)
        if not fresh:
            break
        (a, b), (gain, from_a, from_b) = min(fresh.items(), key=lambda item: item[1][0])
        if gain > -1e-12:
            break
        change = np.zeros(table.shape[1])
        if from_a is not None:
            part_of[from_a], change = b, change - table[from_a]
        if from_b is not None:
            part_of[from_b], change = a, change + table[from_b]
        excess[a] += change
        excess[b] -= change
        for pair in fresh:
            if a in pair or b in pair:
                fresh[pair] = None
    return part_of


def _best_exchange(
    table: np.ndarray, part_of: np.ndarray, shares: np.ndarray, excess: np.ndarray, a: int, b: int
) -> tuple[float, int | None, int | None]:
    """Return the change of the cost, and which unit goes from part a to b and which from b to a (None: none).

    With d the change of part a, the cost changes by (1 / a + 1 / b) d^2 + 2 d (excess a / a - excess b / b), where a
    and b are the shares.
    """
    units = [np.flatnonzero(part_of == part) for part in (a, b)]
    # A part must keep a unit: where it has one only, that can be exchanged and not be given away.
    may_give = [len(own) > 1 for own in units]
    units = [own[:_TRIED] for own in units]
    nothing = np.zeros((1, table.shape[1]))
    rows = [np.concatenate([table[own], nothing]) for own in units]
    steepness = 1 / shares[a] + 1 / shares[b]
    slope = 2 * (excess[a] / shares[a] - excess[b] / shares[b])
    lengths = [np.einsum("uf,uf->u", own, own) for own in rows]
    squared = lengths[0][:, None] + lengths[1][None, :] - 2 * rows[0] @ rows[1].T
    gains = steepness * squared + (rows[1] @ slope)[None, :] - (rows[0] @ slope)[:, None]
    if not may_give[0]:
        gains[:, -1] = np.inf
    if not may_give[1]:
        gains[-1, :] = np.inf
    gains[-1, -1] = 0
    i, j = np.unravel_index(int(np.argmin(gains)), gains.shape)
    from_a = int(units[0][i]) if i < len(units[0]) else None
    from_b = int(units[1][j]) if j < len(units[1]) else None
    return float(gains[i, j]), from_a, from_b
