"""Preprocessing of every image before a model, identical in training and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.config.options import Options, Problems, key
from detseg.data.augment.intensities import ValueRange, equalise, invert, natural_range
from detseg.errors import DataError
from detseg.images.size import ENVIRONMENT, max_pixels
from detseg.structures.sample import FIELD, PixelSize, parse_pixel_size


def _object_size(pixels: float) -> str | None:
    return None if pixels == 0 or 4 <= pixels <= 1000 else "expected 4 to 1000 pixels, or 0 for off"


@dataclass(frozen=True)
class ScaleOptions(Options):
    """The initial rescaling of images by at most one of the two; 0 for off.

    pixel_size: micrometres per pixel. object_size: the diameter of their objects in pixels at network scale, see
    `data.object_size`; the shorter edge is then ignored.
    """

    section = "INPUT"

    pixel_size: float = key("PIXEL_SIZE", default=0.0, at_least=0)
    object_size: float = key("OBJECT_SIZE", default=0.0, test=_object_size)

    def check(self, problems: Problems) -> None:
        if self.pixel_size and self.object_size:
            problems.add(
                "INPUT.OBJECT_SIZE",
                "INPUT.PIXEL_SIZE also sets the scale of images: set one of them to 0",
            )


@dataclass(frozen=True)
class TestSizeOptions(ScaleOptions):
    """The size of images at network scale in prediction.

    min_size: the shorter edge after `pixel_size`, pixels; 0 keeps the size. max_size: limit on the longer one. Both are
    ignored with `object_size`.
    """

    __test__ = False  # pytest would collect a class whose name begins with Test

    min_size: int = key("MIN_SIZE_TEST", default=0, at_least=0)
    max_size: int = key("MAX_SIZE_TEST", default=0, at_least=1)


def network_size(
    height: int, width: int, facts: Mapping[str, Any], *, pixel_size: float, short: int, longest: int, source: str
) -> tuple[int, int]:
    """Return (height, width) at network scale: first by INPUT.PIXEL_SIZE, then with the shorter edge `short`.

    Arguments as in `size_at_pixel_size` and `resize_shortest_edge_size`.
    """
    at_pixel_size = size_at_pixel_size(height, width, facts, pixel_size, source=source)
    return resize_shortest_edge_size(*at_pixel_size, short, longest)


def size_at_pixel_size(
    height: int, width: int, facts: Mapping[str, Any], pixel_size: float, *, source: str
) -> tuple[int, int]:
    """Return the (height, width) of an image at another pixel size.

    Args:
        facts: about the image; `pixel_size` in micrometres, a number or [y, x].
        pixel_size: INPUT.PIXEL_SIZE, micrometres; 0 keeps the size.
        source: the image's name, for messages.

    Raises:
        DataError: the image's pixel size is unknown, or the image would become too large.
    """
    if not pixel_size:
        return height, width
    own = known_pixel_size(facts, pixel_size, source=source)
    size = (height * own[0] / pixel_size, width * own[1] / pixel_size)
    if size[0] * size[1] > max_pixels():
        raise DataError(
            f"{source}: with pixels of {own[0]:g} x {own[1]:g} micrometres (y, x), INPUT.PIXEL_SIZE {pixel_size:g} "
            f"would enlarge it to {size[0]:.0f} x {size[1]:.0f} pixels; check the pixel size (or set the "
            f"environment variable {ENVIRONMENT})"
        )
    return max(int(size[0] + 0.5), 1), max(int(size[1] + 0.5), 1)


def known_pixel_size(facts: Mapping[str, Any], pixel_size: float, *, source: str) -> PixelSize:
    """Return (y, x) micrometres of an image that is rescaled to `pixel_size`. Raises DataError if they are unknown."""
    if facts.get(FIELD) is None:
        raise DataError(
            f"{source}: its pixel size is unknown, but INPUT.PIXEL_SIZE rescales all images to {pixel_size:g} "
            "micrometres per pixel; give it with --pixel-size to the prepare command or to predict, or as the field "
            f"`{FIELD}` of the image in the COCO file"
        )
    return parse_pixel_size(facts[FIELD], source)


def resize_shortest_edge_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Return (height, width) with the shorter edge `short`, or less if the longer one would exceed `longest`.

    Rounded like Detectron2's ResizeShortestEdge. short = 0 keeps the size.
    """
    if short == 0:
        return height, width
    scale = short / min(height, width)
    new_height, new_width = (short, scale * width) if height < width else (scale * height, short)
    if max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    # Edges must not be rounded to zero.
    return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


# Luma of RGB (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_SCALED_RANGE = (0.0, 255.0)


@dataclass(frozen=True)
class Levels:
    """Measured intensities of an image. low, high: (C,) or () float32, mapped to 0 and 255; None without scaling.
    is_inverted: whether it is inverted. value_range: of intensities before that.
    """

    low: np.ndarray | None
    high: np.ndarray | None
    is_inverted: bool
    value_range: ValueRange


def _ascending(pair: Sequence[float]) -> str | None:
    return None if pair[0] < pair[1] else "expected two numbers, the first below the second"


def _channels(channels: Sequence[int | str]) -> str | None:
    legal = all(one != "" if isinstance(one, str) else type(one) is int and one >= 0 for one in channels)
    return None if legal else "expected indices from 0 on, or names of channels"


@dataclass(frozen=True)
class ImagePreprocess(Options):
    """Channels, grayscale, scaling, inversion and equalisation, in this order (INPUT.CHANNELS, GRAYSCALE, SCALING,
    INVERT, CLAHE).

    channels: selection by 0-based index or channel name of an OME-TIFF; empty: all. grayscale: convert RGB to luma.
    scaling: "none", "percentile" or "fixed"; the latter two give float32 in 0..255. percentiles: mapped to 0 and 255;
    for RGB one pair for all three channels, to keep colours; else one pair per channel. scaling_range: intensities
    mapped to 0 and 255 with "fixed". invert: "none" or "auto": an image with its median above the middle of its
    `percentiles` is inverted (its background is brighter than its objects). clahe: limit of `equalise`, 0 for none.
    num_channels: of the model; a single channel is repeated.
    """

    section = "INPUT"

    channels: tuple[int | str, ...] = key("CHANNELS", default=(), test=_channels)
    grayscale: bool = key("GRAYSCALE", default=False)
    scaling: str = key("SCALING", default="none", choices=("none", "percentile", "fixed"))
    percentiles: tuple[float, float] = key(
        "SCALING_PERCENTILES", default=(0.5, 99.5), length=2, at_least=0, at_most=100, test=_ascending
    )
    scaling_range: tuple[float, float] = key("SCALING_RANGE", default=(0.0, 65535.0), length=2, test=_ascending)
    invert: str = key("INVERT", default="none", choices=("none", "auto"))
    clahe: float = key("CLAHE", default=0.0, at_least=0, at_most=100)
    num_channels: int = key("MODEL.PIXEL_MEAN", default=3, convert=len)

    def check(self, problems: Problems) -> None:
        chosen = len(self.channels)
        is_gray = chosen == 1 or (chosen == 3 and self.grayscale)  # one channel is repeated
        if chosen not in (0, self.num_channels) and not is_gray:
            expected = f"expected as many channels as MODEL.PIXEL_MEAN has values ({self.num_channels})"
            problems.add("INPUT.CHANNELS", expected)

    def __call__(
        self, image: np.ndarray, *, source: str = "image", facts: Mapping[str, Any] | None = None
    ) -> np.ndarray:
        """Return the model's input (H, W, num_channels) for an image (H, W, C) as read from the file.

        source: the image's name, for errors. facts: see `images.reading.read_picture`. Raises DataError if the channels
        do not match.
        """
        return self.expand(self.prepare(image, source=source, facts=facts))

    def prepare(
        self,
        image: np.ndarray,
        *,
        source: str = "image",
        facts: Mapping[str, Any] | None = None,
        levels: Levels | None = None,
    ) -> np.ndarray:
        """Apply all steps but the repetition of a single channel, which is cheaper after cropping: see `expand`.

        levels: measured on another image, of which this one is a part; None: measured on this one.
        """
        image = self._chosen(image, source, facts or {})
        levels = levels or self._measured(image)
        value_range = levels.value_range
        if self.scaling != "none":
            scale = 255.0 / np.maximum(levels.high - levels.low, np.float32(1e-12))
            image = np.clip((image.astype(np.float32) - levels.low) * scale, *_SCALED_RANGE, dtype=np.float32)
            value_range = _SCALED_RANGE
        image = invert(image, value_range) if levels.is_inverted else image
        return equalise(image, self.clahe, value_range) if self.clahe else image

    def measure(self, image: np.ndarray, *, source: str = "image", facts: Mapping[str, Any] | None = None) -> Levels:
        """Return the levels for `prepare`, of an image (H, W, C), or of pixels from all over a larger one."""
        return self._measured(self._chosen(image, source, facts or {}))

    @property
    def measures(self) -> bool:
        """Whether the result for a pixel depends on the other pixels of its image."""
        return self.scaling == "percentile" or self.invert == "auto"

    def _measured(self, image: np.ndarray) -> Levels:
        is_inverted = False
        if self.invert == "auto":
            low, median, high = percentiles_of(image, (self.percentiles[0], 50.0, self.percentiles[1]))
            is_inverted = median > (low + high) / 2
        low = high = None
        if self.scaling == "fixed":
            low, high = np.float32(self.scaling_range[0]), np.float32(self.scaling_range[1])
        elif self.scaling == "percentile":
            together = image.shape[2] in (1, 3)
            planes = [image] if together else [image[:, :, channel] for channel in range(image.shape[2])]
            values = np.array([percentiles_of(plane, self.percentiles) for plane in planes], dtype=np.float32)
            low, high = values[0] if together else values.T
        return Levels(low, high, is_inverted, natural_range(image) if is_inverted or self.clahe else (0.0, 0.0))

    def _chosen(self, image: np.ndarray, source: str, facts: Mapping[str, Any]) -> np.ndarray:
        """Return the selected channels, converted to grayscale if configured."""
        if image.ndim != 3:
            raise DataError(f"{source}: expected (height, width, channel), got the shape {image.shape}")
        if self.channels:
            names = list(facts.get("channel_names") or ())
            image = image[:, :, [_channel_index(one, image.shape[2], names, source) for one in self.channels]]
        elif facts.get("unnamed_pages"):
            raise DataError(
                f"{source}: the file does not say what its {facts['unnamed_pages']} pages are; if they are channels, "
                "select the model's with INPUT.CHANNELS; if they are slices or time points, name the axes (--axes ZYX) "
                "and choose one (--z)"
            )
        if self.grayscale:
            image = _to_gray(image, source)
        if image.shape[2] not in (1, self.num_channels):
            order = "; an array is (height, width, channels)" if image.shape[0] == self.num_channels else ""
            raise DataError(
                f"{source}: the image has {image.shape[2]} channels{order}, but the model has {self.num_channels} "
                "(the length of MODEL.PIXEL_MEAN); choose channels with INPUT.CHANNELS, set INPUT.GRAYSCALE True for "
                "colour images, or give MODEL.PIXEL_MEAN and PIXEL_STD as many values as the images have channels"
            )
        return image

    def expand(self, image: np.ndarray) -> np.ndarray:
        """Repeat a single channel to the number of the model's channels."""
        if image.shape[2] == 1 and self.num_channels > 1:
            return np.repeat(image, self.num_channels, axis=2)
        return image

    def value_range(self, image: np.ndarray) -> ValueRange:
        """Return the range of intensities of a prepared image."""
        return _SCALED_RANGE if self.scaling != "none" else natural_range(image)


def _channel_index(channel: int | str, count: int, names: Sequence[str], source: str) -> int:
    """Return the index of a channel given by index or by name (case matters only if names differ by it)."""
    if isinstance(channel, int):
        if channel < count:
            return channel
        raise DataError(f"{source}: INPUT.CHANNELS has channel {channel}, but the image has {count} (0 to {count - 1})")
    for wanted, there in ((channel, names), (channel.casefold(), [name.casefold() for name in names])):
        if there.count(wanted) == 1:
            return there.index(wanted)
    own = f"its channels are {', '.join(names)}" if names else f"the file has no names for its {count} channels"
    raise DataError(f"{source}: INPUT.CHANNELS has channel {channel!r}, but {own}; use existing names or indices")


def _to_gray(image: np.ndarray, source: str) -> np.ndarray:
    """Return the luma (H, W, 1) of RGB, in the image's dtype; grayscale is kept."""
    if image.shape[2] == 1:
        return image
    if image.shape[2] != 3:
        raise DataError(
            f"{source}: INPUT.GRAYSCALE needs grayscale or RGB images, but this one has {image.shape[2]} channels"
        )
    return luma_of(image)[:, :, None]


def luma_of(image: np.ndarray) -> np.ndarray:
    """Return the luma (H, W) of an RGB image (H, W, 3), in its dtype."""
    luma = image.astype(np.float32) @ _LUMA
    return (luma if image.dtype == np.float32 else np.rint(luma)).astype(image.dtype)


def percentiles_of(values: np.ndarray, percentiles: tuple[float, ...]) -> list[float]:
    """Return percentiles of all values like np.percentile(method="inverted_cdf"): each is a value that occurs.

    8 and 16 bit integers use a histogram instead of sorting, which is several times faster.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        cumulated = np.cumsum(np.bincount(values.ravel()))
        ranks = np.ceil(np.array(percentiles) / 100 * values.size)
        return [float(value) for value in np.searchsorted(cumulated, np.maximum(ranks, 1))]
    return [float(value) for value in np.percentile(values, percentiles, method="inverted_cdf")]
