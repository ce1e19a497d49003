"""Strong augmentation of intensities for the student's view, in addition to that of labelled images."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from detseg.config.options import Options, key
from detseg.data.augment.intensities import ValueRange, change_intensities

# Fractions of images that are blurred, get noise, and lose rectangles.
_BLURRED = _NOISY = _ERASED = 0.5
# Range of the sides of an erased rectangle, as fractions of the image's.
_ERASED_EDGE = (0.05, 0.2)


@dataclass(frozen=True)
class StrongChanges(Options):
    """Augmentation of the student's view: contrast and brightness, blur, noise, and erased rectangles.

    The kinds are those of Unbiased Teacher (Liu et al. 2021, table of augmentations: colour jitter, blur, cutout) and
    Soft Teacher (Xu et al. 2021), without colours; noise is specific to micrographs. Unlike there, erased regions are
    ignored, because a cell that is not visible at all cannot be found.

    brightness, contrast: half ranges, like INPUT.RANDOM_BRIGHTNESS. blur: maximum standard deviation of a Gaussian,
    pixels. noise: maximum standard deviation, as a fraction of the range. erase: maximum number of rectangles.
    """

    section = "SEMI.STRONG"

    brightness: float = key("BRIGHTNESS", default=0.2, at_least=0, at_most=1)
    contrast: float = key("CONTRAST", default=0.4, at_least=0, at_most=1)
    blur: float = key("BLUR", default=1.5, at_least=0, at_most=20)
    noise: float = key("NOISE", default=0.05, at_least=0, at_most=1)
    erase: int = key("ERASE", default=3, at_least=0, at_most=100)

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator, value_range: ValueRange
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return a changed image (H, W, C) of the same dtype, and the erased pixels (H, W) bool or None."""
        contrast, brightness = (rng.uniform(-most, most) for most in (self.contrast, self.brightness))
        image = change_intensities(image, contrast=1 + contrast, brightness=brightness, value_range=value_range)
        shape = image.shape
        if rng.random() < _BLURRED and self.blur:
            image = cv2.GaussianBlur(image, (0, 0), max(rng.uniform(0, self.blur), 0.1)).reshape(shape)
        if rng.random() < _NOISY and self.noise:
            low, high = value_range
            scale = np.float32(rng.uniform(0, self.noise) * (high - low))
            noisy = np.clip(image + scale * rng.standard_normal(shape, dtype=np.float32), low, high, dtype=np.float32)
            image = np.rint(noisy).astype(image.dtype) if image.dtype.kind == "u" else noisy
        if rng.random() >= _ERASED or not self.erase:
            return image, None
        image, hidden = image.copy(), np.zeros(shape[:2], dtype=bool)
        for _ in range(rng.integers(1, self.erase + 1)):
            sides = [max(round(edge * rng.uniform(*_ERASED_EDGE)), 1) for edge in shape[:2]]
            top, left = (int(rng.integers(edge - side + 1)) for edge, side in zip(shape[:2], sides, strict=True))
            window = slice(top, top + sides[0]), slice(left, left + sides[1])
            image[window] = rng.uniform(*value_range)
            hidden[window] = True
        return image, hidden
