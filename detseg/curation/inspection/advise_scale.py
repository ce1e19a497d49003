"""At which size the network should see the images, and how large a part of them in training.

I images, N objects. Lengths in pixels; a side is the square root of a box's area.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detseg.curation.inspection.advice import Suggestion, percent
from detseg.curation.inspection.gather import Gathered
from detseg.data.preprocess import network_size
from detseg.structures.pixel_size import FIELD, parse_pixel_size

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
USUAL_MAX_SIZE = 4096
CROPS = (256, 320, 384, 448, 512, 640, 768, 896, 1024)
_WINDOWS = 16
_MOST_IMAGES = 500


@dataclass(frozen=True)
class NetworkScale:
    """How the images come to the network.

    min_size: INPUT.MIN_SIZE_*, 0 for the own size; pixel_size: INPUT.PIXEL_SIZE, 0 for off. factor: of the median
    image. sizes: (I, 2) float64, height and width at the network. boxes: (N, 4) float64 XYXY at the network. spreads:
    of sides among images, by way of sizing.
    """

    min_size: int
    pixel_size: float
    factor: float
    sizes: np.ndarray
    boxes: np.ndarray
    spreads: dict[str, float]

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


def image_sizes(gathered: Gathered) -> np.ndarray:
    """Return height and width of every image as it is, (I, 2) float64."""
    return np.array([(record.height, record.width) for record in gathered.dataset.images], dtype=np.float64)


def pixel_sizes(gathered: Gathered) -> np.ndarray:
    """Return micrometres a pixel of every image, the geometric mean of y and x, NaN where it is not known: (I,)."""
    sizes = np.full(len(gathered.dataset), np.nan)
    for index, record in enumerate(gathered.dataset.images):
        if record.metadata.get(FIELD) is not None:
            sizes[index] = np.sqrt(np.prod(parse_pixel_size(record.metadata[FIELD], record.file_name)))
    return sizes


def scaled(gathered: Gathered, min_size: int, pixel_size: float = 0.0, max_size: int = 1 << 30) -> NetworkScale:
    """Return what the network sees with these settings."""
    own = image_sizes(gathered)
    sizes = np.array(
        [
            network_size(
                record.height,
                record.width,
                record.metadata,
                pixel_size=pixel_size,
                short=min_size,
                longest=max_size,
                source=record.file_name,
            )
            for record in gathered.dataset.images
        ],
        dtype=np.float64,
    )
    ratio = (sizes / own)[:, ::-1][gathered.objects.image]
    boxes = gathered.objects.boxes.astype(np.float64) * np.tile(ratio, 2)
    factor = float(np.median(np.sqrt((sizes / own).prod(axis=1))))
    return NetworkScale(min_size, pixel_size, factor, sizes, boxes, {})


def wanted_factor(sides: np.ndarray) -> float:
    """Return by how much objects with these sides (N,) should be enlarged, or shrunk below 1."""
    if not len(sides):
        return 1.0
    median, small = np.median(sides), np.quantile(sides, 0.1)
    if median < FINE:
        factor = min(FINE / median, MOST_FACTOR)
    elif median > 2 * COARSE:
        factor = min(max(COARSE / median, LEAST_SIDE / small), 1.0)
    else:
        factor = 1.0
    return 1.0 if NEGLIGIBLE[0] < factor < NEGLIGIBLE[1] else float(factor)


def choose_scale(gathered: Gathered) -> tuple[NetworkScale, Suggestion]:
    """Choose the size at which the median object suits the finest level of a pyramid."""
    own, micrometres = image_sizes(gathered), pixel_sizes(gathered)
    short = own.min(axis=1)
    by_edge = gathered.objects.sides / short[gathered.objects.image]
    spreads = {
        "own": _spread(gathered, gathered.objects.sides),
        "min_size": _spread(gathered, by_edge),
    }
    known = not np.isnan(micrometres).any()
    if known:
        spreads["pixel_size"] = _spread(gathered, gathered.objects.sides * micrometres[gathered.objects.image])
    way = _choose_way(spreads, short, micrometres if known else None, wanted_factor(gathered.objects.sides))
    scale = _apply(gathered, way, short, micrometres)
    scale = NetworkScale(scale.min_size, scale.pixel_size, scale.factor, scale.sizes, scale.boxes, spreads)
    return scale, _suggest_scale(gathered, scale, way)


def _spread(gathered: Gathered, sides: np.ndarray) -> float:
    """Return the standard deviation, among images, of log2 of the median side of an image's objects."""
    if not len(sides):
        return 0.0
    order = np.argsort(gathered.objects.image, kind="stable")
    _, starts = np.unique(gathered.objects.image[order], return_index=True)
    medians = [np.median(part) for part in np.split(np.log2(sides[order]), starts[1:])]
    return float(np.std(medians))


def _choose_way(spreads: dict[str, float], short: np.ndarray, micrometres: np.ndarray | None, factor: float) -> str:
    differ = micrometres is not None and micrometres.max() > 1.05 * micrometres.min()
    if differ and spreads["pixel_size"] <= min(spreads["own"], spreads["min_size"]) + CLEARLY:
        return "pixel_size"
    if short.min() == short.max():
        return "min_size" if factor != 1 else "own"
    gain = spreads["own"] - spreads["min_size"]
    return "min_size" if gain > CLEARLY or (factor != 1 and gain > -CLEARLY) else "own"


def _apply(gathered: Gathered, way: str, short: np.ndarray, micrometres: np.ndarray) -> NetworkScale:
    if way == "own" or not len(gathered.objects):
        return scaled(gathered, 0)
    base = float(np.median(micrometres if way == "pixel_size" else short))
    start = scaled(gathered, 0, base) if way == "pixel_size" else scaled(gathered, round(base))
    factor = wanted_factor(start.sides)
    if factor > 1:
        factor = max(min(factor, float(np.sqrt(MOST_PIXELS / np.median(start.sizes.prod(axis=1))))), 1.0)
    if way == "pixel_size":
        return scaled(gathered, 0, float(f"{base / factor:.3g}"))
    return scaled(gathered, max(4 * round(base * factor / 4), 4))


def _suggest_scale(gathered: Gathered, scale: NetworkScale, way: str) -> Suggestion:
    if not len(gathered.objects):
        return Suggestion("scale", "Images at their own size.", "There is no object to go by.", _size_keys(scale))
    before, after = np.median(gathered.objects.sides), np.median(scale.sides)
    small = np.quantile(scale.sides, 0.1)
    seen = (
        f"The median object has a side of {before:.0f} pixels, {after:.0f} at the network (a tenth below {small:.0f}). "
        f"The box head cuts 7 x 7 values from features 4 pixels apart: {FINE:.0f} pixels fill them; beyond "
        f"{COARSE:.0f} the masks of 28 x 28 gain nothing."
    )
    spreads = ", ".join(f"{value:.2f} {_WAYS[name]}" for name, value in scale.spreads.items())
    varied = (
        f" Spread of objects' sizes among images, in octaves: {spreads}."
        if np.ptp(list(scale.spreads.values())) > 0.005
        else ""
    )
    if way == "own":
        wanted = wanted_factor(gathered.objects.sides)
        note = (
            f" A factor of {wanted:.2g} would suit, but images differ in size and not in that of their objects: no one "
            "shorter edge fits all. Give their pixel size, or resize the files."
            if wanted != 1
            else ""
        )
        return Suggestion("scale", "Images at their own size.", seen + varied + note, _size_keys(scale))
    how = (
        f"pixels of {scale.pixel_size:g} micrometres"
        if way == "pixel_size"
        else f"the shorter edge at {scale.min_size} pixels"
    )
    what = f"All images brought to {how}, in the median {scale.factor:.2f} times their size."
    return Suggestion("scale", what, seen + varied, _size_keys(scale))


_WAYS = {"own": "as they are", "min_size": "with one shorter edge", "pixel_size": "in micrometres"}


def _size_keys(scale: NetworkScale) -> dict[str, object]:
    keys: dict[str, object] = {"INPUT.MIN_SIZE_TRAIN": [scale.min_size], "INPUT.MIN_SIZE_TEST": scale.min_size}
    longest = int(scale.sizes.max()) if len(scale.sizes) else 0
    if scale.min_size:
        size = max(USUAL_MAX_SIZE, longest)
        keys |= {"INPUT.MAX_SIZE_TRAIN": size, "INPUT.MAX_SIZE_TEST": size}
    if scale.pixel_size:
        keys["INPUT.PIXEL_SIZE"] = scale.pixel_size
    return keys


def choose_crop(gathered: Gathered, scale: NetworkScale, seed: int = 0) -> tuple[Crops, Suggestion]:
    """Choose the size of training crops at the network: large enough for nearly all objects and some neighbours."""
    if not len(gathered.objects):
        return Crops(0, np.zeros(0, dtype=np.int64)), Suggestion("crop", "Whole images.", "There is no object.")
    longer = np.quantile((scale.boxes[:, 2:] - scale.boxes[:, :2]).max(axis=1), 0.95)
    median = float(np.median(scale.sides))
    wanted = max(2.5 * longer, 8 * median, CROPS[0])
    size = next((crop for crop in CROPS if crop >= wanted), CROPS[-1])
    if scale.sizes.max() <= size * 1.1:
        counts = np.bincount(gathered.objects.image, minlength=len(gathered.dataset))
        reason = (
            f"At the network they have at most {scale.sizes.max():.0f} pixels a side; a crop for objects of this size "
            f"(95 % are under {longer:.0f} pixels long) would be {size}."
        )
        return Crops(0, counts), Suggestion("crop", "Whole images.", reason, {"INPUT.CROP.ENABLED": False})
    crops = Crops(size, count_in_windows(gathered, scale, size, seed))
    keys: dict[str, object] = {
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute",
        "INPUT.CROP.SIZE": [size, size],
        "INPUT.CROP.AFTER_RESIZE": True,
    }
    if crops.empty > 0.1:
        keys["INPUT.CROP.ON_OBJECTS"] = 0.5
    typical, many = np.median(crops.counts), np.quantile(crops.counts, 0.95)
    reason = (
        f"95 % of the objects are under {longer:.0f} pixels long at the network, and 8 median objects fit side by "
        f"side. Such a crop shows {typical:.0f} objects in the median, 5 % of them more than {many:.0f}, and "
        f"{percent(crops.empty)} of random ones show none"
        + (": every other one is laid about an object." if crops.empty > 0.1 else ".")
    )
    return crops, Suggestion("crop", f"Training on crops of {size} x {size} pixels.", reason, keys)


def count_in_windows(gathered: Gathered, scale: NetworkScale, size: int, seed: int) -> np.ndarray:
    """Return how many objects have their centre in random windows of images at the network, (windows,) int64.

    Windows lie inside their image; of images smaller than `size` they are the whole width or height.
    """
    rng = np.random.default_rng(seed)
    chosen = np.arange(len(scale.sizes))
    if len(chosen) > _MOST_IMAGES:
        chosen = np.sort(rng.choice(chosen, _MOST_IMAGES, replace=False))
    centres = (scale.boxes[:, :2] + scale.boxes[:, 2:]) / 2
    order = np.argsort(gathered.objects.image, kind="stable")
    limits = np.searchsorted(gathered.objects.image[order], np.arange(len(scale.sizes) + 1))
    counts = []
    for image in chosen:
        own = centres[order[limits[image] : limits[image + 1]]]
        room = np.maximum(scale.sizes[image, ::-1] - size, 0)
        corners = rng.random((_WINDOWS, 2)) * room
        inside = (own[None] >= corners[:, None]) & (own[None] < corners[:, None] + size)
        counts.append(inside.all(axis=2).sum(axis=1))
    return np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)
