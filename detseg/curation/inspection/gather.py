"""All measurements of data sets: masks of all images, intensities of all or a sample of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.coco.learnable import object_warnings
from detseg.curation.inspection.measure import (
    BOUNDARY_WIDTHS,
    OBJECT,
    IntensityStatistics,
    class_fidelity,
    measure_intensities,
    measure_objects,
)
from detseg.curation.leaks import SIMILAR, SimilarPair, find_similar, thumbnail
from detseg.curation.repair.image import ImageMasks, repair_image
from detseg.curation.repair.rules import Change, RepairRules, one_class_hint
from detseg.errors import DataError
from detseg.formats.plausibility import check_labels
from detseg.progress import ProgressBar
from detseg.structures.sample import FIELD, parse_pixel_size

# Default field for the kind of an image.
USUAL_GROUP = "group"
NO_GROUP = "(none)"


@dataclass(frozen=True)
class InspectionOptions:
    """group_by: image field with the kind; empty: `group` if the images have it.

    pictures: number of images to read, 0 for all. similar: correlation above which two are near-duplicates, 0 to skip
    the comparison. rules: repair rules whose findings are reported.
    """

    group_by: str = ""
    pictures: int = 1000
    similar: float = SIMILAR
    rules: RepairRules = field(default_factory=RepairRules)


@dataclass
class Measurements:
    """Measurements of I images with N objects.

    dataset: all files joined; its `origins` give the index into `files` of every image. groups: kind of every image,
    all `""` without a field. objects: (N,) records, see `OBJECT`. crowd: (I,) number of crowd regions. changes: image
    index and what repair would do there. intensities: image index -> statistics. fidelity: (I, W) `class_fidelity` of
    the images with objects among those, for every width of BOUNDARY_WIDTHS. chosen: images selected for reading.
    unreadable: image index -> problem. missing: images without a file. similar: near-duplicate images, by index.
    skipped: problems of the COCO files, and masks without pixels. label_warnings: from `learnable.object_warnings` and
    `plausibility.check_labels`.
    """

    files: list[str]
    dataset: CocoDataset
    group_field: str
    groups: list[str]
    objects: np.recarray
    crowd: np.ndarray
    changes: list[tuple[int, Change]]
    intensities: dict[int, IntensityStatistics]
    fidelity: np.ndarray
    chosen: np.ndarray
    unreadable: dict[int, str]
    missing: list[int]
    similar: list[SimilarPair]
    skipped: list[str]
    label_warnings: list[str]
    one_class_hint: str | None
    rules: RepairRules

    @cached_property
    def image_sizes(self) -> np.ndarray:
        """Height and width of every image in the file, (I, 2) float64."""
        return np.array([(record.height, record.width) for record in self.dataset.images], dtype=np.float64)

    @cached_property
    def pixel_sizes(self) -> np.ndarray:
        """Micrometres per pixel of every image, geometric mean of y and x, NaN if unknown: (I,)."""
        return np.array(
            [
                np.sqrt(np.prod(parse_pixel_size(record.metadata[FIELD], record.file_name)))
                if record.metadata.get(FIELD) is not None
                else np.nan
                for record in self.dataset.images
            ]
        )

    @property
    def sides(self) -> np.ndarray:
        """Square root of the area of each box, by which a feature pyramid assigns levels: (N,)."""
        return np.sqrt((self.objects.box[:, 2:] - self.objects.box[:, :2]).prod(axis=1))

    @property
    def object_groups(self) -> np.ndarray:
        """The kind of the image of every object, (N,)."""
        return np.array(self.groups)[self.objects.image]


def gather(datasets: Sequence[CocoDataset], skipped: Sequence[str], options: InspectionOptions) -> Measurements:
    """Measure data sets with the same classes. Bad images are listed in the result and raise no error.

    Raises DataError if there are no images, the classes differ, or no image has the field `options.group_by`.
    """
    dataset = CocoDataset.concatenate(datasets)
    if not len(dataset):
        raise DataError(f"{dataset.name}: it has no images")
    group_field, groups = _groups(dataset, options.group_by)
    hint = one_class_hint(dataset.objects_per_image()) if len(dataset.categories) > 1 else None
    # If nearly every image has objects of one class only, an object of another class is a finding.
    rules = dataclasses.replace(options.rules, one_class_per_image=True) if hint else options.rules
    tables, changes = [np.zeros(0, dtype=OBJECT)], []
    for index in ProgressBar(range(len(dataset)), desc="measuring masks", unit="image"):
        try:
            objects, found = _measure_masks(dataset, index, rules)
        except DataError as error:  # masks without pixels
            skipped = [*skipped, str(error)]
            continue
        tables.append(objects)
        changes += [(index, change) for change in found]
    missing = [index for index, record in enumerate(dataset.images) if not record.path.is_file()]
    chosen = choose_images(groups, missing, options.pictures)
    table = dataset.table
    return Measurements(
        files=[one.name for one in datasets],
        dataset=dataset,
        group_field=group_field,
        groups=groups,
        objects=np.concatenate(tables).view(np.recarray),
        crowd=np.array([table.crowd[table.rows(index)].sum() for index in range(len(dataset))], dtype=np.int64),
        changes=changes,
        chosen=chosen,
        missing=missing,
        **_measure_pictures(dataset, chosen, options.similar),
        skipped=list(skipped),
        label_warnings=[
            *(text for one in datasets for text in object_warnings(one)),
            *(check_labels(dataset) if dataset.num_objects else ()),
        ],
        one_class_hint=hint,
        rules=rules,
    )


def _groups(dataset: CocoDataset, group_by: str) -> tuple[str, list[str]]:
    """Return the field with the kind of the images, empty if there is none, and the kind of every image."""
    values = [record.metadata.get(group_by or USUAL_GROUP) for record in dataset.images]
    if any(value not in (None, "") for value in values):
        return group_by or USUAL_GROUP, [NO_GROUP if value in (None, "") else str(value) for value in values]
    if group_by:
        fields = sorted({key for record in dataset.images for key in record.metadata})
        raise DataError(
            f"{dataset.name}: no image has the field {group_by!r} (--group-by); their fields are "
            f"{', '.join(fields) or 'none'}"
        )
    return "", [""] * len(values)


def _measure_masks(dataset: CocoDataset, index: int, rules: RepairRules) -> tuple[np.recarray, list[Change]]:
    """Measure the objects of an image, and determine what repair would change."""
    record, table = dataset.images[index], dataset.table
    rles, empty = table.rles(index, record.height, record.width)
    rows = table.rows(index)
    kept = np.flatnonzero(~empty & ~table.crowd[rows])
    own = [rles[number] for number in kept]
    classes = table.classes[rows][kept].astype(np.int64)
    masks = ImageMasks(
        file_name=record.file_name,
        rles=own,
        classes=classes,
        names=kept.tolist(),
        class_names=dataset.class_names,
        allowed=rules.allowed_classes(record.metadata.get(rules.kind_field), dataset.class_names),
    )
    changes = repair_image(masks, rules).changes
    return measure_objects(own, classes, kept, index, record.height, record.width), changes


def _measure_pictures(dataset: CocoDataset, chosen: np.ndarray, similar: float) -> dict[str, Any]:
    """Return intensities, fidelity, unreadable and similar of `Measurements`, for the images `chosen` (n,)."""
    intensities: dict[int, IntensityStatistics] = {}
    unreadable: dict[int, str] = {}
    fidelity, thumbnails = [], []
    for index in ProgressBar(chosen.tolist(), desc="measuring pictures", unit="image"):
        try:
            image = dataset.read_image(index)
        except DataError as error:
            unreadable[index] = str(error)
            continue
        layers, _, _ = dataset.labels(index)
        intensities[index] = measure_intensities(image, layers)
        if len(layers):
            fidelity.append([class_fidelity(layers, width) for width in BOUNDARY_WIDTHS])
        if similar:
            thumbnails.append(thumbnail(image))
    read = list(intensities)
    pairs = find_similar(np.stack(thumbnails), similar) if thumbnails else []
    return {
        "intensities": intensities,
        "unreadable": unreadable,
        "fidelity": np.array(fidelity).reshape(-1, len(BOUNDARY_WIDTHS)),
        "similar": [dataclasses.replace(pair, first=read[pair.first], second=read[pair.second]) for pair in pairs],
    }


def choose_images(groups: Sequence[str], missing: Sequence[int], most: int) -> np.ndarray:
    """Choose at most `most` images (0: all) among those not missing, with groups represented as equally as possible.

    Returns their indices (n,) int64, ascending.
    """
    there = np.setdiff1d(np.arange(len(groups)), missing)
    if not most or len(there) <= most:
        return there
    order = np.random.default_rng(0).permutation(there)
    # Round robin over groups: sorted by the rank within the group.
    seen: Counter[str] = Counter()
    rank = []
    for index in order:
        rank.append(seen[groups[index]])
        seen[groups[index]] += 1
    return np.sort(order[np.argsort(rank, kind="stable")][:most])
