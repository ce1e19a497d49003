"""Splitting images into parts and folds: stratified, seeded, the same on every machine and in every version.

The order of the images is that of a hash of (seed, name), not of a random generator, so that a split can be made again
as long as there is SHA-256.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

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
        files = {path.stem.removeprefix(f"{prefix.name}_"): path for path in prefix.parent.glob(f"{prefix.name}_*.txt")}
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
