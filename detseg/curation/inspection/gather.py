"""Everything that is measured of data sets: masks of all images, intensities of all or of a sample of them."""

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

# Field of the images that says their kind, where none is named.
USUAL_GROUP = "group"
NO_GROUP = "(none)"


@dataclass(frozen=True)
class InspectionOptions:
    """group_by: field of the images that says their kind; empty: `group` where images have it.

    pictures: how many images are read, 0 for all; similar: correlation from which on two are nearly the same, 0 for
    not comparing them. rules: of repair, whose findings are reported.
    """

    group_by: str = ""
    pictures: int = 1000
    similar: float = SIMILAR
    rules: RepairRules = field(default_factory=RepairRules)


@dataclass
class Measurements:
    """What was measured of I images with N objects.

    dataset: all files joined; its `origins` say of which of `files` an image is. groups: kind of every image, all `""`
    where there is no field. objects: (N,) records, see `OBJECT`. crowd: (I,) regions to be ignored. changes: image
    index and what repair would do there. intensities: image index -> what was measured. fidelity: (I, W)
    `class_fidelity` of the images with objects among those, for every width of BOUNDARY_WIDTHS. chosen: images that
    were to be read. unreadable: image index -> what is wrong. missing: images whose file is not there. similar: images
    that are nearly the same, by their indices. skipped: what is wrong in the files themselves, and masks that are no
    objects. label_warnings: see `learnable.object_warnings` and `plausibility.check_labels`.
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
        """Height and width of every image as it is, (I, 2) float64."""
        return np.array([(record.height, record.width) for record in self.dataset.images], dtype=np.float64)

    @cached_property
    def pixel_sizes(self) -> np.ndarray:
        """Micrometres a pixel of every image, the geometric mean of y and x, NaN where it is not known: (I,)."""
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
        """The side of the square with the area of each box, by which a feature pyramid assigns levels: (N,)."""
        return np.sqrt((self.objects.box[:, 2:] - self.objects.box[:, :2]).prod(axis=1))

    @property
    def object_groups(self) -> np.ndarray:
        """The kind of every object's image, (N,)."""
        return np.array(self.groups)[self.objects.image]


def gather(datasets: Sequence[CocoDataset], skipped: Sequence[str], options: InspectionOptions) -> Measurements:
    """Measure data sets with the same classes. Bad images are listed in the result, not raised.

    Raises DataError where there is no image, the classes differ, or no image has the field `options.group_by`.
    """
    dataset = CocoDataset.concatenate(datasets)
    if not len(dataset):
        raise DataError(f"{dataset.name}: there is no image in it")
    group_field, groups = _groups(dataset, options.group_by)
    hint = one_class_hint(dataset.objects_per_image()) if len(dataset.categories) > 1 else None
    # Where nearly all images hold one class, an object of another one is a finding.
    rules = dataclasses.replace(options.rules, one_class_per_image=True) if hint else options.rules
    tables, changes = [np.zeros(0, dtype=OBJECT)], []
    for index in ProgressBar(range(len(dataset)), desc="measuring masks", unit="image"):
        try:
            objects, found = _measure_masks(dataset, index, rules)
        except DataError as error:  # masks that are no objects
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
    """Return the field that says the kind of the images, empty where there is none, and the kind of every image."""
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
    """Measure the objects of an image, and find what repair would do."""
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
    """Return intensities, fidelity, unreadable and similar of `Measurements`, of the images `chosen` (n,)."""
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
    """Choose at most `most` images (0: all) of those that are not missing, the groups as equally as can be.

    Returns their indices (n,) int64, ascending.
    """
    there = np.setdiff1d(np.arange(len(groups)), missing)
    if not most or len(there) <= most:
        return there
    order = np.random.default_rng(0).permutation(there)
    # Every group's first, then every group's second, ...: the rank within the group decides.
    seen: Counter[str] = Counter()
    rank = []
    for index in order:
        rank.append(seen[groups[index]])
        seen[groups[index]] += 1
    return np.sort(order[np.argsort(rank, kind="stable")][:most])
