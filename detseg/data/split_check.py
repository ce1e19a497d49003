"""Looking at a split that is there: does anything leak from one part into another?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from detseg.data.coco import CocoDataset, ImageRecord
from detseg.data.fold_index import FOLD, folds_of
from detseg.data.image_hash import SimilarPair, find_similar, fingerprints_of
from detseg.data.leakage import groups_in_several_parts, leaks
from detseg.errors import DataError, list_problems


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
