"""Leaks between the parts of a split: images that are nearly the same, files, and groups, in more than one of them.

Images are nearly the same where small copies of 64 x 64 gray values correlate, in one of the eight orientations:
also turned, mirrored, brighter, of other contrast or stored again. N images; time grows with N^2, but by a product of
matrices over copies of 8 x 8: thousands of images take seconds beyond reading them.
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

# Sides of the small copies: those that decide, and those that all pairs are compared by first.
THUMBNAIL, COARSE = 64, 8
# Correlation of the small copies from which on images are called nearly the same.
SIMILAR = 0.9
# That of the coarse copies may be so much lower: noise and fine structure weigh differently in them.
COARSE_MARGIN = 0.25
_ROWS_TOGETHER = 1024


@dataclass(frozen=True)
class SimilarPair:
    """Two images that are nearly the same: their indices, first < second, and the correlation of small copies.

    turned: the second has to be turned or mirrored for it.
    """

    first: int
    second: int
    similarity: float
    turned: bool


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return the small copy (64, 64) float16, of mean 0 and length 1, of an image (H, W, C) of any numbers.

    The copy is square whatever the image is, so that turned images of other shape compare. Without contrast it is 0.
    """
    gray = np.nan_to_num(image.astype(np.float32).mean(axis=2), posinf=0, neginf=0)
    small = cv2.resize(gray, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    small = small - small.mean()
    length = np.linalg.norm(small)
    # Rounding is no contrast.
    if length <= 1e-5 * max(float(np.abs(gray).max()), 1e-30) * THUMBNAIL:
        return np.zeros(small.shape, dtype=np.float16)
    return (small / length).astype(np.float16)


def thumbnails_of(read: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
    """Return the small copies (N, 64, 64) of N images, given by functions that read them, in several threads."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        copies = pool.map(lambda one: thumbnail(one()), read)
        found = list(ProgressBar(copies, total=len(read), desc="comparing images", unit="image"))
    return np.array(found, dtype=np.float16).reshape(-1, THUMBNAIL, THUMBNAIL)


def find_similar(thumbnails: np.ndarray, threshold: float = SIMILAR) -> list[SimilarPair]:
    """Find the pairs of N images that are nearly the same, also turned by 90, 180, 270 degrees or mirrored.

    thumbnails: (N, 64, 64), see `thumbnail`. threshold: least correlation. What shows a part of another image, or is
    moved by more than a few percent of its side, is not found; nor are images without contrast.
    """
    best: dict[tuple[int, int], SimilarPair] = {}
    count, step = len(thumbnails), THUMBNAIL // COARSE
    coarse = thumbnails.astype(np.float32).reshape(count, COARSE, step, COARSE, step).mean(axis=(2, 4))
    coarse /= np.maximum(np.linalg.norm(coarse, axis=(1, 2), keepdims=True), 1e-12)
    columns = coarse.reshape(count, COARSE * COARSE).T
    for number, start in itertools.product(range(8), range(0, count, _ROWS_TOGETHER)):
        rows = _orient(coarse[start : start + _ROWS_TOGETHER], number).reshape(-1, COARSE * COARSE)
        first, second = np.nonzero(rows @ columns >= threshold - COARSE_MARGIN)
        # Orientations are their own inverses but for two, which are each other's: half of the pairs is enough.
        pairs = np.stack([first + start, second], axis=1)[first + start < second]
        for chunk in np.split(pairs, range(_ROWS_TOGETHER, len(pairs), _ROWS_TOGETHER)):
            oriented = _orient(thumbnails[chunk[:, 0]].astype(np.float32), number)
            values = np.einsum("nij,nij->n", oriented, thumbnails[chunk[:, 1]].astype(np.float32))
            for (a, b), value in zip(chunk.tolist(), values.tolist(), strict=True):
                if value >= threshold and ((a, b) not in best or value > best[a, b].similarity + 1e-3):
                    best[a, b] = SimilarPair(a, b, min(value, 1.0), number > 0)
    return [best[pair] for pair in sorted(best)]


def _orient(images: np.ndarray, number: int) -> np.ndarray:
    """Return images (..., h, w) in one of the eight orientations: number 0 as they are."""
    if number & 4:
        images = images.swapaxes(-1, -2)
    return images[..., :: -1 if number & 1 else 1, :: -1 if number & 2 else 1]


def similar_images(datasets: Sequence[CocoDataset], threshold: float) -> list[SimilarPair]:
    """Return the pairs of images of data sets, counted through, that are nearly the same; see `find_similar`.

    Raises DataError where an image cannot be read.
    """
    readers = [partial(dataset.read_image, index) for dataset in datasets for index in range(len(dataset))]
    return find_similar(thumbnails_of(readers), threshold)


def check_similar(threshold: float) -> None:
    """Raise DataError unless a threshold is a correlation, 0 to 1."""
    if not 0 <= threshold <= 1:
        raise DataError(f"--similar is {threshold}; expected a correlation, 0 to 1")


def leaks(pairs: Iterable[SimilarPair], parts: Sequence[Hashable]) -> list[SimilarPair]:
    """Return the pairs whose images are in different parts; parts: of every image."""
    return [pair for pair in pairs if parts[pair.first] != parts[pair.second]]


def groups_in_several_parts(groups: Sequence[str], parts: Sequence[str]) -> dict[str, list[str]]:
    """Return group -> its parts, of the groups that are in more than one; groups, parts: of every image."""
    found: dict[str, list[str]] = {}
    for group, part in dict.fromkeys(zip(groups, parts, strict=True)):
        found.setdefault(group, []).append(part)
    return {group: own for group, own in found.items() if len(own) > 1}


def join_groups(groups: Sequence[Hashable] | np.ndarray, pairs: Sequence[SimilarPair]) -> np.ndarray:
    """Number the groups of N images, those joined that have images in a pair in common: (N,) int64 from 0 on."""
    number = np.unique(np.asarray(groups), return_inverse=True)[1]
    first, second = number[[pair.first for pair in pairs]], number[[pair.second for pair in pairs]]
    count = int(number.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(pairs)), (first, second)), shape=(count, count))
    return connected_components(graph, directed=False)[1][number].astype(np.int64)


def check_split(paths: Sequence[Path], group_by: Sequence[str] = (), similar: float = SIMILAR) -> tuple[str, int]:
    """Look for images and groups that are in more than one part of a split.

    Args:
        paths: COCO files, each a part; or one whose images have the field `fold`.
        group_by: fields of the images that name the group.
        similar: correlation from which on images are nearly the same; 0: images are not compared.

    Returns:
        a report, and how many leaks it lists.

    Raises:
        DataError: a file is no COCO data set, an image cannot be read, or there is one part only.
    """
    check_similar(similar)
    datasets = [CocoDataset.load(path) for path in paths]
    images = [record for dataset in datasets for record in dataset.images]
    if len(datasets) > 1:
        parts = [str(path) for path, dataset in zip(paths, datasets, strict=True) for _ in dataset.images]
    elif all(FOLD in record.metadata for record in images):
        parts = [f"fold {fold}" for fold in folds_of(images)]
    else:
        raise DataError(f"{paths[0]}: its images have no field `fold`; give the files of all parts, or one of folds")
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
            f"nearly the same{', turned or mirrored' if p.turned else ''} (similarity {p.similarity:.3f})"
            for p in leaks(similar_images(datasets, similar), parts)
        ]
    if not lines:
        return f"nothing leaks between {len(set(parts))} parts with {len(images)} images", 0
    noun = "leak" if len(lines) == 1 else "leaks"
    return f"{len(lines)} {noun} between {len(set(parts))} parts:\n{list_problems(lines, 50)}", len(lines)
