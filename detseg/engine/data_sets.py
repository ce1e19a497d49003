"""The data sets of a training, loaded and checked before anything else takes time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from detseg.engine.evaluation import set_names
from detseg.errors import ConfigError

if TYPE_CHECKING:
    from detseg.config import Config
    from detseg.data.coco import CocoDataset

logger = logging.getLogger(__name__)


def load_training_set(cfg: Config) -> CocoDataset:
    """DATASETS.TRAIN, joined; classes in the order of DATASETS.CLASSES or of the first set's category ids.

    Raises:
        DataError: a set cannot be read. ConfigError: its classes do not fit the model.
    """
    from detseg.data.coco import CocoDataset

    loaded = [load_dataset(cfg, name) for name in cfg.DATASETS.TRAIN]
    dataset = CocoDataset.concatenate(loaded)
    logger.info(
        "training data %s: %d images, %d objects, classes %s",
        ", ".join(cfg.DATASETS.TRAIN),
        len(dataset),
        dataset.num_objects,
        ", ".join(dataset.class_names),
    )
    point_out_dense_images(dataset, cfg.TEST.DETECTIONS_PER_IMAGE)
    return dataset


def load_test_sets(cfg: Config, classes: list[str] | None) -> dict[str, CocoDataset]:
    """DATASETS.TEST by short name, in order, with the classes of the training (None: the first set's)."""
    loaded = {}
    for short, name in zip(set_names(cfg.DATASETS.TEST), cfg.DATASETS.TEST, strict=True):
        dataset = load_dataset(cfg, name)
        classes = classes or dataset.class_names
        loaded[short] = dataset.with_classes(classes)
        point_out_dense_images(dataset, cfg.TEST.DETECTIONS_PER_IMAGE)
    return loaded


def load_dataset(cfg: Config, name: str) -> CocoDataset:
    """One data set by its catalog name or path, its images present and its classes as many as the model's."""
    from detseg.data.catalog import resolve_dataset
    from detseg.data.coco import CocoDataset

    entry = resolve_dataset(name)
    dataset = CocoDataset.load(entry.json, cfg.DATASETS.IMAGE_ROOT or entry.image_root)
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
            f"is {num_classes}: set MODEL.ROI_HEADS.NUM_CLASSES {len(names)}"
        )


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
