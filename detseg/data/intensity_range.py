"""The range of intensities that a model was trained with, and detection of images far outside.

A model's output does not reveal that a 16-bit image was given to a model for 8 bits: it finds a few objects or none. So
percentiles of the training images are stored in the checkpoint, and images to predict are compared with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.data.preprocess import percentiles_of

# The second one is high, because cells may cover less than one percent of an image.
PERCENTILES = (1.0, 99.9)
# Maximum number of pixels, and of images of a data set: enough to detect a factor of several.
_PIXELS = 2**16
IMAGES = 32
# A several times longer exposure is still the same kind of image; and images without cells are much darker.
_BRIGHTER, _DARKER = 4.0, 20.0


@dataclass(frozen=True)
class IntensityRange:
    """The expected intensities of a model's input: after channels, grayscale, scaling and inversion.

    low: minimum over images of the 1st percentile, for each of C channels (or one for all). dark, bright: the 99.9th
    percentile of the darkest and of the brightest image. source: origin, for messages.
    """

    low: tuple[float, ...]
    dark: tuple[float, ...]
    bright: tuple[float, ...]
    source: str = "the images that the model was trained with"

    @classmethod
    def of_images(cls, levels: Sequence[np.ndarray], num_channels: int) -> IntensityRange:
        """Create from the `levels_of` at least one image; a single channel stands for `num_channels`."""
        stacked = np.stack([np.broadcast_to(one, (2, num_channels)) for one in levels])
        low, dark, bright = stacked[:, 0].min(axis=0), stacked[:, 1].min(axis=0), stacked[:, 1].max(axis=0)
        return cls(tuple(low.tolist()), tuple(dark.tolist()), tuple(bright.tolist()))

    @classmethod
    def of_normalization(cls, mean: Sequence[float], std: Sequence[float]) -> IntensityRange:
        """Create from MODEL.PIXEL_MEAN and PIXEL_STD: 99.9 % of standard normal values are below three.

        Dark images of the same kind are common, so there is no lower limit.
        """
        top = [abs(one) + 3 * spread for one, spread in zip(mean, std, strict=True)]
        source = f"MODEL.PIXEL_MEAN {_listed(mean)} and PIXEL_STD {_listed(std)}"
        return cls((0.0,) * len(top), tuple(one / 2.5 for one in top), tuple(top), source)

    @classmethod
    def from_plain(cls, stored: Any) -> IntensityRange | None:
        """Create from the result of `to_plain` in a checkpoint; None if it is anything else."""
        if not isinstance(stored, Mapping):
            return None
        lists = [stored.get(name) for name in ("low", "dark", "bright")]
        if not all(isinstance(one, (list, tuple)) and one and len(one) == len(lists[0]) for one in lists):
            return None
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for one in lists for value in one):
            return None
        return cls(*(tuple(map(float, one)) for one in lists))

    def to_plain(self) -> dict[str, list[float]]:
        """Return lists of numbers, for a checkpoint."""
        return {"low": list(self.low), "dark": list(self.dark), "bright": list(self.bright)}

    def misfit(self, levels: np.ndarray) -> str | None:
        """Return how the intensities of an image, from `levels_of`, are far outside; None if they are not."""
        low, dark, bright = np.array(self.low), np.array(self.dark), np.array(self.bright)
        if len({levels.shape[1], len(bright), 1}) > 2:
            return None  # other channels, which preprocessing refuses
        high = levels[1]
        # below 0 a factor has no meaning
        brighter, darker = (bright > 0) & (high > bright * _BRIGHTER), (dark > 0) & (high < dark / _DARKER)
        if not (brighter | darker).any():
            return None
        where = "above" if brighter.any() else "below"
        return (
            f"{_shown(levels[0].min())} to {_shown(high.max())}, far {where} those of {self.source} "
            f"({_shown(low.min())} to {_shown(bright.max())})"
        )


def levels_of(image: np.ndarray) -> np.ndarray:
    """Return the PERCENTILES (2, C) of each channel of an image (H, W, C), over every k-th pixel of every k-th row."""
    step = max(math.isqrt(image.shape[0] * image.shape[1] // _PIXELS), 1)
    few = image[::step, ::step]
    return np.array([percentiles_of(few[:, :, channel], PERCENTILES) for channel in range(image.shape[2])]).T


def _shown(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _listed(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"
