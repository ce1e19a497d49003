"""What every image goes through before a model sees it, in training and in prediction."""

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
    """What images are brought to before all else, at most one of the two; 0 leaves them as they are.

    pixel_size: micrometres a pixel. object_size: the diameter of their objects in pixels at the network, see
    `data.object_size`; the shorter edge then does not matter.
    """

    section = "INPUT"

    pixel_size: float = key("PIXEL_SIZE", default=0.0, at_least=0)
    object_size: float = key("OBJECT_SIZE", default=0.0, test=_object_size)

    def check(self, problems: Problems) -> None:
        if self.pixel_size and self.object_size:
            problems.add(
                "INPUT.OBJECT_SIZE",
                "INPUT.PIXEL_SIZE says already how images come to the network: set one of them to 0",
            )


@dataclass(frozen=True)
class TestSizeOptions(ScaleOptions):
    """The size at which a network sees an image in prediction.

    min_size: the shorter edge after `pixel_size`, pixels; 0 leaves the size as it is. max_size: the longer one at most.
    Neither counts where `object_size` is set.
    """

    __test__ = False  # pytest takes every class whose name begins with Test for tests

    min_size: int = key("MIN_SIZE_TEST", default=0, at_least=0)
    max_size: int = key("MAX_SIZE_TEST", default=0, at_least=1)


def network_size(
    height: int, width: int, facts: Mapping[str, Any], *, pixel_size: float, short: int, longest: int, source: str
) -> tuple[int, int]:
    """Return (height, width) at the network: first of INPUT.PIXEL_SIZE, then with the shorter edge `short`.

    Arguments as those of `size_at_pixel_size` and `resize_shortest_edge_size`.
    """
    at_pixel_size = size_at_pixel_size(height, width, facts, pixel_size, source=source)
    return resize_shortest_edge_size(*at_pixel_size, short, longest)


def size_at_pixel_size(
    height: int, width: int, facts: Mapping[str, Any], pixel_size: float, *, source: str
) -> tuple[int, int]:
    """Return the (height, width) at which the pixels of an image have another size.

    Args:
        facts: what is known of the image; `pixel_size` in micrometres, a number or [y, x].
        pixel_size: INPUT.PIXEL_SIZE, micrometres; 0: the size as it is, whatever the pixels are.
        source: the image's name, for messages.

    Raises:
        DataError: the image's pixel size is not known, or the image would become too large.
    """
    if not pixel_size:
        return height, width
    own = known_pixel_size(facts, pixel_size, source=source)
    size = (height * own[0] / pixel_size, width * own[1] / pixel_size)
    if size[0] * size[1] > max_pixels():
        raise DataError(
            f"{source}: with pixels of {own[0]:g} x {own[1]:g} micrometres (y, x), INPUT.PIXEL_SIZE {pixel_size:g} "
            f"would enlarge it to {size[0]:.0f} x {size[1]:.0f} pixels; is the pixel size right? (else set the "
            f"environment variable {ENVIRONMENT})"
        )
    return max(int(size[0] + 0.5), 1), max(int(size[1] + 0.5), 1)


def known_pixel_size(facts: Mapping[str, Any], pixel_size: float, *, source: str) -> PixelSize:
    """Return (y, x) micrometres of an image that is to be brought to `pixel_size`; DataError where they are unknown."""
    if facts.get(FIELD) is None:
        raise DataError(
            f"{source}: its pixel size is not known, but INPUT.PIXEL_SIZE brings all images to {pixel_size:g} "
            "micrometres a pixel; give it to the prepare command or to predict (--pixel-size), or as the field "
            f"`{FIELD}` of the image in the COCO file"
        )
    return parse_pixel_size(facts[FIELD], source)


def resize_shortest_edge_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Return (height, width) with the shorter edge `short`, or less where the longer one would pass `longest`.

    Rounded as Detectron2's ResizeShortestEdge does. short = 0: the size as it is.
    """
    if short == 0:
        return height, width
    scale = short / min(height, width)
    new_height, new_width = (short, scale * width) if height < width else (scale * height, short)
    if max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    # An edge of less than half a pixel would vanish; one pixel is the least an image has.
    return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


# Luma of RGB (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_SCALED_RANGE = (0.0, 255.0)


@dataclass(frozen=True)
class Levels:
    """What is measured of the intensities of an image. low, high: (C,) or () float32, become 0 and 255; None without
    scaling. is_inverted: dark and bright change places. value_range: in which intensities are before that.
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
    """Channels, gray, scaling, inversion and equalisation, in this order (INPUT.CHANNELS, GRAYSCALE, SCALING, INVERT,
    CLAHE).

    channels: what to take, 0-based indices or names of an OME-TIFF's channels; empty: all. grayscale: RGB becomes its
    luma. scaling: "none", "percentile" or "fixed"; the latter two give float32 in 0..255. percentiles: what becomes 0
    and 255; of an RGB image one pair for all three channels, so that colours stay; else a pair for each channel.
    scaling_range: intensities that become 0 and 255 when "fixed". invert: "none" or "auto": an image whose median is
    above the middle between its `percentiles` is inverted (its background is brighter than its objects). clahe: limit
    of `equalise`, 0 for none. num_channels: what the model takes; one channel is repeated.
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
            problems.add("INPUT.CHANNELS", f"expected as many as MODEL.PIXEL_MEAN has values ({self.num_channels})")

    def __call__(
        self, image: np.ndarray, *, source: str = "image", facts: Mapping[str, Any] | None = None
    ) -> np.ndarray:
        """Return what the model takes, (H, W, num_channels), of an image (H, W, C) as it was read.

        source: the image's name, for errors. facts: what is known of it, see `images.read_picture`. Raises DataError
        where the channels do not fit.
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
        """All but the repetition of a single channel, which is cheaper after cropping and resizing: see `expand`.

        levels: measured on another image, of which this one is a part; None measures this one.
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
        """Return what `prepare` measures of an image (H, W, C), or of pixels from all over a larger one."""
        return self._measured(self._chosen(image, source, facts or {}))

    @property
    def measures(self) -> bool:
        """Whether what happens to a pixel depends on the other pixels of its image."""
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
        """Return the channels that the model sees, gray where it wants that."""
        if image.ndim != 3:
            raise DataError(f"{source}: expected (height, width, channel), got the shape {image.shape}")
        if self.channels:
            names = list(facts.get("channel_names") or ())
            image = image[:, :, [_channel_index(one, image.shape[2], names, source) for one in self.channels]]
        elif facts.get("unnamed_pages"):
            raise DataError(
                f"{source}: nothing in the file says what its {facts['unnamed_pages']} pages are; if they are "
                "channels, choose with INPUT.CHANNELS which the model sees; if they are slices or points in time, name "
                "the axes (--axes ZYX) and choose one (--z)"
            )
        if self.grayscale:
            image = _to_gray(image, source)
        if image.shape[2] not in (1, self.num_channels):
            order = "; an array is (height, width, channels)" if image.shape[0] == self.num_channels else ""
            raise DataError(
                f"{source}: the image has {image.shape[2]} channels{order}, the model takes {self.num_channels} "
                "(the length of MODEL.PIXEL_MEAN); choose channels with INPUT.CHANNELS, set INPUT.GRAYSCALE True for "
                "colour images, or give MODEL.PIXEL_MEAN and PIXEL_STD as many values as the images have channels"
            )
        return image

    def expand(self, image: np.ndarray) -> np.ndarray:
        """Repeat a single channel to as many as the model takes."""
        if image.shape[2] == 1 and self.num_channels > 1:
            return np.repeat(image, self.num_channels, axis=2)
        return image

    def value_range(self, image: np.ndarray) -> ValueRange:
        """Return the range of the intensities of an image that was prepared."""
        return _SCALED_RANGE if self.scaling != "none" else natural_range(image)


def _channel_index(channel: int | str, count: int, names: Sequence[str], source: str) -> int:
    """Return the index of a channel given by index or by name (capitals matter only where names differ by them)."""
    if isinstance(channel, int):
        if channel < count:
            return channel
        raise DataError(
            f"{source}: INPUT.CHANNELS asks for channel {channel}, but the image has {count} (0 to {count - 1})"
        )
    for wanted, there in ((channel, names), (channel.casefold(), [name.casefold() for name in names])):
        if there.count(wanted) == 1:
            return there.index(wanted)
    own = f"its channels are {', '.join(names)}" if names else f"the file names none of its {count} channels"
    raise DataError(
        f"{source}: INPUT.CHANNELS asks for channel {channel!r}, but {own}; give names or indices that exist"
    )


def _to_gray(image: np.ndarray, source: str) -> np.ndarray:
    """Return the luma (H, W, 1) of RGB, of the image's dtype; gray stays."""
    if image.shape[2] == 1:
        return image
    if image.shape[2] != 3:
        raise DataError(f"{source}: INPUT.GRAYSCALE takes gray or RGB images, this one has {image.shape[2]} channels")
    return luma_of(image)[:, :, None]


def luma_of(image: np.ndarray) -> np.ndarray:
    """Return the luma (H, W) of an RGB image (H, W, 3), of its dtype."""
    luma = image.astype(np.float32) @ _LUMA
    return (luma if image.dtype == np.float32 else np.rint(luma)).astype(image.dtype)


def percentiles_of(values: np.ndarray, percentiles: tuple[float, ...]) -> list[float]:
    """Return percentiles of all values, as np.percentile(method="inverted_cdf"): each is a value that occurs.

    Integers of 8 and 16 bits are counted and not sorted, which is several times faster.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        cumulated = np.cumsum(np.bincount(values.ravel()))
        ranks = np.ceil(np.array(percentiles) / 100 * values.size)
        return [float(value) for value in np.searchsorted(cumulated, np.maximum(ranks, 1))]
    return [float(value) for value in np.percentile(values, percentiles, method="inverted_cdf")]
