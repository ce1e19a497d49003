"""Everything that is measured of data sets: masks of all images, pictures of all or of a sample of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from detseg.coco.dataset import CocoDataset
from detseg.curation.inspection.measure import Intensities, ObjectTable, measure_image, measure_objects
from detseg.curation.leaks import SIMILAR, SimilarPair, find_similar, thumbnail
from detseg.curation.repair.image import ImageMasks, repair_image
from detseg.curation.repair.masks import allowed_classes, one_class_hint
from detseg.curation.repair.rules import Change, RepairRules
from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers

# Field of the images that says their kind, where none is named.
USUAL_GROUP = "group"
NO_GROUP = "(none)"


@dataclass(frozen=True)
class GatherOptions:
    """group_by: field of the images that says their kind; empty: `group` where images have it.

    pictures: how many pictures are read, 0 for all; similar: correlation from which on two are nearly the same, 0 for
    not comparing them. rules: of repair, whose findings are told. seed: of the sample of pictures.
    """

    group_by: str = ""
    pictures: int = 1000
    similar: float = SIMILAR
    rules: RepairRules = field(default_factory=RepairRules)
    seed: int = 0


@dataclass
class Gathered:
    """What was measured.

    dataset: all files joined; its `origins` say of which of `names` an image is. groups: kind of every image, all
    `""` where there is no field. objects: of all images. crowd: regions to be ignored in every image. changes: image
    index and what repair would do there. intensities: image index -> what was measured. unreadable: image index ->
    what is wrong. missing: images whose file is not there. pairs: images that are nearly the same, by their indices.
    skipped: what is wrong in the files themselves.
    """

    names: list[str]
    dataset: CocoDataset
    group_field: str
    groups: list[str]
    objects: ObjectTable
    crowd: np.ndarray
    changes: list[tuple[int, Change]]
    intensities: dict[int, Intensities]
    chosen: np.ndarray
    unreadable: dict[int, str]
    missing: list[int]
    pairs: list[SimilarPair]
    skipped: list[str]
    one_class_hint: str | None
    rules: RepairRules


def gather(datasets: Sequence[CocoDataset], skipped: Sequence[str], options: GatherOptions) -> Gathered:
    """Measure data sets with the same classes. Bad pictures are told of in the result, not raised.

    Raises DataError where there is no image, the classes differ, or no image has the field `options.group_by`.
    """
    dataset = CocoDataset.concatenate(datasets)
    if not len(dataset):
        raise DataError(f"{dataset.name}: there is no image in it")
    field_name, groups = _groups(dataset, options.group_by)
    hint = one_class_hint(dataset.objects_per_image()) if len(dataset.categories) > 1 else None
    # Where nearly all images hold one class, an object of another one is a finding.
    rules = dataclasses.replace(options.rules, one_class_per_image=True) if hint else options.rules
    tables, changes, crowd = [], [], np.zeros(len(dataset), dtype=np.int64)
    for index in tqdm(range(len(dataset)), desc="measuring masks", unit="image"):
        table, found, crowd[index] = _measure_masks(dataset, index, rules)
        tables.append(table)
        changes += [(index, change) for change in found]
    missing = [index for index, record in enumerate(dataset.images) if not record.path.is_file()]
    chosen = choose_pictures(groups, missing, options.pictures, options.seed)
    intensities, unreadable, prints = _measure_pictures(dataset, chosen, compare=options.similar > 0)
    return Gathered(
        names=[one.name for one in datasets],
        dataset=dataset,
        group_field=field_name,
        groups=groups,
        objects=ObjectTable.concatenate(tables),
        crowd=crowd,
        changes=changes,
        intensities=intensities,
        chosen=chosen,
        unreadable=unreadable,
        missing=missing,
        pairs=_similar(prints, options.similar),
        skipped=list(skipped),
        one_class_hint=hint,
        rules=rules,
    )


def _groups(dataset: CocoDataset, field_name: str) -> tuple[str, list[str]]:
    values = [record.metadata.get(field_name or USUAL_GROUP) for record in dataset.images]
    if all(value in (None, "") for value in values):
        if not field_name:
            return "", [""] * len(values)
        fields = sorted({key for record in dataset.images for key in record.metadata})
        raise DataError(
            f"{dataset.name}: no image has the field {field_name!r} (--group-by); their fields are "
            f"{', '.join(fields) or 'none'}"
        )
    return field_name or USUAL_GROUP, [NO_GROUP if value in (None, "") else str(value) for value in values]


def _measure_masks(dataset: CocoDataset, index: int, rules: RepairRules) -> tuple[ObjectTable, list[Change], int]:
    """Measure the objects of an image; return also what repair would do, and how many crowd regions there are."""
    record = dataset.images[index]
    rles, empty = dataset.table.rles(index, record.height, record.width)
    rows = dataset.table.rows(index)
    kept = np.flatnonzero(~empty & ~dataset.table.crowd[rows])
    classes = dataset.table.classes[rows][kept].astype(np.int64)
    own = [rles[number] for number in kept]
    table = measure_objects(own, classes, kept, index, record.height, record.width)
    kind = record.metadata.get(rules.kind_field) if rules.kind_field else None
    masks = ImageMasks(
        file_name=record.file_name,
        rles=own,
        classes=classes,
        names=kept.tolist(),
        class_names=dataset.class_names,
        allowed=allowed_classes(kind, dataset.class_names, rules) if kind is not None else None,
    )
    return table, repair_image(masks, rules).changes, int(dataset.table.crowd[rows].sum())


def choose_pictures(groups: Sequence[str], missing: Sequence[int], most: int, seed: int) -> np.ndarray:
    """Choose at most `most` images (0: all) of those that are not missing, the groups as equally as can be.

    Returns their indices (n,) int64, ascending.
    """
    there = np.setdiff1d(np.arange(len(groups)), missing)
    if not most or len(there) <= most:
        return there
    rng = np.random.default_rng(seed)
    names = np.array(groups)[there]
    order = rng.permutation(len(there))
    # Every group's first, then every group's second, ...: the rank within the group decides.
    rank = np.zeros(len(there), dtype=np.int64)
    for name in np.unique(names):
        own = order[names[order] == name]
        rank[own] = np.arange(len(own))
    return np.sort(there[order[np.argsort(rank[order], kind="stable")][:most]])


def _measure_pictures(
    dataset: CocoDataset, chosen: np.ndarray, compare: bool
) -> tuple[dict[int, Intensities], dict[int, str], dict[int, np.ndarray]]:
    intensities: dict[int, Intensities] = {}
    unreadable: dict[int, str] = {}
    prints: dict[int, np.ndarray] = {}
    for index in tqdm(chosen.tolist(), desc="measuring pictures", unit="image"):
        record = dataset.images[index]
        try:
            image = dataset.read_image(index)
        except DataError as error:
            unreadable[index] = str(error)
            continue
        rles, _, crowd = dataset.annotations(index)
        own = [rle for rle, is_crowd in zip(rles, crowd, strict=True) if not is_crowd]
        intensities[index] = measure_image(image, LabelLayers.from_rles(own, record.height, record.width))
        if compare:
            prints[index] = thumbnail(image)
    return intensities, unreadable, prints


def _similar(prints: dict[int, np.ndarray], threshold: float) -> list[SimilarPair]:
    if len(prints) < 2:
        return []
    indices = list(prints)
    found = find_similar(np.stack(list(prints.values())), threshold)
    return [SimilarPair(indices[p.first], indices[p.second], p.similarity, p.turned) for p in found]
