"""Leaks between the parts of a split: groups, and images that are nearly the same, in more than one of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import partial

import numpy as np

from detseg.data.coco import CocoDataset
from detseg.data.image_hash import SIMILAR, SimilarPair, find_similar, fingerprints_of


def similar_images(dataset: CocoDataset, threshold: float = SIMILAR) -> list[SimilarPair]:
    """Return the pairs of images of a data set that are nearly the same; see `image_hash.find_similar`.

    Raises DataError where an image cannot be read.
    """
    read = [partial(dataset.read_image, index) for index in range(len(dataset))]
    return find_similar(fingerprints_of(read), threshold)


def leaks(pairs: Iterable[SimilarPair], parts: Sequence[Hashable]) -> list[SimilarPair]:
    """Return the pairs whose images lie in different parts; parts: of every image."""
    return [pair for pair in pairs if parts[pair.first] != parts[pair.second]]


def groups_in_several_parts(groups: Sequence[Hashable], parts: Sequence[Hashable]) -> dict[Hashable, list[Hashable]]:
    """Return group -> its parts, of the groups that lie in more than one; groups, parts: of every image."""
    found: dict[Hashable, list[Hashable]] = {}
    for group, part in zip(groups, parts, strict=True):
        if part not in found.setdefault(group, []):
            found[group].append(part)
    return {group: own for group, own in found.items() if len(own) > 1}


def join_groups(groups: Sequence[Hashable], pairs: Iterable[SimilarPair]) -> np.ndarray:
    """Number the groups of N images, those joined that have images in a pair in common: (N,) int64 from 0 on."""
    first_of: dict[Hashable, int] = {}
    root = np.array([first_of.setdefault(group, index) for index, group in enumerate(groups)], dtype=np.int64)

    def find(index: int) -> int:
        while root[index] != index:
            root[index] = root[root[index]]
            index = int(root[index])
        return index

    for pair in pairs:
        a, b = find(pair.first), find(pair.second)
        root[max(a, b)] = min(a, b)
    roots = np.array([find(index) for index in range(len(root))], dtype=np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)
