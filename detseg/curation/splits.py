"""Splitting images into parts and folds: stratified, seeded, the same on every machine and in every version.

The order of the images is that of a hash of (seed, name), not of a random generator, so that a split can be made again
as long as there is SHA-256.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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
        DataError: fractions that are not positive with the sum 1, or fewer images than parts.
    """
    check_fractions(fractions, "a split", PART_NAMES)
    if len(names) < len(fractions):
        raise DataError(
            f"{_images(len(names))} cannot be split into {len(fractions)} parts; --split 1 makes one of all images"
        )
    parts: list[list[str]] = [[] for _ in fractions]
    # Each image of the line goes to the part that lacks most: so every stretch of the line, and with it every stratum,
    # is split evenly, and rounding does not add up over many small strata.
    for number, name in enumerate(_line(names, seed, groups), start=1):
        lacking = [fraction * number - len(part) for fraction, part in zip(fractions, parts, strict=True)]
        parts[lacking.index(max(lacking))].append(name)
    # Of a handful of images a small fraction is none: a part without an image is of no use.
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return dict(zip(PART_NAMES[len(fractions)], map(sorted, parts), strict=True))


def check_fractions(fractions: Sequence[float], what: str, counts: Sequence[int] | Mapping[int, object]) -> None:
    """Raise DataError unless there are as many fractions as one of `counts` says, positive, with the sum 1."""
    # Written so that NaN is refused too.
    if len(fractions) not in counts or not (min(fractions) > 0 and abs(sum(fractions) - 1) <= 1e-6):
        words = " ".join(map(str, fractions))
        raise DataError(f"{what} takes {min(counts)} to {max(counts)} positive fractions with the sum 1, not {words}")


def split_folds(
    names: Sequence[str], count: int, *, seed: int, groups: Mapping[str, str] | None = None
) -> list[list[str]]:
    """Split names into `count` folds (sorted names) whose sizes, in every group too, differ by one at most.

    Raises DataError for fewer than 2 folds or more folds than names.
    """
    if not 2 <= count <= len(names):
        raise DataError(f"{_images(len(names))} cannot be split into {count} folds; expected 2 to the number of images")
    line = _line(names, seed, groups)
    return [sorted(line[fold::count]) for fold in range(count)]


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _line(names: Sequence[str], seed: int, groups: Mapping[str, str] | None) -> list[str]:
    """Return all names one stratum after the other, the names of each shuffled."""
    shuffled = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    return shuffled if groups is None else sorted(shuffled, key=lambda name: groups[name])


def read_split_lists(
    prefix: Path, names: Sequence[str], aliases: Callable[[str], Iterable[str]] = lambda name: [name]
) -> tuple[dict[str, list[str]], list[str]]:
    """Read given lists: the files PREFIX_PART.txt, or PART.txt in the folder PREFIX, one name a line.

    aliases: returns what lists may call an image instead of its name; one that several images share calls none.

    Returns:
        part -> those of its names that are in `names`, in the file's order (blank lines and what follows # are passed
        over), and the problems: listed names that are not.

    Raises:
        DataError: there are no lists, one cannot be read, or a name is listed twice.
    """
    if prefix.is_dir():
        files = {path.stem: path for path in prefix.glob("*.txt") if not path.name.startswith(".")}
    else:
        found = prefix.parent.glob(f"{glob.escape(prefix.name)}_*.txt")
        files = {path.stem.removeprefix(f"{prefix.name}_"): path for path in found}
    if not files:
        raise DataError(f"{prefix}: there are no lists; expected {prefix}_train.txt, ... or {prefix}/train.txt, ...")
    usual = PART_NAMES[3]
    order = sorted(files, key=lambda part: (usual.index(part) if part in usual else len(usual), part))
    shared = Counter(alias for name in names for alias in set(aliases(name)))
    known = {alias: name for name in names for alias in aliases(name) if shared[alias] == 1} | {n: n for n in names}
    parts: dict[str, list[str]] = {}
    list_of: dict[str, Path] = {}
    missing: list[str] = []
    twice: list[str] = []
    for part in order:
        path = files[part]
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as a list of names in UTF-8 ({error}); save it as that") from None
        parts[part] = []
        for line in lines:
            # A name may hold a "#"; else a note follows it.
            text = next((text for text in (line.strip(), line.split("#")[0].strip()) if text in known), None)
            if text is None:
                text = line.split("#")[0].strip()
                if text:
                    several = f"; {shared[text]} images are called so: name their folders" if shared[text] > 1 else ""
                    missing.append(f"{path}: there is no image {text}{several}")
                continue
            name = known[text]
            if name in list_of:
                twice.append(f"{path}: {text} is in {list_of[name].name} already")
            list_of[name] = path
            parts[part].append(name)
    if twice:
        raise DataError(f"{len(twice)} images are listed twice:\n{list_problems(twice)}")
    return parts, missing


# Parts of a data set that are alike in many respects at once, with whole groups in one part.
#
# A table of features says what of every image shall be spread evenly: the image itself, its objects of every class, its
# kind, how full it is. Groups are dealt out greedily, large ones first, then moved and exchanged between parts as long
# as that makes the parts more alike. (scikit-learn's StratifiedGroupKFold spreads one label: with classes of very
# different frequency its folds differ many times as much.) Everything is decided by a hash of (seed, name) where it is
# not by the numbers, so that a split can be made again on any machine.
#
# U groups, F features, P parts.

# How much the features count: images, all objects, the objects of a class, a kind, a range of objects an image.
_WEIGHTS = {"images": 4.0, "objects": 2.0, "class": 1.0, "kind": 1.0, "fullness": 0.5}
# Groups of a part that are tried against those of another one, and exchanges at most.
_TRIED, _MOST_EXCHANGES = 400, 2000
# Few groups fit badly: the best of several attempts is taken.
_STARTS, _FEW = 8, 500
# Values of a field that get a column of the table each; more would not be read.
_MOST_VALUES = 12


def balance_features(dataset: CocoDataset, strata: Mapping[str, Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of N images that parts share evenly, (N, F) float64, and the weight of each column, (F,).

    Columns: the image itself, its objects, those of every class, its values of `strata` (field -> value of every
    image), and its quarter of the images by the number of objects (images without objects are a fifth part).
    """
    objects = dataset.objects_per_image()
    total = objects.sum(axis=1)
    columns = [(np.ones(len(dataset)), "images"), (total, "objects")]
    if objects.shape[1] > 1:
        columns += [(counts, "class") for counts in objects.T]
    limits = np.quantile(total[total > 0], [0.25, 0.5, 0.75]) if (total > 0).any() else []
    fullness = np.where(total > 0, np.searchsorted(limits, total), -1)
    columns += [(fullness == value, "fullness") for value in np.unique(fullness)]
    for values in strata.values():
        columns += [(np.array(values) == value, "kind") for value in sorted(set(values))]
    features = np.stack([np.asarray(column, dtype=np.float64) for column, _ in columns], axis=1)
    return features, np.array([_WEIGHTS[kind] for _, kind in columns])


def split_groups(
    features: np.ndarray,
    groups: np.ndarray,
    shares: Sequence[float],
    *,
    seed: int,
    names: Sequence[str],
    weights: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """Split N images into P parts, two or more.

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
    units, unit_of = np.unique(groups, return_inverse=True)
    if len(names) < len(shares):
        raise DataError(f"{len(names)} image{'s' * (len(names) != 1)} cannot be split into {len(shares)} parts")
    if len(units) < len(shares):
        raise DataError(
            f"{len(names)} images in {len(units)} group{'s' * (len(units) != 1)} (look-alikes stay together) cannot be "
            f"split into {len(shares)} parts without tearing one; ask for fewer parts, or group by something finer"
        )
    shares = np.asarray(shares, dtype=np.float64)
    # Columns sum to the square root of their weight, so that squared differences add up.
    features = np.asarray(features, dtype=np.float64)
    sums = features.sum(axis=0)
    roots = np.sqrt(np.ones(len(sums)) if weights is None else np.asarray(weights, dtype=np.float64))
    table = np.zeros((len(units), np.count_nonzero(sums > 0)))
    np.add.at(table, unit_of, features[:, sums > 0] / sums[sums > 0] * roots[sums > 0])
    sizes = np.bincount(unit_of)
    first_name: dict[int, str] = {}
    for unit, name in zip(unit_of.tolist(), names, strict=True):
        first_name[unit] = min(first_name.get(unit, name), name)

    found = []
    for start in range(_STARTS if len(units) <= _FEW else 1):
        salt = f"{seed}" if start == 0 else f"{seed}/{start}"
        hashes = {unit: hashlib.sha256(f"{salt}:{name}".encode()).digest() for unit, name in first_name.items()}
        order = np.array(sorted(hashes, key=hashes.__getitem__), dtype=np.int64)
        # Large groups first, since they fit in few places; among those of one order of magnitude chance decides.
        order = order[np.argsort(-np.floor(np.log2(sizes[order])), kind="stable")]
        part_of = np.empty(len(units), dtype=np.int64)
        part_of[order] = _exchange(table[order], _deal(table[order], shares), shares)
        # Rounded against noise, so that the first of equal attempts counts everywhere.
        cost = round(float(((_excess(table, part_of, shares) ** 2).sum(axis=1) / shares).sum()), 9)
        found.append((cost, start, part_of))
    return min(found, key=lambda one: one[:2])[2][unit_of]


def _excess(table: np.ndarray, part_of: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return (P, F): by how much the parts have more than their shares of the features."""
    sums = np.stack([table[part_of == part].sum(axis=0) for part in range(len(shares))])
    return sums - shares[:, None] * table.sum(axis=0)


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
    excess = _excess(table, part_of, shares)
    # A last unit without anything stands for nothing in an exchange; it is of no part.
    table, part_of = np.vstack([table, np.zeros(table.shape[1])]), np.append(part_of, -1)
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    for _ in range(_MOST_EXCHANGES):
        for a, b in itertools.combinations(range(len(shares)), 2):
            if (a, b) not in best:
                best[a, b] = _best_exchange(table, part_of, shares, excess, a, b)
        (a, b), (gain, from_a, from_b) = min(sorted(best.items()), key=lambda item: item[1][0])
        if gain > -1e-12:
            break
        part_of[from_a], part_of[from_b], part_of[-1] = b, a, -1
        excess[a] += table[from_b] - table[from_a]
        excess[b] -= table[from_b] - table[from_a]
        best = {pair: found for pair, found in best.items() if not {a, b} & set(pair)}
    return part_of[:-1]


def _best_exchange(
    table: np.ndarray, part_of: np.ndarray, shares: np.ndarray, excess: np.ndarray, a: int, b: int
) -> tuple[float, int, int]:
    """Return the change of the cost, and which unit goes from part a to b and which from b to a (the last: none).

    With d the change of part a, the cost changes by (1 / a + 1 / b) d^2 + 2 d (excess a / a - excess b / b), where a
    and b are the shares.
    """
    own = [np.flatnonzero(part_of == part) for part in (a, b)]
    units = [np.append(numbers[:_TRIED], len(table) - 1) for numbers in own]
    rows = [table[numbers] for numbers in units]
    slope = 2 * (excess[a] / shares[a] - excess[b] / shares[b])
    lengths = [np.einsum("uf,uf->u", row, row) for row in rows]
    squared = lengths[0][:, None] + lengths[1][None, :] - 2 * rows[0] @ rows[1].T
    gains = (1 / shares[a] + 1 / shares[b]) * squared + (rows[1] @ slope)[None, :] - (rows[0] @ slope)[:, None]
    # A part must keep a unit: where it has one only, that can be exchanged and not be given away.
    if len(own[0]) == 1:
        gains[:, -1] = np.inf
    if len(own[1]) == 1:
        gains[-1, :] = np.inf
    gains[-1, -1] = 0
    i, j = np.unravel_index(int(np.argmin(gains)), gains.shape)
    return float(gains[i, j]), int(units[0][i]), int(units[1][j])


def balance_table(
    dataset: CocoDataset,
    parts: Sequence[str],
    part_of: np.ndarray,
    groups: np.ndarray,
    strata: Mapping[str, Sequence[str]],
) -> list[tuple[str, ...]]:
    """Return a heading and a row for every part and for all: images, groups, objects, of classes, images of kinds.

    part_of, groups: (N,) of every image. strata: field -> its value of every image.
    """
    objects = dataset.objects_per_image()
    class_names = dataset.class_names if objects.shape[1] > 1 else []
    kinds = sorted(
        (field, value) for field, values in strata.items() for value, _ in Counter(values).most_common(_MOST_VALUES)
    )
    heading = ["part", "images", "groups", "objects", "per image", *(f"class {name}" for name in class_names)]
    rows = [(*heading, *(f"{field} {value}" for field, value in kinds))]
    selections = [(name, np.flatnonzero(part_of == number)) for number, name in enumerate(parts)]
    for name, chosen in [*selections, ("all", np.arange(len(dataset)))]:
        counts = objects[chosen].sum(axis=1)
        numbers = [len(chosen), len(set(groups[chosen].tolist())), counts.sum()]
        spread = f"{counts.min()}-{int(np.median(counts))}-{counts.max()}" if len(chosen) else ""
        further = [*objects[chosen].sum(axis=0)] if class_names else []
        further += [sum(strata[field][index] == value for index in chosen) for field, value in kinds]
        rows.append((name, *map(str, numbers), spread, *map(str, further)))
    return rows
