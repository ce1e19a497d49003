"""Split images into parts and folds: stratified, seeded, reproducible on every machine and in every version.

The order of images is that of a hash of (seed, name), not of a random generator, so a split can be reproduced as long
as SHA-256 exists.
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

# Names of the parts of a split, by their number.
PART_NAMES = {1: ("all",), 2: ("train", "val"), 3: ("train", "val", "test")}


def split_fractions(
    names: Sequence[str], fractions: Sequence[float], *, seed: int, groups: Mapping[str, str] | None = None
) -> dict[str, list[str]]:
    """Split names into parts of the given fractions.

    Args:
        names: of the images, each once.
        fractions: of 1 to 3 parts (see `PART_NAMES`), positive, with the sum 1.
        seed: determines the split.
        groups: name -> value of the column to stratify by; every value is split in these fractions as closely as
            possible. None: no strata.

    Returns:
        part -> its names, sorted. The size of a part is its fraction of all names to within one image; none is empty.

    Raises:
        DataError: fractions that are not positive or do not add up to 1, or fewer images than parts.
    """
    check_fractions(fractions, "a split", PART_NAMES)
    if len(names) < len(fractions):
        raise DataError(
            f"{_images(len(names))} cannot be split into {len(fractions)} parts; --split 1 makes one of all images"
        )
    parts: list[list[str]] = [[] for _ in fractions]
    # Each image goes to the part that lacks most, so every run of consecutive images, and with it every stratum, is
    # split evenly, and rounding errors do not add up over many small strata.
    for number, name in enumerate(_line(names, seed, groups), start=1):
        lacking = [fraction * number - len(part) for fraction, part in zip(fractions, parts, strict=True)]
        parts[lacking.index(max(lacking))].append(name)
    # A small fraction of a handful of images can be none, but a part without images is useless.
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return dict(zip(PART_NAMES[len(fractions)], map(sorted, parts), strict=True))


def check_fractions(fractions: Sequence[float], what: str, counts: Sequence[int] | Mapping[int, object]) -> None:
    """Raise DataError unless the number of fractions is one of `counts`, all are positive, and their sum is 1."""
    # This form refuses NaN too.
    if len(fractions) not in counts or not (min(fractions) > 0 and abs(sum(fractions) - 1) <= 1e-6):
        words = " ".join(map(str, fractions))
        raise DataError(f"{what} takes {min(counts)} to {max(counts)} positive fractions with the sum 1, not {words}")


def split_folds(
    names: Sequence[str], count: int, *, seed: int, groups: Mapping[str, str] | None = None
) -> list[list[str]]:
    """Split names into `count` folds (sorted names) whose sizes, within every group too, differ by at most one.

    Raises DataError for fewer than 2 folds or more folds than names.
    """
    if not 2 <= count <= len(names):
        raise DataError(f"{_images(len(names))} cannot be split into {count} folds; expected 2 to the number of images")
    line = _line(names, seed, groups)
    return [sorted(line[fold::count]) for fold in range(count)]


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _line(names: Sequence[str], seed: int, groups: Mapping[str, str] | None) -> list[str]:
    """Return all names stratum by stratum, shuffled within each."""
    shuffled = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    return shuffled if groups is None else sorted(shuffled, key=lambda name: groups[name])


def read_split_lists(
    prefix: Path, names: Sequence[str], aliases: Callable[[str], Iterable[str]] = lambda name: [name]
) -> tuple[dict[str, list[str]], list[str]]:
    """Read lists of images: the files PREFIX_PART.txt, or PART.txt in the folder PREFIX, one name per line.

    aliases: returns alternative names of an image; one that several images share is not accepted.

    Returns:
        part -> its names that are in `names`, in the file's order (blank lines and text after # are ignored), and the
        problems: listed names that are not.

    Raises:
        DataError: there are no lists, one cannot be read, or a name is listed twice.
    """
    if prefix.is_dir():
        files = {path.stem: path for path in prefix.glob("*.txt") if not path.name.startswith(".")}
    else:
        found = prefix.parent.glob(f"{glob.escape(prefix.name)}_*.txt")
        files = {path.stem.removeprefix(f"{prefix.name}_"): path for path in found}
    if not files:
        raise DataError(f"{prefix}: no lists found; expected {prefix}_train.txt, ... or {prefix}/train.txt, ...")
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
            raise DataError(f"{path}: not a list of names in UTF-8 ({error}); save it in that encoding") from None
        parts[part] = []
        for line in lines:
            # A name may contain a "#"; otherwise a comment follows it.
            text = next((text for text in (line.strip(), line.split("#")[0].strip()) if text in known), None)
            if text is None:
                text = line.split("#")[0].strip()
                if text:
                    several = f"; {shared[text]} images have this name: add their folders" if shared[text] > 1 else ""
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


# Parts of a data set that are similar in many respects at once, with groups kept together.
#
# A table of features describes what should be distributed evenly for every image: the image itself, its objects of
# every class, its kind, its number of objects. Groups are assigned greedily, large ones first, then moved and exchanged
# between parts as long as that makes the parts more similar. (scikit-learn's StratifiedGroupKFold stratifies by one
# label: if class frequencies differ much, its folds differ many times as much.) Ties are broken by a hash of (seed,
# name), so a split can be reproduced on any machine.
#
# U groups, F features, P parts.

# Weights of the features: images, all objects, objects of a class, a kind, a range of objects per image.
_WEIGHTS = {"images": 4.0, "objects": 2.0, "class": 1.0, "kind": 1.0, "fullness": 0.5}
# Groups per part that are tried in exchanges, and the maximum number of exchanges.
_TRIED, _MOST_EXCHANGES = 400, 2000
# A few large groups are hard to balance: the best of several attempts is taken.
_STARTS, _FEW = 8, 500
# Maximum number of values of a field that get a column each; more would make the table unreadable.
_MOST_VALUES = 12


def balance_features(dataset: CocoDataset, strata: Mapping[str, Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of N images to distribute evenly, (N, F) float64, and the weight of each column, (F,).

    Columns: the image itself, its objects, those of every class, its values of `strata` (field -> value of every
    image), and its quartile by number of objects (images without objects form a fifth range).
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
        features: (N, F) numbers >= 0; every part gets its fraction of each column's sum as closely as groups allow.
        groups: (N,) group numbers; a group goes to one part.
        shares: fractions of the P parts, positive, with the sum 1.
        seed: determines the split.
        names: of the images, unique; the split depends on them and not on the order of the images.
        weights: (F,) weight of each feature; None: equal.

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
            f"{len(names)} images in {len(units)} group{'s' * (len(units) != 1)} (near-duplicates are kept together) "
            f"cannot be split into {len(shares)} parts without dividing one; use fewer parts, or smaller groups"
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
        # Large groups first, since they fit in few places; groups of one order of magnitude are in random order.
        order = order[np.argsort(-np.floor(np.log2(sizes[order])), kind="stable")]
        part_of = np.empty(len(units), dtype=np.int64)
        part_of[order] = _exchange(table[order], _deal(table[order], shares), shares)
        # Rounded, so that the first of equal attempts is taken on every machine.
        cost = round(float(((_excess(table, part_of, shares) ** 2).sum(axis=1) / shares).sum()), 9)
        found.append((cost, start, part_of))
    return min(found, key=lambda one: one[:2])[2][unit_of]


def _excess(table: np.ndarray, part_of: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return (P, F): the excess of each part over its fraction of the features."""
    sums = np.stack([table[part_of == part].sum(axis=0) for part in range(len(shares))])
    return sums - shares[:, None] * table.sum(axis=0)


def _deal(table: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Assign each group in turn to the part that it brings closest to its fraction."""
    lacking = shares[:, None] * table.sum(axis=0)
    part_of = np.empty(len(table), dtype=np.int64)
    empty = np.ones(len(shares), dtype=bool)
    for number, unit in enumerate(table):
        costs = (unit @ unit - 2 * (lacking @ unit)) / shares
        if empty.sum() == len(table) - number:  # the remaining ones are needed for the empty parts
            costs[~empty] = np.inf
        part = int(np.argmin(costs))
        part_of[number], empty[part] = part, False
        lacking[part] -= unit
    return part_of


def _exchange(table: np.ndarray, part_of: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Move single groups and exchange pairs between parts, the best change first, while that improves the balance."""
    excess = _excess(table, part_of, shares)
    # An additional empty group stands for nothing in an exchange; it belongs to no part.
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
    """Return the change of the cost, and the groups moved from part a to b and from b to a (the last one: none).

    With d the change of part a, the cost changes by (1 / a + 1 / b) d^2 + 2 d (excess a / a - excess b / b), where a
    and b are the fractions.
    """
    own = [np.flatnonzero(part_of == part) for part in (a, b)]
    units = [np.append(numbers[:_TRIED], len(table) - 1) for numbers in own]
    rows = [table[numbers] for numbers in units]
    slope = 2 * (excess[a] / shares[a] - excess[b] / shares[b])
    lengths = [np.einsum("uf,uf->u", row, row) for row in rows]
    squared = lengths[0][:, None] + lengths[1][None, :] - 2 * rows[0] @ rows[1].T
    gains = (1 / shares[a] + 1 / shares[b]) * squared + (rows[1] @ slope)[None, :] - (rows[0] @ slope)[:, None]
    # A part must keep a group: its only one can be exchanged but not moved.
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
    """Return a header and a row for every part and for all: images, groups, objects, per class, images per kind.

    part_of, groups: (N,) of every image. strata: field -> value of every image.
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
