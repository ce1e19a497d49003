"""Leaks between the parts of a split: near-duplicate images, identical files, and groups, in more than one part.

Images are near-duplicates if thumbnails of 64 x 64 gray values correlate in one of the eight orientations: also if
rotated, mirrored, of other brightness or contrast, or compressed again. N images; time grows with N^2, but only for a
matrix product of thumbnails of 8 x 8: thousands of images take seconds in addition to reading them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from detseg.coco.dataset import CocoDataset
from detseg.data.folds import FOLD, folds_of
from detseg.errors import DataError, list_problems
from detseg.progress import ProgressBar

# Sides of the thumbnails: those that decide, and those that are first compared for all pairs.
THUMBNAIL, COARSE = 64, 8
# Correlation of thumbnails above which images are near-duplicates.
SIMILAR = 0.9
# The correlation of coarse thumbnails may be this much lower: noise and fine structure have another weight in them.
COARSE_MARGIN = 0.25
_ROWS_TOGETHER = 1024


@dataclass(frozen=True)
class SimilarPair:
    """Two near-duplicate images: their indices, first < second, and the correlation of thumbnails.

    turned: the second has to be rotated or mirrored.
    """

    first: int
    second: int
    similarity: float
    turned: bool


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return the thumbnail (64, 64) float16, with mean 0 and norm 1, of an image (H, W, C) of any dtype.

    It is square for any shape of image, so that rotated images can be compared. Without contrast it is 0.
    """
    gray = np.nan_to_num(image.astype(np.float32).mean(axis=2), posinf=0, neginf=0)
    small = cv2.resize(gray, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    small = small - small.mean()
    length = np.linalg.norm(small)
    # Rounding errors are not contrast.
    if length <= 1e-5 * max(float(np.abs(gray).max()), 1e-30) * THUMBNAIL:
        return np.zeros(small.shape, dtype=np.float16)
    return (small / length).astype(np.float16)


def thumbnails_of(read: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
    """Return the thumbnails (N, 64, 64) of N images, given by functions that read them, in several threads."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        copies = pool.map(lambda one: thumbnail(one()), read)
        found = list(ProgressBar(copies, total=len(read), desc="comparing images", unit="image"))
    return np.array(found, dtype=np.float16).reshape(-1, THUMBNAIL, THUMBNAIL)


def find_similar(thumbnails: np.ndarray, threshold: float = SIMILAR) -> list[SimilarPair]:
    """Find the pairs of near-duplicates among N images, also rotated by 90, 180, 270 degrees or mirrored.

    thumbnails: (N, 64, 64), see `thumbnail`. threshold: minimum correlation. Not found are images that show a part of
    another one or are shifted by more than a few percent of their side, and images without contrast.
    """
    best: dict[tuple[int, int], SimilarPair] = {}
    count, step = len(thumbnails), THUMBNAIL // COARSE
    coarse = thumbnails.astype(np.float32).reshape(count, COARSE, step, COARSE, step).mean(axis=(2, 4))
    coarse /= np.maximum(np.linalg.norm(coarse, axis=(1, 2), keepdims=True), 1e-12)
    columns = coarse.reshape(count, COARSE * COARSE).T
    for number, start in itertools.product(range(8), range(0, count, _ROWS_TOGETHER)):
        rows = _orient(coarse[start : start + _ROWS_TOGETHER], number).reshape(-1, COARSE * COARSE)
        first, second = np.nonzero(rows @ columns >= threshold - COARSE_MARGIN)
        # Each orientation is its own inverse, or its inverse is in the list: half of the pairs suffices.
        pairs = np.stack([first + start, second], axis=1)[first + start < second]
        for chunk in np.split(pairs, range(_ROWS_TOGETHER, len(pairs), _ROWS_TOGETHER)):
            oriented = _orient(thumbnails[chunk[:, 0]].astype(np.float32), number)
            values = np.einsum("nij,nij->n", oriented, thumbnails[chunk[:, 1]].astype(np.float32))
            for (a, b), value in zip(chunk.tolist(), values.tolist(), strict=True):
                if value >= threshold and ((a, b) not in best or value > best[a, b].similarity + 1e-3):
                    best[a, b] = SimilarPair(a, b, min(value, 1.0), number > 0)
    return [best[pair] for pair in sorted(best)]


def _orient(images: np.ndarray, number: int) -> np.ndarray:
    """Return images (..., h, w) in one of the eight orientations; 0 is the identity."""
    if number & 4:
        images = images.swapaxes(-1, -2)
    return images[..., :: -1 if number & 1 else 1, :: -1 if number & 2 else 1]


def similar_images(datasets: Sequence[CocoDataset], threshold: float) -> list[SimilarPair]:
    """Return the near-duplicate pairs among the images of data sets, numbered consecutively; see `find_similar`.

    Raises DataError if an image cannot be read.
    """
    readers = [partial(dataset.read_image, index) for dataset in datasets for index in range(len(dataset))]
    return find_similar(thumbnails_of(readers), threshold)


def check_similar(threshold: float) -> None:
    """Raise DataError unless a threshold is a correlation, 0 to 1."""
    if not 0 <= threshold <= 1:
        raise DataError(f"--similar is {threshold}; expected a correlation from 0 to 1")


def leaks(pairs: Iterable[SimilarPair], parts: Sequence[Hashable]) -> list[SimilarPair]:
    """Return the pairs whose images are in different parts; parts: part of every image."""
    return [pair for pair in pairs if parts[pair.first] != parts[pair.second]]


def groups_in_several_parts(groups: Sequence[str], parts: Sequence[str]) -> dict[str, list[str]]:
    """Return group -> parts for groups in more than one part; groups, parts: of every image."""
    found: dict[str, list[str]] = {}
    for group, part in dict.fromkeys(zip(groups, parts, strict=True)):
        found.setdefault(group, []).append(part)
    return {group: own for group, own in found.items() if len(own) > 1}


def join_groups(groups: Sequence[Hashable] | np.ndarray, pairs: Sequence[SimilarPair]) -> np.ndarray:
    """Return (N,) int64, groups of N images numbered from 0, where groups with a pair in common are joined."""
    number = np.unique(np.asarray(groups), return_inverse=True)[1]
    first, second = number[[pair.first for pair in pairs]], number[[pair.second for pair in pairs]]
    count = int(number.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(pairs)), (first, second)), shape=(count, count))
    return connected_components(graph, directed=False)[1][number].astype(np.int64)


def check_split(paths: Sequence[Path], group_by: Sequence[str] = (), similar: float = SIMILAR) -> tuple[str, int]:
    """Find images and groups that are in more than one part of a split.

    Args:
        paths: COCO files, one per part; or a single one whose images have the field `fold`.
        group_by: image fields that define the group.
        similar: correlation above which images are near-duplicates; 0: images are not compared.

    Returns:
        a report, and the number of leaks in it.

    Raises:
        DataError: a file is not a COCO data set, an image cannot be read, or there is only one part.
    """
    check_similar(similar)
    datasets = [CocoDataset.load(path) for path in paths]
    images = [record for dataset in datasets for record in dataset.images]
    if len(datasets) > 1:
        parts = [str(path) for path, dataset in zip(paths, datasets, strict=True) for _ in dataset.images]
    elif all(FOLD in record.metadata for record in images):
        parts = [f"fold {fold}" for fold in folds_of(images)]
    else:
        raise DataError(f"{paths[0]}: its images have no field `fold`; give the files of all parts, or one with folds")
    files = groups_in_several_parts([str(record.path.resolve()) for record in images], parts)
    lines = [f"{path} is in {' and '.join(own)}" for path, own in files.items()]
    if group_by:
        missing = [r.file_name for r in images if any(r.metadata.get(column) in (None, "") for column in group_by)]
        if missing:
            raise DataError(f"{len(missing)} images have no {', '.join(group_by)}:\n{list_problems(missing, 5)}")
        groups = [" ".join(str(record.metadata[column]) for column in group_by) for record in images]
        torn = groups_in_several_parts(groups, parts)
        lines += [f"group {group} is in {' and '.join(sorted(own))}" for group, own in sorted(torn.items())]
    if similar:
        lines += [
            f"{images[p.first].file_name} ({parts[p.first]}) and {images[p.second].file_name} ({parts[p.second]}) are "
            f"near-duplicates{', rotated or mirrored' if p.turned else ''} (similarity {p.similarity:.3f})"
            for p in leaks(similar_images(datasets, similar), parts)
        ]
    if not lines:
        return f"no leaks between {len(set(parts))} parts with {len(images)} images", 0
    noun = "leak" if len(lines) == 1 else "leaks"
    return f"{len(lines)} {noun} between {len(set(parts))} parts:\n{list_problems(lines, 50)}", len(lines)
