"""Perceptual hashes: which images are the same, or nearly, also turned, mirrored, brighter or of other contrast.

The hash is made of the signs of the lowest frequencies of the image's cosine transform (Zauner 2010, pHash). A mirrored
image has the same coefficients but for signs, a turned one has them transposed, so that the hashes of all eight
orientations come from one. Pairs of near hashes are then compared by the correlation of small copies of the images.

N images. Time grows with N^2, but by a product of matrices: thousands of images take seconds beyond reading them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from detseg.coco.dataset import CocoDataset, ImageRecord
from detseg.data.folds import FOLD, folds_of
from detseg.errors import DataError, list_problems

# Sides of the small copy, of the copy that is transformed, and of its block of low frequencies.
THUMBNAIL, TRANSFORMED, BLOCK = 64, 32, 8
# Agreement of two hashes (share of equal signs minus share of others) from which on images are compared further:
# equal images, noisy or of other brightness, have 0.8 and more, different ones 0 +- 0.13.
NEAR_HASH = 0.4
# Correlation of small copies from which on images are called nearly the same.
SIMILAR = 0.9
_ROWS_TOGETHER = 1024


@dataclass(frozen=True)
class Fingerprints:
    """signs: (N, 63) int8, -1 or 1, the hashes. thumbnails: (N, 64, 64) float16 of mean 0 and length 1, or all 0."""

    signs: np.ndarray
    thumbnails: np.ndarray

    def __len__(self) -> int:
        return len(self.signs)


@dataclass(frozen=True)
class SimilarPair:
    """Two images that are nearly the same: their indices, first < second, and the correlation of small copies.

    turned: the second has to be turned or mirrored for it.
    """

    first: int
    second: int
    similarity: float
    turned: bool


def fingerprint(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash (63,) int8 and the small copy (64, 64) float16 of an image (H, W, C) of any numbers.

    The copy is square whatever the image is, so that turned images of other shape compare. Without contrast it is 0.
    """
    gray = image.astype(np.float32).mean(axis=2)
    gray = np.nan_to_num(gray, posinf=0, neginf=0)
    small = cv2.resize(gray, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    small = small - small.mean()
    length = np.linalg.norm(small)
    # Rounding alone is no contrast.
    flat = length <= 1e-5 * max(float(np.abs(gray).max()), 1e-30) * THUMBNAIL
    small = np.zeros_like(small) if flat else small / length
    coefficients = cv2.dct(cv2.resize(small, (TRANSFORMED, TRANSFORMED), interpolation=cv2.INTER_AREA))
    block = coefficients[:BLOCK, :BLOCK]
    return np.where(block < 0, -1, 1).astype(np.int8).ravel()[1:], small.astype(np.float16)


def fingerprints_of(read: Sequence[Callable[[], np.ndarray]]) -> Fingerprints:
    """Return the fingerprints of N images, given by functions that read them; images are read by several threads."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = list(
            tqdm(pool.map(lambda one: fingerprint(one()), read), total=len(read), desc="comparing images", unit="image")
        )
    return Fingerprints(
        signs=np.array([signs for signs, _ in found], dtype=np.int8).reshape(-1, BLOCK * BLOCK - 1),
        thumbnails=np.array([small for _, small in found], dtype=np.float16).reshape(-1, THUMBNAIL, THUMBNAIL),
    )


def find_similar(prints: Fingerprints, threshold: float = SIMILAR) -> list[SimilarPair]:
    """Find the pairs of images that are nearly the same, also turned by 90, 180, 270 degrees or mirrored.

    threshold: least correlation of the small copies. What shows a part of another image, or is moved by more than a few
    percent of its side, is not found; nor are images without contrast.
    """
    best: dict[tuple[int, int], tuple[float, bool]] = {}
    columns = prints.signs.astype(np.float32)
    for number in range(8):
        for start in range(0, len(prints), _ROWS_TOGETHER):
            rows = _orient_signs(prints.signs[start : start + _ROWS_TOGETHER], number).astype(np.float32)
            first, second = np.nonzero(rows @ columns.T >= NEAR_HASH * columns.shape[1])
            first += start
            # Orientations are their own inverses but for two, which are each other's: half of the pairs is enough.
            keep = first < second
            _compare(prints, first[keep], second[keep], number, threshold, best)
    return [SimilarPair(*pair, similarity, turned) for pair, (similarity, turned) in sorted(best.items())]


def _compare(
    prints: Fingerprints,
    first: np.ndarray,
    second: np.ndarray,
    number: int,
    threshold: float,
    best: dict[tuple[int, int], tuple[float, bool]],
) -> None:
    """Keep the pairs whose small copies, the first one oriented, correlate enough."""
    for start in range(0, len(first), _ROWS_TOGETHER):
        a, b = first[start : start + _ROWS_TOGETHER], second[start : start + _ROWS_TOGETHER]
        oriented = _orient(prints.thumbnails[a].astype(np.float32), number)
        values = np.einsum("nij,nij->n", oriented, prints.thumbnails[b].astype(np.float32))
        for i, j, value in zip(a.tolist(), b.tolist(), values.tolist(), strict=True):
            if value >= threshold and value > best.get((i, j), (-1.0, False))[0] + 1e-3:
                best[i, j] = min(value, 1.0), number > 0


def _orient(images: np.ndarray, number: int) -> np.ndarray:
    """Return images (N, h, w) in one of the eight orientations: number 0 as they are."""
    if number & 4:
        images = images.transpose(0, 2, 1)
    return images[:, :: -1 if number & 1 else 1, :: -1 if number & 2 else 1]


def _orient_signs(signs: np.ndarray, number: int) -> np.ndarray:
    """Return the hashes (N, 63) of the images in that orientation."""
    block = np.concatenate([np.ones((len(signs), 1), dtype=np.int8), signs], axis=1).reshape(-1, BLOCK, BLOCK)
    if number & 4:
        block = block.transpose(0, 2, 1)
    odd = np.where(np.arange(BLOCK) % 2, -1, 1).astype(np.int8)
    block = block * (odd[:, None] if number & 1 else 1) * (odd[None, :] if number & 2 else 1)
    return block.reshape(len(signs), -1)[:, 1:]


# Leaks between the parts of a split: groups, and images that are nearly the same, in more than one of them.


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


# Looking at a split that is there: does anything leak from one part into another?


def check_split(paths: Sequence[Path], group_by: Sequence[str] = (), similar: float = 0.9) -> tuple[str, int]:
    """Look for images and groups that lie in more than one part.

    Args:
        paths: COCO files, each a part; or one whose images have the field `fold`.
        group_by: fields of the images that name the group.
        similar: correlation from which on images are nearly the same; 0: images are not compared.

    Returns:
        a report, and how many leaks it tells of.

    Raises:
        DataError: a file is no COCO data set, an image cannot be read, or there is one part only.
    """
    datasets = [CocoDataset.load(path) for path in paths]
    images = [record for dataset in datasets for record in dataset.images]
    if len(datasets) == 1:
        if not all(FOLD in record.metadata for record in images):
            raise DataError(
                f"{paths[0]}: its images have no field `fold`; give the files of all parts, or one of folds"
            )
        parts = [f"fold {fold}" for fold in folds_of(images)]
    else:
        parts = [str(path) for path, dataset in zip(paths, datasets, strict=True) for _ in dataset.images]
    lines = _same_files(images, parts)
    lines += _torn_groups(images, parts, group_by)
    if similar:
        pairs = _similar(datasets, similar)
        lines += [
            f"{images[p.first].file_name} ({parts[p.first]}) and {images[p.second].file_name} ({parts[p.second]}) are "
            f"nearly the same{', turned or mirrored' if p.turned else ''} (similarity {p.similarity:.3f})"
            for p in leaks(pairs, parts)
        ]
    if not lines:
        return f"nothing leaks between {len(set(parts))} parts with {len(images)} images", 0
    noun = "leak" if len(lines) == 1 else "leaks"
    return f"{len(lines)} {noun} between {len(set(parts))} parts:\n{list_problems(lines, 50)}", len(lines)


def _same_files(images: Sequence[ImageRecord], parts: Sequence[str]) -> list[str]:
    found = groups_in_several_parts([str(record.path.resolve()) for record in images], parts)
    return [f"{path} is in {' and '.join(map(str, own))}" for path, own in found.items()]


def _torn_groups(images: Sequence[ImageRecord], parts: Sequence[str], group_by: Sequence[str]) -> list[str]:
    if not group_by:
        return []
    missing = [r.file_name for r in images if any(r.metadata.get(column) in (None, "") for column in group_by)]
    if missing:
        raise DataError(f"{len(missing)} images have no {', '.join(group_by)}:\n{list_problems(missing, 5)}")
    groups = [" ".join(str(record.metadata[column]) for column in group_by) for record in images]
    found = groups_in_several_parts(groups, parts)
    return [f"group {group} is in {' and '.join(sorted(map(str, own)))}" for group, own in sorted(found.items())]


def _similar(datasets: Sequence[CocoDataset], threshold: float) -> list[SimilarPair]:
    read = [partial(dataset.read_image, index) for dataset in datasets for index in range(len(dataset))]
    return find_similar(fingerprints_of(read), threshold)
