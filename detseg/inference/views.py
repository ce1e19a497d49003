"""Views of an image for test-time augmentation: rotated and mirrored, resized, or with changed intensities.

A view is written as words joined by +, in any order, each kind once:

    none h v hv transpose rot90 rot270 antitranspose     a symmetry of the square (structures/symmetries.py)
    scale=1.25                                           factor on the size at the network
    short=800                                            replaces INPUT.MIN_SIZE_TEST (pixels)
    brightness=0.1  contrast=1.2                         as drawn by INPUT.RANDOM_BRIGHTNESS and RANDOM_CONTRAST
    clahe, clahe=3                                       contrast-limited adaptive histogram equalisation, its limit

for example h+scale=1.25+clahe. Two words stand for several views: flips (none, h, v, hv) and eight (all symmetries);
flips+clahe are four.

The order is: intensities, size, symmetry. An image is rotated and mirrored at its size at the network, so that whole
pixels move and the inverse is exact for any size. The network's own padding is added after that, at the right and
bottom: relative to the image, the grid of strides has a different position in every view. In training the network saw
objects at all positions of its grid, so no view is preferred, and the differences average out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detseg.data.augment.intensities import ValueRange, change_intensities, equalise
from detseg.errors import ConfigError
from detseg.structures.symmetries import SYMMETRIES, Symmetry

Size = tuple[int, int]


SETS = {"flips": ("none", "h", "v", "hv"), "eight": tuple(SYMMETRIES)}
CLAHE_LIMIT = 2.0
# Word -> smallest and largest valid number.
NUMBERS = {
    "scale": (0.1, 10.0),
    "short": (1, 100_000),
    "brightness": (-1.0, 1.0),
    "contrast": (0.0, 10.0),
    "clahe": (0.1, 100.0),
}


@dataclass(frozen=True)
class IntensityChange:
    """brightness: added, as a fraction of the range. contrast: factor about the mean. clahe: its limit, 0 for none."""

    brightness: float = 0.0
    contrast: float = 1.0
    clahe: float = 0.0

    def __call__(self, image: np.ndarray, value_range: ValueRange) -> np.ndarray:
        """Return an image (H, W, C) uint8, uint16 or float32 with changed intensities, of the same dtype and range."""
        if self.brightness or self.contrast != 1:
            image = change_intensities(
                image, contrast=self.contrast, brightness=self.brightness, value_range=value_range
            )
        return equalise(image, self.clahe, value_range) if self.clahe else image


@dataclass(frozen=True)
class View:
    """One view of an image; see the module.

    longest: upper limit of the longer edge if `short` is set. resized_twice: the image is first resized to its size
    without augmentation, and then to `short`.
    """

    symmetry: Symmetry = SYMMETRIES["none"]
    scale: float = 1.0
    short: int = 0
    longest: int = 100_000
    resized_twice: bool = False
    intensity_change: IntensityChange = IntensityChange()
    name: str = "none"


PLAIN = View()


def parse_views(words: Sequence[str]) -> list[View]:
    """Parse views, with sets expanded and duplicates removed.

    Raises:
        ConfigError: names the unknown word and the valid ones.
    """
    views = list(dict.fromkeys(view for text in words for view in _parse(text)))
    if not views:
        raise ConfigError(f"expected at least one view; {_known()}")
    return views


def detectron2_views(min_sizes: Sequence[int], max_size: int, flip: bool) -> list[View]:
    """Return the views of Detectron2's TEST.AUG: every size, and with `flip` also its mirror image.

    Detectron2 makes them from the image of its loader, which is already resized.
    """
    return [
        View(
            SYMMETRIES[symmetry],
            short=int(short),
            longest=max_size,
            resized_twice=True,
            name=f"{symmetry}+short={short}",
        )
        for short in min_sizes
        for symmetry in (("none", "h") if flip else ("none",))
    ]


def _parse(text: str) -> list[View]:
    """Return the views that one argument stands for."""
    numbers: dict[str, float] = {}
    symmetries: tuple[str, ...] = ()
    for word in text.split("+"):
        key, _, value = word.strip().partition("=")
        is_symmetry = key in SETS or key in SYMMETRIES
        if key in numbers or (symmetries and is_symmetry):
            raise ConfigError(f"the view {text!r} names two symmetries, or {key!r} twice")
        if is_symmetry:
            if value:
                raise ConfigError(f"the view {text!r}: {key} takes no number")
            symmetries = SETS.get(key, (key,))
        elif key in NUMBERS:
            numbers[key] = CLAHE_LIMIT if key == "clahe" and not value else _number(text, key, value)
        else:
            raise ConfigError(f"the view {text!r}: there is no {word.strip()!r}; {_known()}")
    suffix = "".join(f"+{key}={number:g}" for key, number in sorted(numbers.items()))
    scale, short = numbers.pop("scale", 1.0), int(numbers.pop("short", 0))
    intensity_change = IntensityChange(**numbers)
    return [
        View(SYMMETRIES[name], scale=scale, short=short, intensity_change=intensity_change, name=name + suffix)
        for name in symmetries or ("none",)
    ]


def _number(text: str, key: str, value: str) -> float:
    low, high = NUMBERS[key]
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number <= high or (key == "short" and number != int(number)):
        kind = "a whole number" if key == "short" else "a number"
        raise ConfigError(f"the view {text!r}: expected {key}={kind} from {low:g} to {high:g}, got {value!r}")
    return number


def _known() -> str:
    numbers = ", ".join(f"{key}=" for key in NUMBERS)
    return f"there are {', '.join(itertools.chain(SETS, SYMMETRIES))}, {numbers} and what + joins of them"
