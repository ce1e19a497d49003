"""The data sets of a training, loaded and checked before anything else takes time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from detseg.coco.catalog import load_dataset
from detseg.coco.dataset import CocoDataset
from detseg.data.folds import Folds, fold_name
from detseg.engine.evaluation import set_names
from detseg.errors import ConfigError

if TYPE_CHECKING:
    from detseg.config import Config

logger = logging.getLogger(__name__)


def load_training_set(cfg: Config) -> CocoDataset:
    """DATASETS.TRAIN as one set; classes in the order of DATASETS.CLASSES, else of the first set.

    With DATASETS.FOLD without the images of this fold.

    Raises:
        DataError: a set cannot be read, images are missing, classes differ. ConfigError: see `check_class_count`.
    """
    folds = Folds.from_config(cfg)
    dataset = CocoDataset.concatenate([folds.training_part(_load(cfg, name)) for name in cfg.DATASETS.TRAIN])
    describe("training", dataset)
    point_out_dense_images(dataset, cfg.TEST.DETECTIONS_PER_IMAGE)
    return dataset


def load_test_sets(cfg: Config, classes: Sequence[str] | None = None) -> dict[str, CocoDataset]:
    """DATASETS.TEST by short name, in order, each with its classes in the order of `classes` (None: as they are).

    With DATASETS.FOLD it is the fold, and that alone.

    Raises:
        DataError, ConfigError: as `load_training_set`.
    """
    folds = Folds.from_config(cfg)
    if folds.in_use:
        folded = [_load(cfg, name) for name in cfg.DATASETS.TRAIN]
        found = {fold_name(folds.fold): folds.validation_part(folded)}
    else:
        names = set_names(cfg.DATASETS.TEST)
        found = {short: _load(cfg, name) for short, name in zip(names, cfg.DATASETS.TEST, strict=True)}
    sets = {}
    for short, dataset in found.items():
        sets[short] = dataset if classes is None else dataset.with_classes(classes)
        describe("test", dataset)
        point_out_dense_images(dataset, cfg.TEST.DETECTIONS_PER_IMAGE)
    return sets


def load_folded_set(cfg: Config) -> tuple[CocoDataset, np.ndarray]:
    """All images of DATASETS.TRAIN that are in a fold, as one set, and their folds (N,) int64.

    Raises:
        DataError: there are no folds, or as `load_training_set`.
    """
    return Folds.from_config(cfg).folded_set([_load(cfg, name) for name in cfg.DATASETS.TRAIN])


def _load(cfg: Config, name: str) -> CocoDataset:
    dataset = load_dataset(name, cfg.DATASETS.IMAGE_ROOT)
    check_class_count(dataset, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    dataset.check_images_exist()
    return dataset.with_classes(cfg.DATASETS.CLASSES) if cfg.DATASETS.CLASSES else dataset


def check_class_count(dataset: CocoDataset, num_classes: int) -> None:
    """Refuse data whose number of classes is not the model's.

    Raises:
        ConfigError: naming both and what to set.
    """
    names = dataset.class_names
    if len(names) != num_classes:
        raise ConfigError(
            f"data set {dataset.name} has {len(names)} classes ({', '.join(names)}), but MODEL.ROI_HEADS.NUM_CLASSES "
            f"is {num_classes}: set MODEL.ROI_HEADS.NUM_CLASSES {len(names)}, or use other data"
        )


def describe(role: str, dataset: CocoDataset) -> None:
    """Log what a data set holds."""
    counts = dataset.objects_per_image().sum(axis=0).tolist()
    by_class = ", ".join(f"{name} {count}" for name, count in zip(dataset.class_names, counts, strict=True))
    logger.info("%s data %s: %d images, %d objects (%s)", role, dataset.name, len(dataset), sum(counts), by_class)


def point_out_dense_images(dataset: CocoDataset, detections_per_image: int) -> int:
    """Warn of images with more objects than the model may find; return how many there are.

    A negative `detections_per_image` (TEST.DETECTIONS_PER_IMAGE) means without limit.
    """
    counts = dataset.objects_per_image().sum(axis=1)
    dense = int((counts > detections_per_image).sum())
    if detections_per_image < 0 or not dense:
        return 0
    logger.warning(
        "data set %s: %d of %d images have more than TEST.DETECTIONS_PER_IMAGE (%d) objects, the fullest %d; what is "
        "beyond cannot be found: raise it, and MODEL.RPN.POST_NMS_TOPK_TEST with it",
        dataset.name,
        dense,
        len(dataset),
        detections_per_image,
        int(counts.max()),
    )
    return dense
