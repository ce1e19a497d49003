"""Suggestions on the image size for the network, and on the crop size in training.

I images, N objects. Lengths in pixels; a side is the square root of a box's area. "At network scale" means after
resizing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.curation.inspection.advice import Suggestion, percent
from detseg.curation.inspection.gather import Measurements
from detseg.data.object_size import image_diameter, object_scale
from detseg.data.preprocess import network_size

# The box head samples 7 x 7 values, the mask head 14 x 14, from levels with a finest stride of 4: boxes below 28 pixels
# have fewer features than values, and above 56 more pixels gain nothing.
FINE, COARSE = 28.0, 56.0
# Downscaling must leave nearly all objects larger than half of FINE.
LEAST_SIDE = 14.0
# Upscaling costs time and memory quadratically.
MOST_FACTOR = 3.0
MOST_PIXELS = 4_000_000
# Factors in this range are not worth the interpolation.
NEGLIGIBLE = (0.85, 1.2)
# Improvement in spread (standard deviation of log2 of sides between images) that another way of resizing must give.
CLEARLY = 0.1
# Spread above which no single image size suits all objects, and the object diameter to resize each image to, pixels.
VARIED, OBJECT_SIZE = 0.4, 32
USUAL_MAX_SIZE = 4096
CROPS = (256, 320, 384, 448, 512, 640, 768, 896, 1024)
# For counting objects in random windows: windows per image, and images with windows.
_WINDOWS, _MOST_IMAGES = 16, 500
_WAYS = {"own": "as they are", "min_size": "with one shorter edge", "pixel_size": "in micrometres"}


@dataclass(frozen=True)
class NetworkScale:
    """The images as resized for the network.

    factor: of the median image. sizes: (I, 2) float64, height and width. boxes: (N, 4) float64 XYXY. spreads: of sides
    between images, by way of resizing. min_size: INPUT.MIN_SIZE_*, 0 for the original size; pixel_size:
    INPUT.PIXEL_SIZE, object_size: INPUT.OBJECT_SIZE, 0 for off.
    """

    factor: float
    sizes: np.ndarray
    boxes: np.ndarray
    spreads: dict[str, float]
    min_size: int = 0
    pixel_size: float = 0.0
    object_size: int = 0

    @classmethod
    def at(cls, data: Measurements, sizes: np.ndarray, spreads: dict[str, float], **settings: Any) -> NetworkScale:
        """Create from the sizes (I, 2) of the resized images."""
        ratios = sizes / data.image_sizes
        boxes = data.objects.box.astype(np.float64) * np.tile(ratios[data.objects.image, ::-1], 2)
        return cls(float(np.median(np.sqrt(ratios.prod(axis=1)))), sizes, boxes, spreads, **settings)

    @property
    def sides(self) -> np.ndarray:
        return np.sqrt((self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1))


@dataclass(frozen=True)
class Crops:
    """Content of training crops: size 0 stands for whole images. counts: objects per random window, (windows,)."""

    size: int
    counts: np.ndarray

    @property
    def empty(self) -> float:
        return float((self.counts == 0).mean()) if len(self.counts) else 0.0


def scaled(
    data: Measurements, min_size: int, pixel_size: float = 0.0, spreads: dict[str, float] | None = None
) -> NetworkScale:
    """Return the images as resized by these settings."""
    options = {"pixel_size": pixel_size, "short": min_size, "longest": 1 << 30}
    sizes = [
        network_size(one.height, one.width, one.metadata, source=one.file_name, **options)
        for one in data.dataset.images
    ]
    return NetworkScale.at(
        data, np.array(sizes, dtype=np.float64), spreads or {}, min_size=min_size, pixel_size=pixel_size
    )


def scaled_by_objects(data: Measurements, object_size: int, spreads: dict[str, float]) -> NetworkScale:
    """Return the images as resized by INPUT.OBJECT_SIZE."""
    typical = float(np.median(data.sides))
    limits = np.searchsorted(data.objects.image, np.arange(len(data.dataset) + 1))
    factors = [
        object_scale(object_size, image_diameter(data.objects.box[start:end], typical))
        for start, end in itertools.pairwise(limits)
    ]
    sizes = np.maximum(np.rint(data.image_sizes * np.array(factors)[:, None]), 1)
    return NetworkScale.at(data, sizes, spreads, object_size=object_size)


def wanted_factor(sides: np.ndarray) -> float:
    """Return the factor by which objects with these sides (N,) should be resized."""
    factor = 1.0
    if len(sides):
        median, small = np.median(sides), np.quantile(sides, 0.1)
        if median < FINE:
            factor = min(FINE / median, MOST_FACTOR)
        elif median > 2 * COARSE:
            factor = min(max(COARSE / median, LEAST_SIDE / small), 1.0)
    return 1.0 if NEGLIGIBLE[0] < factor < NEGLIGIBLE[1] else float(factor)


def choose_scale(data: Measurements) -> tuple[NetworkScale, Suggestion]:
    """Choose the image size at which the median object suits the finest level of the pyramid."""
    micrometres, short, image = data.pixel_sizes, data.image_sizes.min(axis=1), data.objects.image
    factor = wanted_factor(data.sides)
    spreads = {"own": _spread(image, data.sides), "min_size": _spread(image, data.sides / short[image])}
    if not np.isnan(micrometres).any():
        spreads["pixel_size"] = _spread(image, data.sides * micrometres[image])

    # By the objects of each image if nothing else makes their sizes similar. By pixel size if that differs and explains
    # the sizes of objects; else by one shorter edge if that makes objects more similar, or if all images need resizing
    # and it does not make them less similar.
    way = "own"
    gain = spreads["own"] - spreads["min_size"]
    differ = "pixel_size" in spreads and micrometres.max() > 1.05 * micrometres.min()
    if differ and spreads["pixel_size"] <= min(spreads["own"], spreads["min_size"]) + CLEARLY:
        way = "pixel_size"
    elif short.min() == short.max():
        way = "min_size" if factor != 1 else "own"
    elif gain > CLEARLY or (factor != 1 and gain > -CLEARLY):
        way = "min_size"

    best = spreads["pixel_size"] if way == "pixel_size" else min(spreads["own"], spreads["min_size"])
    if best > VARIED:
        scale = scaled_by_objects(data, OBJECT_SIZE, spreads)
        return scale, _suggest_scale(data, scale, "objects")
    if way == "own" or not len(data.objects):
        scale = scaled(data, 0, spreads=spreads)
        return scale, _suggest_scale(data, scale, "own")
    base = float(np.median(micrometres if way == "pixel_size" else short))
    start = scaled(data, 0, base) if way == "pixel_size" else scaled(data, round(base))
    factor = wanted_factor(start.sides)
    if factor > 1:
        factor = max(min(factor, float(np.sqrt(MOST_PIXELS / np.median(start.sizes.prod(axis=1))))), 1.0)
    if way == "pixel_size":
        scale = scaled(data, 0, float(f"{base / factor:.3g}"), spreads)
    else:
        scale = scaled(data, max(4 * round(base * factor / 4), 4), spreads=spreads)
    return scale, _suggest_scale(data, scale, way)


def _spread(image: np.ndarray, sides: np.ndarray) -> float:
    """Return the standard deviation, between images, of log2 of the median side of an image's objects.

    image: (N,) image index of each object, ascending.
    """
    starts = np.unique(image, return_index=True)[1]
    return float(np.std([np.median(part) for part in np.split(np.log2(sides), starts[1:])])) if len(sides) else 0.0


def _suggest_scale(data: Measurements, scale: NetworkScale, way: str) -> Suggestion:
    keys: dict[str, object] = {"INPUT.MIN_SIZE_TRAIN": [scale.min_size], "INPUT.MIN_SIZE_TEST": scale.min_size}
    if scale.min_size:
        longest = max(USUAL_MAX_SIZE, int(scale.sizes.max()))
        keys |= {"INPUT.MAX_SIZE_TRAIN": longest, "INPUT.MAX_SIZE_TEST": longest}
    if scale.pixel_size:
        keys["INPUT.PIXEL_SIZE"] = scale.pixel_size
    if not len(data.objects):
        return Suggestion(
            "scale", "Images at their original size.", "There are no objects to base a suggestion on.", keys
        )
    reason = (
        f"The median object has a side of {np.median(data.sides):.0f} pixels, {np.median(scale.sides):.0f} at network "
        f"scale (a tenth below {np.quantile(scale.sides, 0.1):.0f}). "
        f"The box head samples 7 x 7 values from features with stride 4, for which {FINE:.0f} pixels suffice; above "
        f"{COARSE:.0f} the masks of 28 x 28 gain nothing."
    )
    if np.ptp(list(scale.spreads.values())) > 0.005:
        spreads = ", ".join(f"{value:.2f} {_WAYS[name]}" for name, value in scale.spreads.items())
        reason += f" Spread of object sizes between images, in octaves: {spreads}."
    if way == "objects":
        keys["INPUT.OBJECT_SIZE"] = scale.object_size
        advice = (
            f"Each image resized so that its objects have {scale.object_size} pixels: by the labels in training, by "
            "the model's own estimate in prediction (docs/inference.md)."
        )
        return Suggestion("scale", advice, reason, keys)
    if way == "own":
        wanted = wanted_factor(data.sides)
        if wanted != 1:
            reason += (
                f" A factor of {wanted:.2g} would suit, but images differ in size while their objects do not: no "
                "single shorter edge suits all. Provide pixel sizes, or resize the files."
            )
        return Suggestion("scale", "Images at their original size.", reason, keys)
    how = f"the shorter edge at {scale.min_size} pixels"
    if way == "pixel_size":
        how = f"pixels of {scale.pixel_size:g} micrometres"
    advice = f"All images resized to {how}, by a factor of {scale.factor:.2f} in the median."
    return Suggestion("scale", advice, reason, keys)


def choose_crop(data: Measurements, scale: NetworkScale) -> tuple[Crops, Suggestion]:
    """Choose the size of training crops at network scale: large enough for nearly all objects and some neighbours."""
    keys: dict[str, object]
    if not len(data.objects):
        return Crops(0, np.zeros(0, dtype=np.int64)), Suggestion("crop", "Whole images.", "There is no object.")
    longer = np.quantile((scale.boxes[:, 2:] - scale.boxes[:, :2]).max(axis=1), 0.95)
    wanted = max(2.5 * longer, 8 * float(np.median(scale.sides)), CROPS[0])
    size = next((crop for crop in CROPS if crop >= wanted), CROPS[-1])
    if scale.sizes.max() <= size * 1.1:
        counts = np.bincount(data.objects.image, minlength=len(data.dataset))
        reason = (
            f"At network scale they have at most {scale.sizes.max():.0f} pixels a side; a crop for objects of this "
            f"size (95 % are less than {longer:.0f} pixels long) would be {size}."
        )
        # The augmentation preset may turn on crops around objects.
        keys = {"INPUT.CROP.ENABLED": False, "INPUT.CROP.ON_OBJECTS": 0.0}
        return Crops(0, counts), Suggestion("crop", "Whole images.", reason, keys)
    crops = Crops(size, count_in_windows(data, scale, size))
    keys = {
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute",
        "INPUT.CROP.SIZE": [size, size],
        "INPUT.CROP.AFTER_RESIZE": True,
    }
    typical, many = np.median(crops.counts), np.quantile(crops.counts, 0.95)
    reason = (
        f"95 % of the objects are less than {longer:.0f} pixels long at network scale, and 8 median objects fit side "
        f"by side. Such a crop shows {typical:.0f} objects in the median, 5 % show more than {many:.0f}, and "
        f"{percent(crops.empty)} of random ones show none"
    )
    if crops.empty > 0.1:
        keys["INPUT.CROP.ON_OBJECTS"] = 0.5
        reason += ": every second one is centred on an object"
    return crops, Suggestion("crop", f"Training on crops of {size} x {size} pixels.", reason + ".", keys)


def count_in_windows(data: Measurements, scale: NetworkScale, size: int) -> np.ndarray:
    """Return how many objects have their centre in random windows of images at network scale, (windows,) int64.

    Windows lie inside their image, and cover it along edges shorter than `size`.
    """
    rng = np.random.default_rng(0)
    chosen = np.arange(len(scale.sizes))
    if len(chosen) > _MOST_IMAGES:
        chosen = np.sort(rng.choice(chosen, _MOST_IMAGES, replace=False))
    centres = (scale.boxes[:, :2] + scale.boxes[:, 2:]) / 2
    limits = np.searchsorted(data.objects.image, np.arange(len(scale.sizes) + 1))
    counts = []
    for image in chosen:
        own = centres[limits[image] : limits[image + 1]]
        corners = rng.random((_WINDOWS, 2)) * np.maximum(scale.sizes[image, ::-1] - size, 0)
        inside = (own[None] >= corners[:, None]) & (own[None] < corners[:, None] + size)
        counts.append(inside.all(axis=2).sum(axis=1))
    return np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)
