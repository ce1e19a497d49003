"""Which intensities a model knows, and images whose intensities lie far outside.

Nothing in a model's answer tells that an image of 16 bits was given to a model of 8: it finds a few objects or none. So
the percentiles of training images go into the checkpoint, and images to predict are compared with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.data.preprocess import percentiles_of

# The second one is high, because cells may cover less than a hundredth of an image.
PERCENTILES = (1.0, 99.9)
# Pixels that are looked at, and images of a data set: enough to tell a factor of several.
_PIXELS = 2**16
IMAGES = 32
# An exposure several times as long is no other kind of image; and an image without cells is much darker than one with.
_BRIGHTER, _DARKER = 4.0, 20.0


@dataclass(frozen=True)
class IntensityRange:
    """What a model expects of intensities, as it gets them: after channels, grayscale, scaling and inversion.

    low: the least 1st percentile of an image, of each of C channels (or one for all). dark, bright: the 99.9th
    percentile of the darkest and of the brightest image. source: where this is from, for messages.
    """

    low: tuple[float, ...]
    dark: tuple[float, ...]
    bright: tuple[float, ...]
    source: str = "the images that the model was trained with"

    @classmethod
    def of_images(cls, levels: Sequence[np.ndarray], num_channels: int) -> IntensityRange:
        """Of at least one image, each as `levels_of` gives it; one channel stands for `num_channels`."""
        stacked = np.stack([np.broadcast_to(one, (2, num_channels)) for one in levels])
        low, dark, bright = stacked[:, 0].min(axis=0), stacked[:, 1].min(axis=0), stacked[:, 1].max(axis=0)
        return cls(tuple(low.tolist()), tuple(dark.tolist()), tuple(bright.tolist()))

    @classmethod
    def of_normalization(cls, mean: Sequence[float], std: Sequence[float]) -> IntensityRange:
        """What suits MODEL.PIXEL_MEAN and PIXEL_STD: of standard normal values 99.9 % are below three.

        Dark images of the same kind are common, so these pass.
        """
        top = [abs(one) + 3 * spread for one, spread in zip(mean, std, strict=True)]
        source = f"MODEL.PIXEL_MEAN {_listed(mean)} and PIXEL_STD {_listed(std)}"
        return cls((0.0,) * len(top), tuple(one / 2.5 for one in top), tuple(top), source)

    @classmethod
    def from_plain(cls, stored: Any) -> IntensityRange | None:
        """What `to_plain` made, as a checkpoint holds it; None where it is anything else."""
        if not isinstance(stored, Mapping):
            return None
        lists = [stored.get(name) for name in ("low", "dark", "bright")]
        if not all(isinstance(one, (list, tuple)) and one and len(one) == len(lists[0]) for one in lists):
            return None
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for one in lists for value in one):
            return None
        return cls(*(tuple(map(float, one)) for one in lists))

    def to_plain(self) -> dict[str, list[float]]:
        """Lists of numbers, for a checkpoint."""
        return {"low": list(self.low), "dark": list(self.dark), "bright": list(self.bright)}

    def misfit(self, levels: np.ndarray) -> str | None:
        """How the intensities of an image, as `levels_of` gives them, lie far outside; None where they do not."""
        low, dark, bright = np.array(self.low), np.array(self.dark), np.array(self.bright)
        if len({levels.shape[1], len(bright), 1}) > 2:
            return None  # other channels altogether, which preprocessing refuses
        high = levels[1]
        # below 0 no factor tells anything
        brighter, darker = (bright > 0) & (high > bright * _BRIGHTER), (dark > 0) & (high < dark / _DARKER)
        if not (brighter | darker).any():
            return None
        where = "above" if brighter.any() else "below"
        return (
            f"{_shown(levels[0].min())} to {_shown(high.max())}, far {where} those of {self.source} "
            f"({_shown(low.min())} to {_shown(bright.max())})"
        )


def levels_of(image: np.ndarray) -> np.ndarray:
    """The PERCENTILES (2, C) of each channel of an image (H, W, C), of every k-th pixel of every k-th row."""
    step = max(math.isqrt(image.shape[0] * image.shape[1] // _PIXELS), 1)
    few = image[::step, ::step]
    return np.array([percentiles_of(few[:, :, channel], PERCENTILES) for channel in range(image.shape[2])]).T


def _shown(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _listed(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"
