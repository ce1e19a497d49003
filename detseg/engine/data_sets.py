"""The data sets of a training, loaded and checked before anything else takes time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from detseg.data.catalog import load_test_datasets, load_training_dataset
from detseg.engine.evaluation import set_names

if TYPE_CHECKING:
    from detseg.config import Config
    from detseg.data.coco import CocoDataset

logger = logging.getLogger(__name__)


def load_training_set(cfg: Config) -> CocoDataset:
    """DATASETS.TRAIN as one set, its images present, its classes as many as the model's.

    Raises:
        DataError: a set cannot be read or does not fit the model.
    """
    dataset = load_training_dataset(cfg)
    dataset.check_images_exist()
    describe("training", dataset)
    point_out_dense_images(dataset, cfg.TEST.DETECTIONS_PER_IMAGE)
    return dataset


def load_test_sets(cfg: Config, classes: Sequence[str] | None = None) -> dict[str, CocoDataset]:
    """DATASETS.TEST by short name, in order, each with its classes in the order of `classes` (None: as they are).

    Raises:
        DataError: a set cannot be read, or its classes are others.
    """
    loaded = load_test_datasets(cfg)
    sets = {}
    for short, dataset in zip(set_names(list(loaded)), loaded.values(), strict=True):
        dataset.check_images_exist()
        sets[short] = dataset if classes is None else dataset.with_classes(classes)
        describe("test", dataset)
        point_out_dense_images(dataset, cfg.TEST.DETECTIONS_PER_IMAGE)
    return sets


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
