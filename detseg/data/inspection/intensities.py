"""What is measured of every image: intensities, contrast of its objects, focus, colour."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from detseg.data.preprocess import percentiles_of
from detseg.structures.label_layers import LabelLayers

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# Percentiles that stand for the darkest and the brightest of an image.
LOW, HIGH = 0.5, 99.5
# Share of the range by which the channels of a picture differ from which on it is called coloured.
COLOURED = 0.02


@dataclass(frozen=True)
class Intensities:
    """One image. Intensities are in the numbers of the file, of colour its luma, of other channels their mean.

    dtype: uint8, uint16 or float32. low, median, high: percentiles 0.5, 50, 99.5. mean, std. saturated: share of
    pixels at the largest number of the dtype (floats: of the image). objects, background: mean intensity in and
    outside of all masks, NaN where there is none. noise: standard deviation of the background. focus: variance of the
    Laplacian (Pech-Pacheco et al. 2000) after low and high (or objects, where higher) became 0 and 255, so that
    exposure does not count; noise and detail raise it. colour: mean distance of the channels from each other, as a
    share of high - low; 0 of other than RGB. purple: by how much red and blue pass green, the tint of hematoxylin and
    eosin, in the same unit.
    """

    dtype: str
    channels: int
    low: float
    median: float
    high: float
    mean: float
    std: float
    saturated: float
    objects: float
    background: float
    noise: float
    focus: float
    colour: float
    purple: float

    @property
    def contrast(self) -> float:
        """Objects minus background by high - low: from -1 to 1, positive where objects are brighter."""
        difference = self.objects - self.background
        # Few objects in a dark picture can lie beyond its percentiles.
        return difference / max(self.high - self.low, abs(difference), 1e-12)

    @property
    def position(self) -> float:
        """Where the median lies between low, 0, and high, 1."""
        return (self.median - self.low) / max(self.high - self.low, 1e-12)

    @property
    def is_bright(self) -> bool:
        """Whether the background is bright: the rule of INPUT.INVERT auto."""
        return self.median > (self.low + self.high) / 2

    @property
    def is_coloured(self) -> bool:
        return self.colour > COLOURED


def measure_image(image: np.ndarray, layers: LabelLayers) -> Intensities:
    """Measure an image (H, W, C) as it was read; layers: its objects, of the same size."""
    gray = to_gray(image)
    low, median, high = percentiles_of(gray, (LOW, 50.0, HIGH))
    covered = (layers.layers > 0).any(axis=0)
    inside, outside = gray[covered], gray[~covered]
    colour, purple = colours(image, low, high)
    objects = float(inside.mean(dtype=np.float64)) if inside.size else float("nan")
    # In a picture with few objects, these and not the noise around them are what may be sharp.
    top = max(high, objects) if inside.size else high
    largest = np.iinfo(image.dtype).max if image.dtype.kind == "u" else image.max()
    return Intensities(
        dtype=str(image.dtype),
        channels=image.shape[2],
        low=low,
        median=median,
        high=high,
        mean=float(gray.mean(dtype=np.float64)),
        std=float(gray.std(dtype=np.float64)),
        saturated=float((image == largest).mean()),
        objects=objects,
        background=float(outside.mean(dtype=np.float64)) if outside.size else float("nan"),
        noise=float(outside.std(dtype=np.float64)) if outside.size else float("nan"),
        focus=focus(gray, low, top),
        colour=colour,
        purple=purple,
    )


def to_gray(image: np.ndarray) -> np.ndarray:
    """Return the luma of RGB, the mean of other channels, (H, W) of the image's dtype."""
    if image.shape[2] == 1:
        return image[:, :, 0]
    values = image.astype(np.float32)
    gray = values @ _LUMA if image.shape[2] == 3 else values.mean(axis=2)
    return (np.rint(gray) if image.dtype.kind == "u" else gray).astype(image.dtype)


def focus(gray: np.ndarray, low: float, high: float) -> float:
    """Return the variance of the Laplacian of a gray image (H, W) whose range low..high is brought to 0..255."""
    scaled = np.clip((gray.astype(np.float32) - low) * np.float32(255 / max(high - low, 1e-12)), 0, 255)
    return float(cv2.Laplacian(scaled, cv2.CV_32F).var(dtype=np.float64))


def colours(image: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return `colour` and `purple` of an image (H, W, C), see `Intensities`; 0 of other than RGB."""
    if image.shape[2] != 3:
        return 0.0, 0.0
    values = image.astype(np.float32)
    spread = (values.max(axis=2) - values.min(axis=2)).mean()
    purple = (np.minimum(values[:, :, 0], values[:, :, 2]) - values[:, :, 1]).mean()
    span = max(high - low, 1e-12)
    return float(spread / span), float(purple / span)
