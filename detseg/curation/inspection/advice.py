"""One piece of advice: settings or a command, the reason, and the numbers that it rests on."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detseg.curation.inspection.gather import NO_GROUP, Gathered
from detseg.curation.inspection.measure import Intensities
from detseg.curation.leaks import join_groups
from detseg.data.folds import FOLD

# Round numbers for limits.
_STEPS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


@dataclass(frozen=True)
class Suggestion:
    """topic: scale, crop, anchors, limits, balance, intensities, split or augmentation. what: the advice in a sentence.

    reason: why, with its numbers. keys: configuration keys. command: what to run. base: file of configs/_base_ to build
    on.
    """

    topic: str
    what: str
    reason: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    base: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "topic": self.topic,
            "what": self.what,
            "reason": self.reason,
            "keys": dict(self.keys),
            "command": self.command,
            "base": self.base,
        }


def round_up(value: float, least: int = 1) -> int:
    """Return a round number that is not below `value` and `least`: 1, 1.5, 2, 3, 4, 5, 6 or 8 times a power of ten."""
    value = max(value, least, 1)
    power = 10 ** math.floor(math.log10(value) + 1e-12)
    return next(round(step * power) for step in _STEPS if step * power >= value - 1e-9)


def percent(share: float) -> str:
    """Return a share as a short text: 7 %, 0.4 %."""
    value = 100 * share
    if 0 < value < 0.05:
        return "under 0.1 %"
    if 99.5 <= value < 100:
        return f"{value:.1f} %"
    return f"{value:.1f} %" if 0 < value < 9.95 else f"{value:.0f} %"


# What to do about intensities and colours, and which random changes suit.

# Contrast of objects from which on its sign means something.
VISIBLE = 0.1
# A kind of picture is a part of a data set from this share on.
A_PART = 0.03
# Median below this part of the range: dark ground.
DARK = 0.35
KINDS = {
    "fluorescence": "gray, bright objects on dark ground",
    "phase_contrast": "gray, on bright or middle ground",
    "histology": "coloured, red and blue above green, as stained tissue",
    "thin_sections": "coloured otherwise",
}


def kind_of(picture: Intensities) -> str:
    """Return which preset of augmentation, a key of `KINDS`, a picture asks for."""
    if picture.is_coloured:
        return "histology" if picture.purple > 0 else "thin_sections"
    return "fluorescence" if picture.position < DARK and not picture.contrast < 0 else "phase_contrast"


def advise_pictures(gathered: Gathered) -> list[Suggestion]:
    """Suggest scaling, channels, inversion and random changes, by the pictures that were read."""
    pictures = list(gathered.intensities.values())
    if not pictures:
        return []
    return [
        *_advise_channels(pictures),
        _advise_scaling(pictures),
        *_advise_inversion(pictures),
        _advise_preset(pictures),
    ]


def _advise_channels(pictures: list[Intensities]) -> list[Suggestion]:
    counts = Counter(picture.channels for picture in pictures)
    coloured = np.mean([picture.is_coloured for picture in pictures])
    most = max(counts)
    if most not in (1, 3):
        keys = {
            "INPUT.CHANNELS": list(range(min(counts))),
            "MODEL.PIXEL_MEAN": [128.0] * min(counts),
            "MODEL.PIXEL_STD": [64.0] * min(counts),
        }
        text = ", ".join(f"{number} with {count}" for count, number in sorted(counts.items()))
        reason = f"Images by their number of channels: {text}. Take out those that show nothing of the objects."
        return [Suggestion("intensities", f"The network takes {min(counts)} channels.", reason, keys)]
    if A_PART < coloured < 1 - A_PART:
        reason = (
            f"{percent(coloured)} of the images are coloured, the others gray: one network learns from both by luma."
        )
        return [Suggestion("intensities", "Gray values instead of colours.", reason, {"INPUT.GRAYSCALE": True})]
    return []


def _advise_scaling(pictures: list[Intensities]) -> Suggestion:
    deep = [picture.dtype for picture in pictures if picture.dtype != "uint8"]
    spans = np.array([picture.high - picture.low for picture in pictures])
    keys = {"INPUT.SCALING": "percentile", "INPUT.SCALING_PERCENTILES": [0.5, 99.5]}
    what = "Intensities stretched by each image's own percentiles."
    if deep:
        kinds = ", ".join(sorted(set(deep)))
        reason = f"{len(deep)} of {len(pictures)} pictures are {kinds}: the network wants values of 0 to 255."
        return Suggestion("intensities", what, reason, keys)
    lesser, greater = np.quantile(spans, 0.1), np.quantile(spans, 0.9)
    reason = (
        f"Between their percentiles 0.5 and 99.5 the pictures span {np.median(spans):.0f} of 256 gray values in the "
        f"median, a tenth of them under {lesser:.0f} and a tenth over {greater:.0f}"
    )
    if np.median(spans) < 128 or greater > 2 * max(lesser, 1):
        return Suggestion("intensities", what, reason + ".", keys)
    return Suggestion(
        "intensities", "Intensities as they are.", reason + ": they use their range alike.", {"INPUT.SCALING": "none"}
    )


def _advise_inversion(pictures: list[Intensities]) -> list[Suggestion]:
    # On middle ground, as in phase contrast, objects are dark and bright at once.
    seen = [p for p in pictures if abs(p.contrast) > VISIBLE and not DARK <= p.position <= 1 - DARK]
    if len(seen) < len(pictures) / 2:
        return []
    dark = [picture for picture in seen if picture.contrast < 0]
    share = len(dark) / len(seen) if seen else 0.0
    if not A_PART < share < 1 - A_PART:
        return []
    right = float(np.mean([picture.is_bright == (picture.contrast < 0) for picture in seen]))
    reason = (
        f"In {len(dark)} of {len(seen)} pictures with dark or bright ground the objects are darker than it, in the "
        f"others brighter. The rule (median above the middle of the range) is right for {percent(right)}."
    )
    if right < 0.9:
        what = "No inversion by rule; INPUT.RANDOM_INVERT shows the network both."
        return [Suggestion("intensities", what, reason, {"INPUT.INVERT": "none", "INPUT.RANDOM_INVERT": 0.5})]
    return [Suggestion("intensities", "Pictures with bright ground inverted.", reason, {"INPUT.INVERT": "auto"})]


def _advise_preset(pictures: list[Intensities]) -> Suggestion:
    counts = Counter(kind_of(picture) for picture in pictures)
    kind, number = counts.most_common(1)[0]
    text = "; ".join(f"{count} {KINDS[name]}" for name, count in counts.most_common())
    mixed = number < 0.8 * len(pictures)
    reason = f"Pictures by their looks: {text}." + (
        " They are mixed: take out of the preset what would spoil the others." if mixed else ""
    )
    return Suggestion("augmentation", f"The preset for {kind.replace('_', ' ')}.", reason, base=f"augment_{kind}.yaml")


# Balance of classes and kinds, and how to split without leaks.

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
    columns = sorted({key for record in images for key in record.metadata} - {gathered.group_field, FOLD})
    texts = {column: [record.metadata.get(column) for record in images] for column in columns}
    for name in SOURCES:
        for column in [column for column in columns if column.lower() == name]:
            if all(isinstance(value, (str, int)) for value in texts[column]) and _are_places(texts[column]):
                return Source(column, "", [str(value) for value in texts[column]])
    for column in columns:
        found = [re.search(PLATE, str(value)) for value in texts[column]]
        places = [match[0] for match in found if match]
        if len(places) == len(images) and _are_places(places):
            return Source(column, PLATE, places)
    return None


def _are_places(values: Sequence[object]) -> bool:
    """Whether values (of every image) may be places that several images share."""
    return 2 <= len(set(values)) <= 0.7 * len(values)
