"""The data sets of a training, loaded and checked before anything that takes time."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detseg.coco.catalog import ENVIRONMENT, load_dataset, read_catalog, set_names
from detseg.coco.dataset import CocoDataset, ImageRecord
from detseg.coco.learnable import check_sets, object_warnings
from detseg.coco.pairing import content_key
from detseg.curation.synthetic import make_missing_sets
from detseg.data.folds import FOLD_PLACE, FoldedSets, Folds, fold_name, pseudo_names
from detseg.data.intensity_range import IMAGES, IntensityRange, levels_of
from detseg.data.object_size import TypicalDiameters
from detseg.data.preprocess import ImagePreprocess
from detseg.data.trained_images import FIELD, TrainedImages
from detseg.engines.build import architecture_of
from detseg.errors import ConfigError, DataError, list_problems
from detseg.formats.plausibility import check_labels
from detseg.inference.image_list import find_images
from detseg.models.table import num_classes

if TYPE_CHECKING:
    from detseg.config import Config

# Images whose masks are checked before a training, evenly spaced; this takes a second or two.
_IMAGES_CHECKED = 100

logger = logging.getLogger(__name__)


def load_training_set(cfg: Config) -> CocoDataset:
    """Load DATASETS.TRAIN, EXTRA_TRAIN and PSEUDO as one set; classes as DATASETS.CLASSES, else as in the first set.

    With DATASETS.FOLD, the images of this fold of DATASETS.TRAIN are left out.

    Raises:
        DataError: a set cannot be read, images are missing, classes differ, or there are no objects. ConfigError: the
            number of classes is not the model's.
    """
    make_missing_sets(cfg.INPUT.COPY_PASTE.SOURCES)
    folds = Folds.from_config(cfg)
    if folds.in_use:
        sets = load_folds(cfg).training_part(folds.fold)
    else:
        sets = _load(cfg, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.EXTRA_TRAIN))
    pseudo = _load(cfg, pseudo_names(cfg), sets[0].class_names)
    dataset = CocoDataset.concatenate([*sets, *pseudo])
    if pseudo:
        dataset.info = {FIELD: {one.name: one.info.get("pseudo_labels", {}).get(FIELD) for one in pseudo}}
    describe("training", dataset, cfg)
    for text in check_sets(sets):
        logger.warning("training data: %s", text)
    for text in check_labels(dataset, most=_IMAGES_CHECKED):
        logger.warning("training data %s: %s", dataset.name, text)
    return dataset


def load_test_sets(cfg: Config, classes: Sequence[str] | None = None) -> dict[str, CocoDataset]:
    """Load the sets of DATASETS.TEST by short name, in order, with classes in the order of `classes` (None: their own).

    With DATASETS.FOLD, only the images of this fold of DATASETS.TRAIN, with the annotations of DATASETS.TEST if that
    has the same images.

    Raises:
        DataError, ConfigError: as `load_training_set`, except that one set with objects is enough.
    """
    folds = Folds.from_config(cfg)
    if folds.in_use:
        found = {fold_name(folds.fold): load_folds(cfg).validation_part(folds.fold)}
    else:
        found = dict(zip(set_names(cfg.DATASETS.TEST), _load(cfg, cfg.DATASETS.TEST, classes), strict=True))
    sets = found if classes is None else {name: dataset.with_classes(classes) for name, dataset in found.items()}
    for dataset in sets.values():
        describe("test", dataset, cfg)
    # A single fold without objects must not end the training of all.
    said = object_warnings(found[fold_name(folds.fold)]) if folds.in_use else check_sets(list(sets.values()))
    for text in said:
        logger.warning("test data: %s", text)
    return sets


def load_folds(cfg: Config) -> FoldedSets:
    """Load the data that the folds of DATASETS.TRAIN are trained and validated on.

    Raises:
        DataError: there are no folds, DATASETS.TEST has only some of the same images, DATASETS.EXTRA_TRAIN has an image
            of a fold, or as `load_training_set`.
    """
    data = cfg.DATASETS
    together = _load(cfg, (*data.TRAIN, *data.EXTRA_TRAIN))
    train, extra = together[: len(data.TRAIN)], together[len(data.TRAIN) :]
    test = _load(cfg, data.TEST, train[0].class_names) if data.TEST else []
    sets = Folds.from_config(cfg).of_sets(train, test, extra)
    refuse_leaks(extra, [sets.validation])
    return sets


@dataclass(frozen=True)
class UnlabeledImages:
    """Images without annotations. Unknown sizes are 0."""

    images: list[ImageRecord]
    name: str = "SEMI.UNLABELED"


def load_unlabeled(cfg: Config) -> UnlabeledImages:
    """Load the images of SEMI.UNLABELED, without duplicates: COCO files, catalog names, folders, globs and lists.

    Paths are relative to the working directory, else to `$DETSEG_DATASETS`. Annotations are ignored.

    Raises:
        DataError: a set does not exist or has no images.
    """
    records: dict[Path, ImageRecord] = {}
    for name in cfg.SEMI.UNLABELED:
        below = Path(os.environ.get(ENVIRONMENT, "."), name)
        if name in read_catalog() or name.lower().endswith((".json", ".json.gz")):
            make_missing_sets([name])
            dataset = load_dataset(name, cfg.DATASETS.IMAGE_ROOT)
            dataset.check_images_exist()
            found = dataset.images
        else:
            try:
                found = find_images([str(below) if below.exists() and not Path(name).exists() else name]).records
            except DataError as error:
                raise DataError(str(error).replace("--images", "SEMI.UNLABELED")) from None
        if not found:
            raise DataError(f"SEMI.UNLABELED: {name} has no image")
        for record in found:
            records.setdefault(record.path.absolute(), record)
    if records:
        logger.info("unlabelled data: %d images", len(records))
    return UnlabeledImages([*records.values()])


@dataclass
class TrainingData:
    """All images of a training; the sets are those of the functions above.

    diameters: of the objects of `train`, None without INPUT.OBJECT_SIZE. The other fields are for what the main process
    stores, and empty in other processes: the intensities of `train`, all training images, and the fingerprints of the
    data sets by name (for run.json).
    """

    train: CocoDataset
    test: dict[str, CocoDataset]
    unlabeled: UnlabeledImages
    diameters: TypicalDiameters | None
    intensities: IntensityRange | None = None
    trained_images: TrainedImages | None = None
    fingerprints: dict[str, Any] = field(default_factory=dict)


def load_training_data(cfg: Config, *, is_main: bool = True) -> TrainingData:
    """Load and check all images of a training, in each of its processes.

    Raises:
        DataError, ConfigError: as `load_training_set` and `load_unlabeled`; or validation images are also training
            images, of this model or of a teacher.
    """
    train = load_training_set(cfg)
    test = load_test_sets(cfg, train.class_names)
    diameters = TypicalDiameters.of_dataset(train) if cfg.INPUT.OBJECT_SIZE else None
    data = TrainingData(train, test, load_unlabeled(cfg), diameters)
    if is_main:
        check_apart(train, cfg, test)
        data.intensities = measure_intensities(train, cfg)
        data.trained_images = TrainedImages.of_records(train.images)
        sets = {"train": train, **{f"test/{name}": own for name, own in test.items()}}
        data.fingerprints = {name: fingerprint(own, cfg) for name, own in sets.items()}
    if is_main and (images := data.unlabeled.images):
        refuse_leaks([data.unlabeled], [*test.values()], key="SEMI.UNLABELED", warn=True)
        seen = TrainedImages.of_records(images)
        data.fingerprints["unlabeled"] = {"images": len(images), "images_hash": seen.hash}
        data.trained_images |= seen
    return data


def refuse_leaks(
    extra: Sequence[CocoDataset | UnlabeledImages],
    validation: Sequence[CocoDataset],
    *,
    key: str = "DATASETS.EXTRA_TRAIN or PSEUDO",
    warn: bool = False,
) -> None:
    """Raise DataError if images of a key's data, compared by file content, are also validation images.

    warn: also warn of images with equal names and sizes, which may be the same pictures, saved again.
    """
    if not extra:
        return
    records = [(record, dataset) for dataset in validation for record in dataset.images]
    by_content = {content_key(record): f"{record.file_name} ({dataset.name})" for record, dataset in records}
    by_name = {(record.file_name, record.height, record.width) for record, _ in records}
    leaks, alike = [], []
    for dataset in extra:
        for record in dataset.images:
            name = f"{record.file_name} ({dataset.name})"
            if (found := by_content.get(content_key(record))) is not None:
                leaks.append(f"{name} is {found}")
            elif (record.file_name, record.height, record.width) in by_name:
                alike.append(name)
    if leaks:
        raise DataError(
            f"{len(leaks)} images of {key} are also validation images, which makes scores too good; leave them out:\n"
            f"{list_problems(leaks)}"
        )
    if alike and warn:
        logger.warning(
            "%s: %d images have the name and size of a validation image; leave out those that are the same picture, "
            "saved again:\n%s",
            key,
            len(alike),
            list_problems(alike),
        )


def check_apart(data: CocoDataset, cfg: Config, test_sets: Mapping[str, CocoDataset]) -> None:
    """Raise DataError if validation images are in DATASETS.EXTRA_TRAIN or PSEUDO, or were training images of the
    teachers that made the pseudo-labels. data: from `load_training_set`.
    """
    further = np.flatnonzero(data.origins >= len(cfg.DATASETS.TRAIN))
    if len(further):
        refuse_leaks([data.select(further)], [*test_sets.values()], warn=True)
    for name, stored in data.info.get(FIELD, {}).items() if cfg.DATASETS.PSEUDO else ():
        teachers = TrainedImages.from_plain(stored)
        if teachers is None:
            logger.warning(
                "pseudo-labels %s: the file does not say on which images its teachers were trained; if they have seen "
                "validation images, the scores are too good (`detseg pseudo_label label` writes it)",
                name,
            )
            continue
        seen = [
            f"{record.file_name} ({dataset.name})"
            for dataset in test_sets.values()
            for record in dataset.images
            if record in teachers
        ]
        if seen:
            raise DataError(
                f"DATASETS.PSEUDO {name}: its teachers were trained on {len(seen)} of the validation images, which "
                "makes scores too good: use pseudo-labels of models that have not seen them, for a fold those of "
                f"the models of this fold ({FOLD_PLACE} in the name):\n{list_problems(seen)}"
            )


def _load(cfg: Config, names: Sequence[str], classes: Sequence[str] | None = None) -> list[CocoDataset]:
    """Load data sets with common classes: `classes`, else DATASETS.CLASSES, else those of the first set."""
    sets = []
    for name in names:
        make_missing_sets([name])
        sets.append(load_dataset(name, cfg.DATASETS.IMAGE_ROOT, boxes=not cfg.MODEL.MASK_ON))
        sets[-1].check_images_exist()
    matched = CocoDataset.match_classes(sets, classes or cfg.DATASETS.CLASSES)
    chosen, expected = matched[0].class_names if matched else [], num_classes(cfg)
    if matched and len(chosen) != expected:
        unused = [name for name in chosen if not any(name in dataset.used_classes for dataset in sets)]
        used = [name for name in chosen if name not in unused]
        without = ", ".join(unused)
        remedy = f', or, as {without} has no annotation, DATASETS.CLASSES "{used}"' if unused and used else ""
        raise ConfigError(
            f"data set {sets[0].name} has {len(chosen)} classes ({', '.join(chosen)}), but MODEL.ROI_HEADS.NUM_CLASSES "
            f"is {expected}: set MODEL.ROI_HEADS.NUM_CLASSES {len(chosen)}{remedy}, or use other data"
        )
    for dataset in sets:
        if lacking := [name for name in chosen if name not in dataset.class_names]:
            logger.warning("data set %s has no class %s: classes are matched by name", dataset.name, ", ".join(lacking))
    return matched


def measure_intensities(dataset: CocoDataset, cfg: Config) -> IntensityRange:
    """Measure the intensities of images sampled from a data set, as the model gets them; warn if they do not fit
    MODEL.PIXEL_MEAN and PIXEL_STD.

    Raises:
        DataError: an image cannot be read, or the model does not accept it.
    """
    preprocess = ImagePreprocess.from_config(cfg)
    suited = IntensityRange.of_normalization(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    levels, misfits = [], []
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), IMAGES)).astype(int)).tolist():
        name = dataset.images[index].file_name
        image, facts = dataset.read_picture(index)
        levels.append(levels_of(preprocess.prepare(image, source=name, facts=facts)))
        misfit = suited.misfit(levels[-1])
        if misfit is not None:
            misfits.append(f"{name}: {misfit}")
    found = IntensityRange.of_images(levels, preprocess.num_channels)
    if misfits:
        logger.warning(
            "training data %s: the intensities of %d of %d images that were looked at do not fit the model (%s). It "
            "will learn badly, or nothing: set INPUT.SCALING percentile, which brings every image to 0..255; or, where "
            "absolute intensities count, INPUT.SCALING fixed and INPUT.SCALING_RANGE [%.6g, %.6g]; or MODEL.PIXEL_MEAN "
            "and PIXEL_STD to the mean and the standard deviation of these images",
            dataset.name,
            len(misfits),
            len(levels),
            misfits[0],
            min(found.low),
            max(found.bright),
        )
    return found


def fingerprint(dataset: CocoDataset, cfg: Config) -> dict[str, Any]:
    """Return a data set's fingerprint as plain values: hashes of its annotations and image files, and counts.

    Groups are the values of DATALOADER.BALANCE_BY, or of the images' field `group`. Raises DataError if an image cannot
    be read.
    """
    counts = dataset.objects_per_image()
    field = cfg.DATALOADER.BALANCE_BY if cfg.DATALOADER.BALANCE_BY not in ("", "category") else "group"
    values = [str(record.metadata[field]) if field in record.metadata else None for record in dataset.images]

    def by_class(chosen: Sequence[int]) -> dict[str, int]:
        return dict(zip(dataset.class_names, counts[list(chosen)].sum(axis=0).tolist(), strict=True))

    members = {name: [i for i, value in enumerate(values) if value == name] for name in sorted({*values} - {None})}
    return {
        "name": dataset.name,
        "images": len(dataset),
        "objects": by_class(range(len(dataset))),
        "groups": {name: {"images": len(own), "objects": by_class(own)} for name, own in members.items()},
        "annotations_hash": dataset.annotations_hash(),
        "images_hash": TrainedImages.of_records(dataset.images).hash,
    }


def describe(role: str, dataset: CocoDataset, cfg: Config) -> None:
    """Log the contents of a data set; warn of images with more objects than the model may find."""
    counts = dataset.objects_per_image()
    totals = counts.sum(axis=0).tolist()
    by_class = ", ".join(f"{name} {count}" for name, count in zip(dataset.class_names, totals, strict=True))
    logger.info("%s data %s: %d images, %d objects (%s)", role, dataset.name, len(dataset), sum(totals), by_class)
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    dense = int((counts.sum(axis=1) > limit).sum())
    if limit < 0 or not dense:  # below 0: without limit
        return
    raised = [key for key in architecture_of(cfg).limits if key != "TEST.DETECTIONS_PER_IMAGE"]
    logger.warning(
        "data set %s: %d of %d images have more than TEST.DETECTIONS_PER_IMAGE (%d) objects, at most %d; those beyond "
        "the limit cannot be found: raise it%s",
        dataset.name,
        dense,
        len(dataset),
        limit,
        int(counts.sum(axis=1).max()),
        f", and {' and '.join(raised)} with it" if raised else "",
    )
