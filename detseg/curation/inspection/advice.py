"""Suggestions on the appearance of images, on rare classes and kinds, and on the split."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detseg.curation.inspection.gather import NO_GROUP, Measurements
from detseg.curation.inspection.measure import IntensityStatistics
from detseg.curation.leaks import join_groups
from detseg.data.folds import FOLD

# Round numbers for limits.
_STEPS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


@dataclass(frozen=True)
class Suggestion:
    """topic: scale, crop, anchors, limits, balance, intensities, split or augmentation. advice: one sentence.

    reason: with its numbers. keys: configuration keys. command: to be run. preset: file of configs/_base_ to build on.
    """

    topic: str
    advice: str
    reason: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    preset: str = ""


def round_up(value: float, least: int = 1) -> int:
    """Return a round number not below `value` and `least`: 1, 1.5, 2, 3, 4, 5, 6 or 8 times a power of ten."""
    value = max(value, least, 1)
    power = 10 ** math.floor(math.log10(value) + 1e-12)
    return next(round(step * power) for step in _STEPS if step * power >= value - 1e-9)


def percent(share: float) -> str:
    """Format a fraction: 7 %, 0.4 %."""
    value = 100 * share
    if 0 < value < 0.05:
        return "under 0.1 %"
    return f"{value:.1f} %" if 0 < value < 9.95 or 99.5 <= value < 100 else f"{value:.0f} %"


# Intensities, colours and suitable augmentation.

# Smallest contrast of objects whose sign is meaningful.
VISIBLE = 0.1
# Smallest fraction of a data set that counts as a kind of image of its own.
A_PART = 0.03
# Median below this fraction of the range: dark background.
DARK = 0.35
APPEARANCES = {
    "fluorescence": "grayscale, bright objects on dark background",
    "phase_contrast": "grayscale, on bright or medium background",
    "histology": "colour, red and blue above green, as in stained tissue",
    "thin_sections": "coloured otherwise",
}


def appearance_of(image: IntensityStatistics) -> str:
    """Return the augmentation preset for an image, a key of `APPEARANCES`."""
    if image.is_coloured:
        return "histology" if image.purple > 0 else "thin_sections"
    return "fluorescence" if image.position < DARK and not image.contrast < 0 else "phase_contrast"


def advise_intensities(data: Measurements) -> list[Suggestion]:
    """Suggest scaling, channels, inversion and augmentation from the images that were read."""
    images = list(data.intensities.values())
    if not images:
        return []
    return [*_advise_channels(images), _advise_scaling(images), *_advise_inversion(images), _advise_preset(images)]


def _advise_channels(images: list[IntensityStatistics]) -> list[Suggestion]:
    counts = Counter(image.channels for image in images)
    fewest = min(counts)
    if max(counts) not in (1, 3):
        keys = {
            "INPUT.CHANNELS": list(range(fewest)),
            "MODEL.PIXEL_MEAN": [128.0] * fewest,
            "MODEL.PIXEL_STD": [64.0] * fewest,
        }
        text = ", ".join(f"{number} with {count}" for count, number in sorted(counts.items()))
        reason = f"Images by their number of channels: {text}. Remove channels that show nothing of the objects."
        return [Suggestion("intensities", f"The network gets {fewest} channels.", reason, keys)]
    coloured = np.mean([image.is_coloured for image in images])
    if not A_PART < coloured < 1 - A_PART:
        return []
    reason = f"{percent(coloured)} of the images are in colour, the others grayscale: luma lets one network learn both."
    return [Suggestion("intensities", "Grayscale instead of colour.", reason, {"INPUT.GRAYSCALE": True})]


def _advise_scaling(images: list[IntensityStatistics]) -> Suggestion:
    deep = [image.dtype for image in images if image.dtype != "uint8"]
    keys = {"INPUT.SCALING": "percentile", "INPUT.SCALING_PERCENTILES": [0.5, 99.5]}
    advice = "Intensities scaled by each image's own percentiles."
    if deep:
        kinds = ", ".join(sorted(set(deep)))
        reason = f"{len(deep)} of {len(images)} images are {kinds}: the network needs values from 0 to 255."
        return Suggestion("intensities", advice, reason, keys)
    lesser, median, greater = np.quantile([image.high - image.low for image in images], (0.1, 0.5, 0.9))
    reason = (
        f"Between their percentiles 0.5 and 99.5 the images span {median:.0f} of 256 gray values in the median, a "
        f"tenth of them less than {lesser:.0f} and a tenth more than {greater:.0f}"
    )
    if median < 128 or greater > 2 * max(lesser, 1):
        return Suggestion("intensities", advice, reason + ".", keys)
    reason += ": they all use a similar range."
    return Suggestion("intensities", "Intensities unchanged.", reason, {"INPUT.SCALING": "none"})


def _advise_inversion(images: list[IntensityStatistics]) -> list[Suggestion]:
    # On a medium background, as in phase contrast, objects have dark and bright parts.
    seen = [one for one in images if abs(one.contrast) > VISIBLE and not DARK <= one.position <= 1 - DARK]
    dark = sum(image.contrast < 0 for image in seen)
    if len(seen) < len(images) / 2 or not A_PART < dark / len(seen) < 1 - A_PART:
        return []
    right = float(np.mean([image.is_bright == (image.contrast < 0) for image in seen]))
    reason = (
        f"In {dark} of {len(seen)} images with a dark or bright background the objects are darker than it, in the "
        f"others brighter. The rule (median above the middle of the range) is right for {percent(right)}."
    )
    if right < 0.9:
        advice = "No automatic inversion; INPUT.RANDOM_INVERT shows the network both."
        return [Suggestion("intensities", advice, reason, {"INPUT.INVERT": "none", "INPUT.RANDOM_INVERT": 0.5})]
    return [Suggestion("intensities", "Images with a bright background inverted.", reason, {"INPUT.INVERT": "auto"})]


def _advise_preset(images: list[IntensityStatistics]) -> Suggestion:
    counts = Counter(map(appearance_of, images))
    name, number = counts.most_common(1)[0]
    text = "; ".join(f"{count} {APPEARANCES[one]}" for one, count in counts.most_common())
    reason = f"Images by appearance: {text}."
    if number < 0.8 * len(images):
        reason += " They are mixed: remove from the preset what would harm the others."
    advice = f"The preset for {name.replace('_', ' ')}."
    return Suggestion("augmentation", advice, reason, preset=f"augment_{name}.yaml")


# Balance of classes and kinds, and splits without leaks.

# Ratio of the most frequent to the rarest above which balancing is suggested.
UNEVEN = 3.0
# Fields whose values are places that images come from.
PLACE_FIELDS = (
    *("plate", "well", "source", "sample_id", "sample", "slide"),
    *("patient", "donor", "experiment", "site", "sequence"),
)
PLATE = "plate[0-9]+"
USUAL_FOLDS = 5


def class_weights(counts: np.ndarray) -> np.ndarray:
    """Return inverse-frequency weights with a mean of 1 over the classes that occur; 0 for others."""
    weights = np.where(counts > 0, 1 / np.maximum(counts, 1), 0.0)
    return weights / weights[counts > 0].mean() if (counts > 0).any() else weights


def advise_balance(data: Measurements) -> list[Suggestion]:
    """Suggest sampling rare kinds or classes more often."""
    groups = Counter(group for group in data.groups if group != NO_GROUP)
    if len(groups) > 1 and max(groups.values()) >= UNEVEN * min(groups.values()):
        text = ", ".join(f"{name} {count}" for name, count in groups.most_common(8))
        keys = {"DATALOADER.BALANCE_BY": data.group_field, "DATALOADER.BALANCE_POWER": 0.5}
        advice = f"Images partly balanced (exponent 0.5) by the field {data.group_field}."
        return [Suggestion("balance", advice, f"Images per value: {text}.", keys)]
    per_image = data.dataset.objects_per_image()
    counts, names = per_image.sum(axis=0), data.dataset.class_names
    if len(names) == 1 or not counts.min() or counts.max() < UNEVEN * counts.min():
        return []
    text = ", ".join(
        f"{name} {count:,} (weight by inverse frequency {weight:.2f})"
        for name, count, weight in zip(names, counts.tolist(), class_weights(counts), strict=True)
    )
    reason = f"Objects per class: {text}."
    in_images = (per_image > 0).sum(axis=0)
    if in_images.min() > 0.5 * in_images.max():
        return [Suggestion("balance", "No balancing of images: all classes are in equally many.", reason)]
    keys = {"DATALOADER.BALANCE_BY": "category", "DATALOADER.BALANCE_POWER": 0.5}
    return [Suggestion("balance", "Images with rare classes sampled more often.", reason, keys)]


def advise_split(data: Measurements, source: str) -> Suggestion:
    """Suggest folds: what to stratify by and what to keep together. source: the data set, for the command."""
    count = len(data.dataset)
    kinds = set(data.groups) - {NO_GROUP}
    reasons, options, together = [f"There are {count} images."], [], count
    if len(kinds) > 1:
        options += ["--stratify-by", data.group_field]
    places = find_places(data)
    if places:
        together = len(set(places.values))
        options += ["--group-by", places.field, *(["--group-pattern", places.pattern] if places.pattern else [])]
        reasons.append(
            f"They come from {together} places ({places.field}), which are kept together: neighbours share "
            "illumination and stain."
        )
    if data.similar:
        joined = join_groups(np.arange(count), data.similar)
        alike = int((np.bincount(joined)[joined] > 1).sum())
        together = min(together, len(set(joined.tolist())))
        reasons.append(f"{alike} images are near-duplicates of another one; split keeps these together too.")
    if len(kinds) > 1:
        reasons.append(f"{data.group_field} has {len(kinds)} values, distributed over all folds.")
    if len(kinds) > 2:
        reasons.append(
            f"Only folds by {data.group_field} (--group-by {data.group_field}) show how a model performs on a kind "
            "that it has not seen."
        )
    if count < 20:
        reasons.append("With so few images the score of a single split is mostly chance: use the mean over all folds.")
    folds = max(min(USUAL_FOLDS, together, count // 2), 2)
    command = shlex.join(["detseg", "split", source, "--folds", str(folds), *options, "--output", "folds"])
    return Suggestion("split", f"{folds} folds.", " ".join(reasons), command=command)


@dataclass(frozen=True)
class Places:
    """Where images come from: their `field`, or what `pattern` extracts from it. values: of every image."""

    field: str
    pattern: str
    values: list[str]


def find_places(data: Measurements) -> Places | None:
    """Find the field that says where the images come from, by its name and values; None if there is none.

    If no field has such a name, one is taken in which all values contain a plate, like Sartorius's sample_id.
    """
    images = data.dataset.images
    fields = sorted({key for record in images for key in record.metadata} - {data.group_field, FOLD})
    texts = {name: [record.metadata.get(name) for record in images] for name in fields}
    for usual in PLACE_FIELDS:
        for name in fields:
            named = name.lower() == usual and all(isinstance(value, (str, int)) for value in texts[name])
            if named and _are_places(texts[name]):
                return Places(name, "", [str(value) for value in texts[name]])
    for name in fields:
        found = [match[0] for value in texts[name] if (match := re.search(PLATE, str(value)))]
        if len(found) == len(images) and _are_places(found):
            return Places(name, PLATE, found)
    return None


def _are_places(values: Sequence[object]) -> bool:
    """Whether values, one per image, can be places that several images share."""
    return 2 <= len(set(values)) <= 0.7 * len(values)
