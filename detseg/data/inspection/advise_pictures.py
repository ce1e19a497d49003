"""What to do about intensities and colours, and which random changes suit."""

from __future__ import annotations

from collections import Counter

import numpy as np

from detseg.data.inspection.gather import Gathered
from detseg.data.inspection.intensities import Intensities
from detseg.data.inspection.suggestion import Suggestion, percent

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
