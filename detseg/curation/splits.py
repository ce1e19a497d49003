"""Splitting images into parts and folds: stratified, seeded, the same on every machine and in every version.

The order of the images is that of a hash of (seed, name), not of a random generator, so that a split can be made again
as long as there is SHA-256.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError, list_problems

# What the parts of a split are called, by how many there are.
PART_NAMES = {1: ("all",), 2: ("train", "val"), 3: ("train", "val", "test")}


def split_fractions(
    names: Sequence[str], fractions: Sequence[float], *, seed: int, groups: Mapping[str, str] | None = None
) -> dict[str, list[str]]:
    """Split names into parts of the given fractions.

    Args:
        names: of the images, each once.
        fractions: of 1 to 3 parts (see `PART_NAMES`), positive, with the sum 1.
        seed: another seed is another split.
        groups: name -> value of the column to stratify by: every value is split in these fractions as well as whole
            images allow. None: no strata.

    Returns:
        part -> its names, sorted. Parts have their fraction of all names to within one image; none is empty.

    Raises:
        DataError: fractions that are none, or fewer images than parts.
    """
    # Written so that NaN is refused too.
    if len(fractions) not in PART_NAMES or not (min(fractions) > 0 and abs(sum(fractions) - 1) <= 1e-6):
        raise DataError(f"a split takes 1 to 3 positive fractions with the sum 1, not {' '.join(map(str, fractions))}")
    if len(names) < len(fractions):
        raise DataError(
            f"{_images(len(names))} cannot be split into {len(fractions)} parts; --split 1 makes one of all images"
        )
    parts: dict[str, list[str]] = {part: [] for part in PART_NAMES[len(fractions)]}
    # All strata stand in one line, and each image goes to the part that lacks most: so every stretch of the line, and
    # with it every stratum, is split evenly, and rounding does not add up over many small strata.
    line = [name for stratum in _strata(names, seed, groups) for name in stratum]
    for number, name in enumerate(line, start=1):
        lacking = [fraction * number - len(part) for fraction, part in zip(fractions, parts.values(), strict=True)]
        list(parts.values())[lacking.index(max(lacking))].append(name)
    # Of a handful of images a small fraction is none: a part without an image is of no use.
    for members in parts.values():
        if not members:
            members.append(max(parts.values(), key=len).pop())
    return {part: sorted(members) for part, members in parts.items()}


def split_folds(
    names: Sequence[str], count: int, *, seed: int, groups: Mapping[str, str] | None = None
) -> list[list[str]]:
    """Split names into `count` folds (sorted names) whose sizes, in every group too, differ by one at most.

    Raises DataError for fewer than 2 folds or more folds than names.
    """
    if not 2 <= count <= len(names):
        raise DataError(f"{_images(len(names))} cannot be split into {count} folds; expected 2 to the number of images")
    folds: list[list[str]] = [[] for _ in range(count)]
    dealt = 0
    for stratum in _strata(names, seed, groups):
        for name in stratum:
            folds[dealt % count].append(name)
            dealt += 1
    return [sorted(fold) for fold in folds]


def read_split_lists(prefix: Path, names: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Read given lists: the files PREFIX_PART.txt, or PART.txt in the folder PREFIX, one name a line.

    Returns:
        part -> those of its names that are in `names`, in the file's order (blank lines and what follows # are passed
        over), and the problems: listed names that are not.

    Raises:
        DataError: there are no lists, one cannot be read, or a name is listed twice.
    """
    if prefix.is_dir():
        files = {path.stem: path for path in sorted(prefix.glob("*.txt"))}
    else:
        files = {
            path.stem.removeprefix(prefix.name + "_"): path
            for path in sorted(prefix.parent.glob(f"{prefix.name}_*.txt"))
        }
    if not files:
        raise DataError(f"{prefix}: there are no lists; expected {prefix}_train.txt, ... or {prefix}/train.txt, ...")
    order = [part for part in PART_NAMES[3] if part in files]
    files = {part: files[part] for part in [*order, *sorted(set(files) - set(order))]}
    known = set(names)
    parts: dict[str, list[str]] = {}
    list_of: dict[str, Path] = {}
    missing: list[str] = []
    twice: list[str] = []
    for part, path in files.items():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as a list of names in UTF-8 ({error}); save it as that") from None
        listed = [name for line in lines if (name := line.split("#")[0].strip())]
        for name in listed:
            if name in list_of:
                twice.append(f"{path}: {name} is in {list_of[name].name} already")
            elif name not in known:
                missing.append(f"{path}: there is no image {name}")
            list_of[name] = path
        parts[part] = [name for name in listed if name in known]
    if twice:
        raise DataError(f"{len(twice)} images are listed twice:\n{list_problems(twice)}")
    return parts, missing


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _strata(names: Sequence[str], seed: int, groups: Mapping[str, str] | None) -> list[list[str]]:
    """Return the names by group, groups in order, the names of each shuffled."""
    ordered = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    if groups is None:
        return [ordered]
    members: dict[str, list[str]] = {}
    for name in ordered:
        members.setdefault(groups[name], []).append(name)
    return [members[group] for group in sorted(members)]


# Parts of a data set that are alike in many respects at once, with whole groups in one part.
#
# A table of features says what of every image shall be spread evenly: the image itself, its objects of every class, its
# kind, how full it is. Groups are dealt out greedily, large ones first, then moved and exchanged between parts as
# long as
# that makes them more alike. Everything is decided by a hash of (seed, name) where it is not by the numbers, so that a
# split can be made again on any machine.
#
# U groups, F features, P parts.

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


# How alike the parts of a split are, as a table.

# Values of a column that get a column of the table each; more would not be read.
_MOST_VALUES = 12


def balance_rows(
    dataset: CocoDataset,
    parts: Sequence[str],
    part_of: np.ndarray,
    groups: np.ndarray,
    strata: Mapping[str, Sequence[str]],
) -> list[tuple[str, ...]]:
    """Return a heading and a row for every part and for all: images, groups, objects, of classes, images of kinds.

    part_of, groups: (N,) of every image. strata: column -> its value of every image.
    """
    objects = dataset.objects_per_image()
    with_classes = objects.shape[1] > 1
    heading = ["part", "images", "groups", "objects", "per image"]
    heading += [f"class {name}" for name in dataset.class_names] if with_classes else []
    kinds = [
        (column, value) for column, values in strata.items() for value, _ in Counter(values).most_common(_MOST_VALUES)
    ]
    heading += [f"{column} {value}" for column, value in sorted(kinds)]
    rows = [tuple(heading)]
    selections = [(name, np.flatnonzero(part_of == number)) for number, name in enumerate(parts)]
    for name, chosen in [*selections, ("all", np.arange(len(dataset)))]:
        counts = objects[chosen].sum(axis=1)
        spread = f"{counts.min()}-{int(np.median(counts))}-{counts.max()}" if len(chosen) else ""
        row = [name, str(len(chosen)), str(len(set(groups[chosen].tolist()))), str(counts.sum()), spread]
        row += [str(count) for count in objects[chosen].sum(axis=0)] if with_classes else []
        row += [str(sum(strata[column][index] == value for index in chosen)) for column, value in sorted(kinds)]
        rows.append(tuple(row))
    return rows


def table_of(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of texts as a table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
