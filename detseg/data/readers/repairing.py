"""Repairing what a reader found, before it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from detseg.data.readers.source import LabelledImage
from detseg.data.repair.changes import Change
from detseg.data.repair.image import ImageMasks, repair_image
from detseg.data.repair.options import RepairRules
from detseg.data.repair.wrong_class import allowed_classes, check_kinds

CHANGES_NAME = "repairs.csv"


def repair_images(
    images: Mapping[str, LabelledImage], groups: Mapping[str, str], class_names: Sequence[str], rules: RepairRules
) -> tuple[dict[str, LabelledImage], list[Change]]:
    """Return the images with repaired masks, and what was changed; crowd regions stay as they are.

    groups: image name -> its group; `kind_field=group` means these. In the list of changes an annotation is called by
    its number in the image, from 1 on. Raises DataError where no image has the field that says its kind.
    """
    is_group = rules.kind_field == "group"
    kinds = {
        name: groups.get(name) if is_group else image.fields.get(rules.kind_field) for name, image in images.items()
    }
    check_kinds(kinds.values(), rules)
    repaired, changes = {}, []
    for name, image in tqdm(images.items(), desc="repairing", unit="image"):
        repaired[name], own = _repair(image, kinds[name], class_names, rules)
        changes += own
    return repaired, changes


def _repair(
    image: LabelledImage, kind: object, class_names: Sequence[str], rules: RepairRules
) -> tuple[LabelledImage, list[Change]]:
    crowd = np.array(image.crowd if len(image.crowd) else [False] * len(image.rles), dtype=bool)
    objects = np.flatnonzero(~crowd)
    classes = np.array(image.class_of_each, dtype=np.int64)
    result = repair_image(
        ImageMasks(
            file_name=image.file_name,
            rles=[image.rles[index] for index in objects],
            classes=classes[objects],
            names=(objects + 1).tolist(),
            class_names=class_names,
            allowed=None if kind is None else allowed_classes(kind, class_names, rules),
        ),
        rules,
    )
    # Crowd regions keep their place among the others.
    origins = np.concatenate([objects[result.origins], np.flatnonzero(crowd)]).astype(np.int64)
    order = np.argsort(origins, kind="stable")
    rles = [*result.rles, *(image.rles[index] for index in np.flatnonzero(crowd))]
    new_classes = np.concatenate([result.classes, classes[crowd]])
    flags = np.arange(len(rles)) >= len(result.rles)
    mended = dataclasses.replace(
        image,
        rles=[rles[index] for index in order],
        classes=new_classes[order].tolist(),
        crowd=flags[order].tolist() if len(image.crowd) else (),
    )
    return mended, result.changes
