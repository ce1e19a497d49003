"""Masks of a class that images of this kind do not have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from detseg.data.repair.options import RepairRules
from detseg.errors import DataError

# Part of an image's objects that the one class of an image must have, so that the others are called wrong.
MAJORITY = 0.8


def allowed_classes(kind: Any, class_names: Sequence[str], rules: RepairRules) -> set[int] | None:
    """Return the class indices that objects of an image of this kind (the value of its kind field) may have.

    None: the kind says nothing. Raises DataError where `kind_classes` names a class that there is not.
    """
    names = rules.classes_of_kind.get(str(kind))
    if names is None:
        return {class_names.index(kind)} if kind in class_names else None
    unknown = [name for name in names if name not in class_names]
    if unknown:
        raise DataError(
            f"repair rule kind_classes: {str(kind)!r} has the class {unknown[0]!r}; there are {', '.join(class_names)}"
        )
    return {class_names.index(name) for name in names}


def check_kinds(kinds: Iterable[Any], rules: RepairRules) -> None:
    """Raise DataError where `kind_field` names a field that no image has. kinds: its values, None for none."""
    if rules.kind_field and all(kind is None for kind in kinds):
        raise DataError(f"repair rule kind_field: no image has a field {rules.kind_field!r}")


def majority_class(classes: np.ndarray) -> set[int] | None:
    """Return the class of most of an image's objects (N,), or None where none has `MAJORITY` of them."""
    if not len(classes):
        return None
    counts = np.bincount(classes)
    best = int(counts.argmax())
    return {best} if counts[best] >= MAJORITY * len(classes) else None


def one_class_hint(objects: np.ndarray) -> str | None:
    """Say that images seem to hold one class each, but for a few, or None. objects: (images, classes) int64 counts."""
    filled = objects[objects.sum(axis=1) > 0]
    mixed = int((np.count_nonzero(filled, axis=1) > 1).sum())
    alone = np.bincount(filled[np.count_nonzero(filled, axis=1) == 1].argmax(axis=1), minlength=objects.shape[1])
    if not 0 < mixed <= 0.1 * len(filled) or np.count_nonzero(alone) < 2:
        return None
    return (
        f"{len(filled) - mixed} of {len(filled)} images hold objects of one class alone, {mixed} of several; where "
        "that cannot be right, the rule one_class_per_image=yes gives stray objects the class of the others"
    )
