"""At which size the network should see the images, and how large a part of them in training.

I images, N objects. Lengths in pixels; a side is the square root of a box's area.
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

# The box head cuts 7 x 7 values, the mask head 14 x 14, from a level whose finest stride is 4: boxes below 28 pixels
# have fewer features than values, and from 56 on nothing is gained by more pixels.
FINE, COARSE = 28.0, 56.0
# Few objects may become smaller than half of FINE by shrinking.
LEAST_SIDE = 14.0
# Enlarging costs time and memory by the square.
MOST_FACTOR = 3.0
MOST_PIXELS = 4_000_000
# A factor nearer to 1 is not worth interpolating for.
NEGLIGIBLE = (0.85, 1.2)
# Spread (standard deviation of log2 of sides among images) by which one way of sizing must beat another.
CLEARLY = 0.1
# Spread from which on no one size of images suits their objects, and the diameter that each image's then get, pixels.
VARIED, OBJECT_SIZE = 0.4, 32
USUAL_MAX_SIZE = 4096
CROPS = (256, 320, 384, 448, 512, 640, 768, 896, 1024)
# Of random windows in which objects are counted: of an image, and images with windows.
_WINDOWS, _MOST_IMAGES = 16, 500
_WAYS = {"own": "as they are", "min_size": "with one shorter edge", "pixel_size": "in micrometres"}


@dataclass(frozen=True)
class NetworkScale:
    """How the images come to the network.

    factor: of the median image. sizes: (I, 2) float64, height and width at the network. boxes: (N, 4) float64 XYXY at
    the network. spreads: of sides among images, by way of sizing. min_size: INPUT.MIN_SIZE_*, 0 for the own size;
    pixel_size: INPUT.PIXEL_SIZE, object_size: INPUT.OBJECT_SIZE, 0 for off.
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
        """Return what is seen of images at these sizes, (I, 2)."""
        ratios = sizes / data.image_sizes
        boxes = data.objects.box.astype(np.float64) * np.tile(ratios[data.objects.image, ::-1], 2)
        return cls(float(np.median(np.sqrt(ratios.prod(axis=1)))), sizes, boxes, spreads, **settings)

    @property
    def sides(self) -> np.ndarray:
        return np.sqrt((self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1))


@dataclass(frozen=True)
class Crops:
    """What windows of a size show: size 0 stands for whole images. counts: objects of random windows, (windows,)."""

    size: int
    counts: np.ndarray

    @property
    def empty(self) -> float:
        return float((self.counts == 0).mean()) if len(self.counts) else 0.0


def scaled(
    data: Measurements, min_size: int, pixel_size: float = 0.0, spreads: dict[str, float] | None = None
) -> NetworkScale:
    """Return what the network sees with these settings."""
    options = {"pixel_size": pixel_size, "short": min_size, "longest": 1 << 30}
    sizes = [
        network_size(one.height, one.width, one.metadata, source=one.file_name, **options)
        for one in data.dataset.images
    ]
    return NetworkScale.at(
        data, np.array(sizes, dtype=np.float64), spreads or {}, min_size=min_size, pixel_size=pixel_size
    )


def scaled_by_objects(data: Measurements, object_size: int, spreads: dict[str, float]) -> NetworkScale:
    """Return what the network sees with INPUT.OBJECT_SIZE."""
    typical = float(np.median(data.sides))
    limits = np.searchsorted(data.objects.image, np.arange(len(data.dataset) + 1))
    factors = [
        object_scale(object_size, image_diameter(data.objects.box[start:end], typical))
        for start, end in itertools.pairwise(limits)
    ]
    sizes = np.maximum(np.rint(data.image_sizes * np.array(factors)[:, None]), 1)
    return NetworkScale.at(data, sizes, spreads, object_size=object_size)


def wanted_factor(sides: np.ndarray) -> float:
    """Return by how much objects with these sides (N,) should be enlarged, or shrunk below 1."""
    factor = 1.0
    if len(sides):
        median, small = np.median(sides), np.quantile(sides, 0.1)
        if median < FINE:
            factor = min(FINE / median, MOST_FACTOR)
        elif median > 2 * COARSE:
            factor = min(max(COARSE / median, LEAST_SIDE / small), 1.0)
    return 1.0 if NEGLIGIBLE[0] < factor < NEGLIGIBLE[1] else float(factor)


def choose_scale(data: Measurements) -> tuple[NetworkScale, Suggestion]:
    """Choose the size at which the median object suits the finest level of a pyramid."""
    micrometres, short, image = data.pixel_sizes, data.image_sizes.min(axis=1), data.objects.image
    factor = wanted_factor(data.sides)
    spreads = {"own": _spread(image, data.sides), "min_size": _spread(image, data.sides / short[image])}
    if not np.isnan(micrometres).any():
        spreads["pixel_size"] = _spread(image, data.sides * micrometres[image])

    # By the objects of each image where nothing else makes them alike. Sizes in micrometres where they differ and
    # explain the sizes of objects; else one shorter edge where that makes objects more alike, or where all shall grow
    # or shrink and it does not make them less alike.
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
    """Return the standard deviation, among images, of log2 of the median side of an image's objects.

    image: (N,) of each object, in ascending order.
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
        return Suggestion("scale", "Images at their own size.", "There is no object to go by.", keys)
    reason = (
        f"The median object has a side of {np.median(data.sides):.0f} pixels, {np.median(scale.sides):.0f} at the "
        f"network (a tenth below {np.quantile(scale.sides, 0.1):.0f}). "
        f"The box head cuts 7 x 7 values from features 4 pixels apart: {FINE:.0f} pixels fill them; beyond "
        f"{COARSE:.0f} the masks of 28 x 28 gain nothing."
    )
    if np.ptp(list(scale.spreads.values())) > 0.005:
        spreads = ", ".join(f"{value:.2f} {_WAYS[name]}" for name, value in scale.spreads.items())
        reason += f" Spread of objects' sizes among images, in octaves: {spreads}."
    if way == "objects":
        keys["INPUT.OBJECT_SIZE"] = scale.object_size
        advice = (
            f"Images brought to objects of {scale.object_size} pixels, each by its own: labels tell in training, the "
            "model itself in prediction (docs/inference.md)."
        )
        return Suggestion("scale", advice, reason, keys)
    if way == "own":
        wanted = wanted_factor(data.sides)
        if wanted != 1:
            reason += (
                f" A factor of {wanted:.2g} would suit, but images differ in size and not in that of their objects: no "
                "one shorter edge fits all. Give their pixel size, or resize the files."
            )
        return Suggestion("scale", "Images at their own size.", reason, keys)
    how = f"the shorter edge at {scale.min_size} pixels"
    if way == "pixel_size":
        how = f"pixels of {scale.pixel_size:g} micrometres"
    advice = f"All images brought to {how}, in the median {scale.factor:.2f} times their size."
    return Suggestion("scale", advice, reason, keys)


def choose_crop(data: Measurements, scale: NetworkScale) -> tuple[Crops, Suggestion]:
    """Choose the size of training crops at the network: large enough for nearly all objects and some neighbours."""
    keys: dict[str, object]
    if not len(data.objects):
        return Crops(0, np.zeros(0, dtype=np.int64)), Suggestion("crop", "Whole images.", "There is no object.")
    longer = np.quantile((scale.boxes[:, 2:] - scale.boxes[:, :2]).max(axis=1), 0.95)
    wanted = max(2.5 * longer, 8 * float(np.median(scale.sides)), CROPS[0])
    size = next((crop for crop in CROPS if crop >= wanted), CROPS[-1])
    if scale.sizes.max() <= size * 1.1:
        counts = np.bincount(data.objects.image, minlength=len(data.dataset))
        reason = (
            f"At the network they have at most {scale.sizes.max():.0f} pixels a side; a crop for objects of this size "
            f"(95 % are under {longer:.0f} pixels long) would be {size}."
        )
        # A preset of augmentation may lay crops about objects.
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
        f"95 % of the objects are under {longer:.0f} pixels long at the network, and 8 median objects fit side by "
        f"side. Such a crop shows {typical:.0f} objects in the median, 5 % of them more than {many:.0f}, and "
        f"{percent(crops.empty)} of random ones show none"
    )
    if crops.empty > 0.1:
        keys["INPUT.CROP.ON_OBJECTS"] = 0.5
        reason += ": every other one is laid about an object"
    return crops, Suggestion("crop", f"Training on crops of {size} x {size} pixels.", reason + ".", keys)


def count_in_windows(data: Measurements, scale: NetworkScale, size: int) -> np.ndarray:
    """Return how many objects have their centre in random windows of images at the network, (windows,) int64.

    Windows are inside their image; of images smaller than `size` they are the whole width or height.
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
