"""The seam of prediction: what finds the objects of one array of pixels.

A Detector is one model with its preprocessing (`ModelDetector`), or several views of an image and several models whose
predictions are combined (`ensemble.EnsembleDetector`). What surrounds it (files, thresholds, provenance: `Predictor`;
tiles of an image too large for memory: `TilePredictor`) needs no more than these two steps:

    prepared = detector.prepare(InputImage(pixels, facts, name))        # raises DataError for this image only
    predictions = detector.predict([prepared, ...])                     # in the pixels of the input
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from detseg.data.augment.resampling import resize_image
from detseg.data.intensity_range import IntensityRange, levels_of
from detseg.data.preprocess import ImagePreprocess, TestSizeOptions, known_pixel_size, network_size
from detseg.errors import ConfigError, DataError
from detseg.inference.views import PLAIN, View
from detseg.models.base import Segmenter
from detseg.structures.predictions import Predictions

logger = logging.getLogger(__name__)

# Images with intensities that do not fit are named up to this many times; of a folder all are usually alike.
_NAMED = 3
# Images that are cut into tiles are not shrunk more than this unless it is asked for: little would be left of a cell.
LEAST_SCALE = 0.2
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class ParentImage:
    """The image that tiles are cut from, which decides on their scale at the network and on their intensities.

    size: (height, width). facts, name: as of InputImage. overview: pixels (h, w, C) from all over it; None where no
    model asks for them. scale: pixels at the network per pixel; None: as the model would see the whole image. levels:
    what models measured on the overview.
    """

    size: tuple[int, int]
    facts: Mapping[str, Any]
    name: str
    overview: np.ndarray | None = None
    scale: float | None = None
    levels: dict[Hashable, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InputImage:
    """An image, or a tile of one.

    pixels: (H, W, C) uint8, uint16 or float32 as in the file. facts: as `images.reading.read_picture` gives
    them (`pixel_size`, `channel_names`). name: for messages. parent: the image that this is a tile of, if it is one.
    """

    pixels: np.ndarray
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str = "image"
    parent: ParentImage | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[:2]


@dataclass(frozen=True)
class PreparedImage:
    """An image ready for its detector.

    size: (height, width) of the input, in whose pixels the predictions are. key: images of one key may share a batch.
    content: known to the detector that made it.
    """

    size: tuple[int, int]
    key: Hashable
    content: Any


class Detector(ABC):
    """Finds objects in arrays of pixels; see the module."""

    @abstractmethod
    def prepare(self, image: InputImage) -> PreparedImage:
        """Bring an image to what `predict` takes. Raises DataError where the model cannot take it."""

    @abstractmethod
    def predict(
        self,
        prepared: Sequence[PreparedImage],
        *,
        soft_masks: bool = False,
        boxes: Sequence[Predictions] | None = None,
    ) -> list[Predictions]:
        """Find the objects of images of one key, in their own pixels; image_id and file_name are left to the caller.

        boxes: external boxes, one Predictions an image: only their masks are predicted, all are in the result.
        """

    @property
    @abstractmethod
    def takes_boxes(self) -> bool:
        """Whether `predict` gives masks to external boxes."""

    @property
    @abstractmethod
    def gives_soft_masks(self) -> bool:
        """Whether `predict` can keep the probabilities of masks."""

    @property
    @abstractmethod
    def needs_overview(self) -> bool:
        """Whether a tile's intensities depend on those of its image (`ParentImage.overview`)."""

    @abstractmethod
    def tile_scale(self, parent: ParentImage) -> tuple[float, float]:
        """Pixels at the network per pixel (y, x) of the tiles of an image. Raises DataError where it is not known."""

    @abstractmethod
    def check_intensities(self, image: InputImage) -> None:
        """Warn where an image, or rows from all over one, is far brighter or darker than what the model knows."""

    def describe(self) -> dict[str, Any]:
        """Return what provenance says beyond the model: views, models that are combined; empty for one model."""
        return {}


class ModelDetector(Detector):
    """Detects with one model, every image as it is.

    Args:
        model: any Segmenter; it is predicted with where it is (its device) and never trained here.
        preprocess: channels, scaling and inversion, as in training.
        size: at which the network sees images.
        precision: "float32", or "bfloat16" / "float16" for automatic mixed precision.
        intensities: what the model knows; None warns of nothing.

    Raises:
        ConfigError: a precision that does not exist.
    """

    def __init__(
        self,
        model: Segmenter,
        *,
        preprocess: ImagePreprocess,
        size: TestSizeOptions | None = None,
        precision: str = "float32",
        intensities: IntensityRange | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ConfigError(f"the precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
        self.model = model
        self.preprocess = preprocess
        self.size = size or TestSizeOptions()
        self.precision = precision
        self.intensities = intensities
        self._outside = 0

    @property
    def takes_boxes(self) -> bool:
        """See Detector.takes_boxes."""
        return self.model.takes_boxes

    @property
    def gives_soft_masks(self) -> bool:
        """See Detector.gives_soft_masks."""
        return self.model.gives_soft_masks

    @property
    def needs_overview(self) -> bool:
        """See Detector.needs_overview."""
        return self.preprocess.measures

    def network_size(self, image: InputImage, view: View = PLAIN) -> tuple[int, int]:
        """Return (height, width) at which the network sees an image, before the view turns it."""
        if image.parent is None:
            return self._whole_size(image.size, image.facts, image.name, view)
        y, x = self.tile_scale(image.parent, view)
        return max(round(image.size[0] * y), 1), max(round(image.size[1] * x), 1)

    def _whole_size(self, size: tuple[int, int], facts: Mapping[str, Any], name: str, view: View) -> tuple[int, int]:
        short, longest = (view.short, view.longest) if view.short else (self.size.min_size, self.size.max_size)
        pixel_size = self.size.pixel_size
        height, width = network_size(*size, facts, pixel_size=pixel_size, short=short, longest=longest, source=name)
        return max(round(height * view.scale), 1), max(round(width * view.scale), 1)

    def tile_scale(self, parent: ParentImage, view: View = PLAIN) -> tuple[float, float]:
        """See Detector.tile_scale."""
        if parent.scale is not None:
            return parent.scale * view.scale, parent.scale * view.scale
        pixel_size, short = self.size.pixel_size, view.short or self.size.min_size
        if pixel_size and not short:
            own = known_pixel_size(parent.facts, pixel_size, source=parent.name)
            return own[0] / pixel_size * view.scale, own[1] / pixel_size * view.scale
        height, width = self._whole_size(parent.size, parent.facts, parent.name, view)
        if height < parent.size[0] * LEAST_SCALE and not pixel_size:
            raise DataError(
                f"{parent.name}: the model resizes images to a shorter edge of {short} pixels, which would shrink this "
                f"one {parent.size[0] / height:.0f} times; say how its tiles are to be seen: --tile-scale 1 keeps the "
                "pixels of the file"
            )
        return height / parent.size[0], width / parent.size[1]

    def channels(self, image: InputImage) -> np.ndarray:
        """Return the image (H, W, C) at its own size, channels chosen and scaled; a single channel is not repeated."""
        about = {"source": image.name, "facts": image.facts}
        levels = None
        if image.parent is not None and image.parent.overview is not None:
            known = image.parent.levels
            if self.preprocess not in known:
                known[self.preprocess] = self.preprocess.measure(image.parent.overview, **about)
            levels = known[self.preprocess]
        return self.preprocess.prepare(image.pixels, levels=levels, **about)

    def resized(self, channels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return what the network takes (height, width, num_channels), of what `channels` gave."""
        return self.preprocess.expand(resize_image(channels, *size))

    def check_intensities(self, image: InputImage) -> None:
        """See Detector.check_intensities."""
        if self.intensities is None or self.preprocess.scaling == "percentile":  # which fits every image
            return
        height, width = image.size
        step = max(math.isqrt(height * width // 2**20), 1)
        few = self.preprocess.prepare(image.pixels[::step, ::step], source=image.name, facts=image.facts)
        misfit = self.intensities.misfit(levels_of(few))
        if misfit is None:
            return
        self._outside += 1
        if self._outside <= _NAMED:
            logger.warning(
                "%s: its intensities are %s: few objects, or wrong ones, will be found. Bring it to the range of the "
                "training images, or train with INPUT.SCALING percentile, which does so with every image%s",
                image.name,
                misfit,
                "; further images like this are not named" if self._outside == _NAMED else "",
            )

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the model computes with its precision."""
        dtype = PRECISIONS[self.precision]
        # Not every kind of device knows autocast, even one that is switched off.
        return nullcontext() if dtype is None else torch.autocast(self.model.device.type, dtype=dtype)

    def prepare(self, image: InputImage) -> PreparedImage:
        """See Detector.prepare."""
        array = self.resized(self.channels(image), self.network_size(image))
        return PreparedImage(image.size, array.shape, array)

    def predict(
        self,
        prepared: Sequence[PreparedImage],
        *,
        soft_masks: bool = False,
        boxes: Sequence[Predictions] | None = None,
    ) -> list[Predictions]:
        """See Detector.predict."""
        images, sizes = [one.content for one in prepared], [one.size for one in prepared]
        with self.autocast():
            if boxes is None:
                return self.model.predict(images, sizes, soft_masks=soft_masks)
            return self.model.predict_masks(images, boxes, sizes, soft_masks=soft_masks)


Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Return function(item) in the order of the items, computed by `workers` threads before it is needed.

    At most two results a worker wait. 0 workers: each is computed when it is asked for. An exception of `function` is
    raised where its result would have come. Decoders, OpenCV and NumPy release Python's lock while they work.
    """
    if not workers:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="detseg-prefetch") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batches(items: Iterable[Item], size: int, key: Callable[[Item], Hashable]) -> Iterator[list[Item]]:
    """Yield neighbours of one key together, at most `size`."""
    batch: list[Item] = []
    for item in items:
        if batch and (len(batch) == size or key(batch[0]) != key(item)):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
