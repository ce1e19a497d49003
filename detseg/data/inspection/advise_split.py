"""Balance of classes and kinds, and how to split without leaks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detseg.data.fold_index import FOLD
from detseg.data.inspection.gather import NO_GROUP, Gathered
from detseg.data.inspection.suggestion import Suggestion
from detseg.data.leakage import join_groups

# How much more often the most frequent comes than the rarest, from which on it matters.
UNEVEN = 3.0
# Fields whose values are places that images come from.
SOURCES = (
    "plate",
    "well",
    "source",
    "sample_id",
    "sample",
    "slide",
    "patient",
    "donor",
    "experiment",
    "site",
    "sequence",
)
PLATE = "plate[0-9]+"
USUAL_FOLDS = 5


def class_weights(counts: np.ndarray) -> np.ndarray:
    """Return weights by inverse frequency with a mean of 1 over the classes that occur; 0 for others."""
    weights = np.where(counts > 0, 1 / np.maximum(counts, 1), 0.0)
    return weights / weights[counts > 0].mean() if (counts > 0).any() else weights


def advise_balance(gathered: Gathered) -> list[Suggestion]:
    """Suggest to show rare kinds or classes more often."""
    groups = Counter(group for group in gathered.groups if group != NO_GROUP)
    names = gathered.dataset.class_names
    classes = gathered.dataset.objects_per_image().sum(axis=0)
    if len(groups) > 1 and max(groups.values()) >= UNEVEN * min(groups.values()):
        text = ", ".join(f"{name} {count}" for name, count in groups.most_common(8))
        keys = {"DATALOADER.BALANCE_BY": gathered.group_field, "DATALOADER.BALANCE_POWER": 0.5}
        what = f"Images balanced half of the way by their field {gathered.group_field}."
        return [Suggestion("balance", what, f"Images of each: {text}.", keys)]
    if len(names) > 1 and classes.min() and classes.max() >= UNEVEN * classes.min():
        weights = class_weights(classes)
        text = ", ".join(
            f"{name} {count:,} (weight by inverse frequency {weight:.2f})"
            for name, count, weight in zip(names, classes.tolist(), weights, strict=True)
        )
        in_images = (gathered.dataset.objects_per_image() > 0).sum(axis=0)
        if in_images.min() > 0.5 * in_images.max():
            what = "No balancing of images: each class is in as many of them."
            return [Suggestion("balance", what, f"Objects of each: {text}.")]
        keys = {"DATALOADER.BALANCE_BY": "category", "DATALOADER.BALANCE_POWER": 0.5}
        return [Suggestion("balance", "Images with rare classes shown more often.", f"Objects of each: {text}.", keys)]
    return []


def advise_split(gathered: Gathered, source: str) -> Suggestion:
    """Suggest folds: what is spread over them and what stays together."""
    images = len(gathered.dataset)
    groups = sorted({group for group in gathered.groups if group != NO_GROUP})
    own = find_source(gathered)
    words = ["detseg split", source]
    reasons = [f"There are {images} images."]
    together = images
    if own:
        together = len(set(own.values))
        reasons.append(
            f"They come from {together} places ({own.field}), which stay together: neighbours share light and stain."
        )
    if gathered.pairs:
        joined = join_groups(np.arange(images), gathered.pairs)
        alike = int((np.bincount(joined)[joined] > 1).sum())
        together = min(together, len(set(joined.tolist())))
        reasons.append(f"{alike} images are nearly the same as another one; split keeps these together, too.")
    folds = max(min(USUAL_FOLDS, together, images // 2), 2)
    words += ["--folds", str(folds)]
    if len(groups) > 1:
        words += ["--stratify-by", gathered.group_field]
        reasons.append(f"{gathered.group_field} has {len(groups)} values, spread over all folds.")
        if len(groups) > 2:
            reasons.append(
                f"Only folds by {gathered.group_field} (--group-by {gathered.group_field}) tell how a model does on "
                "a kind that it has not seen."
            )
    if own:
        words += own.options
    if images < 20:
        reasons.append("With so few images a score of one split is luck: judge by the mean of all folds.")
    return Suggestion("split", f"{folds} folds.", " ".join(reasons), command=" ".join([*words, "--output folds"]))


@dataclass(frozen=True)
class Source:
    """Where images come from: a field of theirs, or what `pattern` finds in it. values: of every image."""

    field: str
    pattern: str
    values: list[str]

    @property
    def options(self) -> list[str]:
        """The options of `detseg split` that keep its images together."""
        return ["--group-by", self.field, *(["--group-pattern", f"'{self.pattern}'"] if self.pattern else [])]


def find_source(gathered: Gathered) -> Source | None:
    """Find the field of the images that says where they come from, by its name and values; None where there is none.

    Where no field is called so, one that names a plate in all its texts is taken, as Sartorius's sample_id does.
    """
    images = gathered.dataset.images
    fields = sorted({key for record in images for key in record.metadata} - {gathered.group_field, FOLD})
    texts = {field: [record.metadata.get(field) for record in images] for field in fields}
    for name in SOURCES:
        for field in [field for field in fields if field.lower() == name]:
            if all(isinstance(value, (str, int)) for value in texts[field]) and _are_places(texts[field]):
                return Source(field, "", [str(value) for value in texts[field]])
    for field in fields:
        found = [re.search(PLATE, str(value)) for value in texts[field]]
        places = [match[0] for match in found if match]
        if len(places) == len(images) and _are_places(places):
            return Source(field, PLATE, places)
    return None


def _are_places(values: Sequence[object]) -> bool:
    """Whether values (of every image) may be places that several images share."""
    return 2 <= len(set(values)) <= 0.7 * len(values)
