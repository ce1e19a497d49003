"""The folds of a training: which images it trains with, and which it is validated on (DATASETS.FOLD)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detseg.data.catalog import datasets_folder
from detseg.data.coco import CocoDataset
from detseg.data.fold_index import FOLD, folds_of, read_index
from detseg.errors import ConfigError, DataError

if TYPE_CHECKING:
    from detseg.config import Config


def has_folds(cfg: Config) -> bool:
    """Whether DATASETS.FOLD names a fold."""
    return cfg.DATASETS.FOLD >= 0


def fold_name(fold: int) -> str:
    """Return what a fold is called in files and tables."""
    return f"{FOLD}{fold}"


def training_part(cfg: Config, dataset: CocoDataset) -> CocoDataset:
    """Return the images of one data set that may be trained with.

    With DATASETS.FOLD those of other folds; images of no fold, such as a hold-out's, are not among them. A set without
    folds is used whole.
    """
    if not has_folds(cfg) or not _is_folded(cfg, dataset):
        return dataset
    folds = folds_of(dataset.images, _index_path(cfg))
    return dataset.select(np.flatnonzero((folds >= 0) & (folds != cfg.DATASETS.FOLD)))


def validation_part(cfg: Config, datasets: Sequence[CocoDataset]) -> CocoDataset:
    """Return the images of the fold DATASETS.FOLD of those data sets of DATASETS.TRAIN that have folds.

    Raises ConfigError where there is no such fold.
    """
    whole, folds = folded_set(cfg, datasets)
    last = int(folds.max())
    if last < cfg.DATASETS.FOLD:
        raise ConfigError(f"DATASETS.FOLD is {cfg.DATASETS.FOLD}, but there are the folds 0 to {last}")
    return whole.select(np.flatnonzero(folds == cfg.DATASETS.FOLD))


def folded_set(cfg: Config, datasets: Sequence[CocoDataset]) -> tuple[CocoDataset, np.ndarray]:
    """Return all images that are in a fold, as one set whose image ids differ, and their folds (N,) int64.

    datasets: those of DATASETS.TRAIN, in order; sets without folds are passed over.

    Raises:
        DataError: none has folds, an image has none, or the numbers of folds have gaps.
    """
    folded = [dataset for dataset in datasets if _is_folded(cfg, dataset)]
    if not folded:
        where = cfg.DATASETS.FOLDS or "the images' field `fold`"
        raise DataError(
            f"no data set of DATASETS.TRAIN has folds ({where}); `detseg split` writes a COCO file with them, or name "
            "an index by DATASETS.FOLDS"
        )
    whole = _with_ids_that_differ(CocoDataset.concatenate(folded))
    folds = folds_of(whole.images, _index_path(cfg)) if len(folded) == 1 else _folds_of_several(cfg, folded)
    chosen = np.flatnonzero(folds >= 0)
    return whole.select(chosen), folds[chosen]


def _folds_of_several(cfg: Config, datasets: Sequence[CocoDataset]) -> np.ndarray:
    """Return the folds of data sets whose ids may not differ, one behind the other; all have the same folds."""
    folds = [folds_of(dataset.images, _index_path(cfg)) for dataset in datasets]
    counts = {int(own.max()) + 1 for own in folds}
    if len(counts) > 1:
        raise DataError(f"the data sets of DATASETS.TRAIN have {' and '.join(map(str, sorted(counts)))} folds")
    return np.concatenate(folds)


def _is_folded(cfg: Config, dataset: CocoDataset) -> bool:
    """Whether an image of the set has a fold."""
    if not cfg.DATASETS.FOLDS:
        return any(FOLD in record.metadata for record in dataset.images)
    index = read_index(_index_path(cfg))
    return any(record.file_name in index or str(record.image_id) in index for record in dataset.images)


def _index_path(cfg: Config) -> Path | None:
    """Return the index DATASETS.FOLDS, relative to the working folder, else to the folder of data sets."""
    if not cfg.DATASETS.FOLDS:
        return None
    for candidate in (Path(cfg.DATASETS.FOLDS), datasets_folder() / cfg.DATASETS.FOLDS):
        if candidate.is_file():
            return candidate
    raise DataError(f"DATASETS.FOLDS: there is no file {cfg.DATASETS.FOLDS} in {Path.cwd()} or {datasets_folder()}")


def _with_ids_that_differ(dataset: CocoDataset) -> CocoDataset:
    """Return the data set as it is, or with its images numbered from 1 on where ids occur twice."""
    if len({record.image_id for record in dataset.images}) == len(dataset):
        return dataset
    images = [dataclasses.replace(record, image_id=number) for number, record in enumerate(dataset.images, start=1)]
    return CocoDataset(images, dataset.categories, dataset.table, dataset.name, dataset.origins)
