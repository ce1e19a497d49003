"""One model together with what its images go through before: channels, scaling, inversion, size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detseg.data.augment.resampling import resize_image
from detseg.data.preprocess import ImagePreprocess, TestSizeOptions, known_pixel_size, network_size
from detseg.errors import ConfigError, DataError
from detseg.inference.detector import Detector, InputImage, Prepared, Whole
from detseg.inference.views import PLAIN, View
from detseg.models.base import Segmenter
from detseg.structures.predictions import Predictions

if TYPE_CHECKING:
    from detseg.config import Config

# Images that are cut into tiles are not shrunk more than this unless it is asked for: little would be left of a cell.
LEAST_SCALE = 0.2
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ImageModel(Detector):
    """Detects with one model, every image as it is.

    Args:
        model: any Segmenter; it is predicted with where it is (its device) and never trained here.
        preprocess: channels, scaling and inversion, as in training.
        min_size_test, max_size_test: INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST: images are resized so that the shorter edge
            has the first many pixels and the longer at most the second; 0 for the first leaves images as they are.
        pixel_size: INPUT.PIXEL_SIZE: micrometres to which images are brought before that; 0 leaves them.
        precision: "float32", or "bfloat16" / "float16" for automatic mixed precision.

    Raises:
        ConfigError: a precision that does not exist.
    """

    def __init__(
        self,
        model: Segmenter,
        *,
        preprocess: ImagePreprocess,
        min_size_test: int = 0,
        max_size_test: int = 0,
        pixel_size: float = 0.0,
        precision: str = "float32",
    ) -> None:
        if precision not in PRECISIONS:
            raise ConfigError(f"the precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
        self.model = model
        self.preprocess = preprocess
        self.min_size_test = min_size_test
        self.max_size_test = max_size_test
        self.pixel_size = pixel_size
        self.precision = precision

    @classmethod
    def from_config(cls, model: Segmenter, cfg: Config, *, precision: str = "float32") -> ImageModel:
        """Take the INPUT settings of a configuration."""
        size = TestSizeOptions.from_config(cfg)
        return cls(
            model,
            preprocess=ImagePreprocess.from_config(cfg),
            min_size_test=size.min_size,
            max_size_test=size.max_size,
            pixel_size=size.pixel_size,
            precision=precision,
        )

    def network_size(
        self,
        height: int,
        width: int,
        facts: Mapping[str, Any],
        view: View = PLAIN,
        *,
        name: str = "image",
        whole: Whole | None = None,
    ) -> tuple[int, int]:
        """Return (height, width) at which the model sees an image height x width, before the view turns it.

        whole: the image that this one is a tile of: all its tiles are seen at one scale.
        """
        if whole is not None:
            y, x = self._scale(whole, facts, view, name)
            return max(round(height * y), 1), max(round(width * x), 1)
        short, longest = (view.short, view.longest) if view.short else (self.min_size_test, self.max_size_test)
        size = network_size(height, width, facts, pixel_size=self.pixel_size, short=short, longest=longest, source=name)
        return max(round(size[0] * view.scale), 1), max(round(size[1] * view.scale), 1)

    def _scale(self, whole: Whole, facts: Mapping[str, Any], view: View, name: str) -> tuple[float, float]:
        """Pixels at the network per pixel (y, x) of a tile."""
        if whole.scale is not None:
            return whole.scale * view.scale, whole.scale * view.scale
        if self.pixel_size and not (view.short or self.min_size_test):
            own = known_pixel_size(facts, self.pixel_size, source=name)
            return own[0] / self.pixel_size * view.scale, own[1] / self.pixel_size * view.scale
        height, width = self.network_size(*whole.size, facts, view, name=name)
        if height < whole.size[0] * LEAST_SCALE and not self.pixel_size:
            raise DataError(
                f"{name}: the model resizes images to a shorter edge of {view.short or self.min_size_test} pixels, "
                f"which would shrink this one {whole.size[0] / height:.0f} times; say how its tiles are to be seen: "
                "--tile-scale 1 keeps the pixels of the file"
            )
        return height / whole.size[0], width / whole.size[1]

    def scale(self, image: InputImage) -> tuple[float, float]:
        """See Detector.scale."""
        return self._scale(image.whole, image.facts, PLAIN, image.name)

    @property
    def needs_overview(self) -> bool:
        """See Detector.needs_overview."""
        return self.preprocess.measures

    def channels(self, image: InputImage) -> np.ndarray:
        """Return the image (H, W, C) at its own size, channels chosen and scaled; a single channel is not repeated."""
        about = {"source": image.name, "facts": image.facts}
        levels = None
        if image.whole is not None and image.whole.overview is not None:
            known = image.whole.levels
            if self.preprocess not in known:
                known[self.preprocess] = self.preprocess.measure(image.whole.overview, **about)
            levels = known[self.preprocess]
        return self.preprocess.prepare(image.pixels, levels=levels, **about)

    def array(self, channels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return what the model takes (height, width, num_channels), of what `channels` gave."""
        return self.preprocess.expand(resize_image(channels, *size))

    def computing(self) -> AbstractContextManager[Any]:
        """The context in which the model is to be asked, for its precision."""
        dtype = PRECISIONS[self.precision]
        # Not every kind of device knows autocast, even one that is switched off.
        return nullcontext() if dtype is None else torch.autocast(self.model.device.type, dtype=dtype)

    def prepare(self, image: InputImage) -> Prepared:
        """See Detector.prepare."""
        channels = self.channels(image)
        array = self.array(channels, self.network_size(*image.size, image.facts, name=image.name, whole=image.whole))
        return Prepared(image.size, array.shape, array)

    def predict(
        self,
        prepared: Sequence[Prepared],
        *,
        soft_masks: bool = False,
        boxes: Sequence[Predictions] | None = None,
    ) -> list[Predictions]:
        """See Detector.predict."""
        images, sizes = [one.content for one in prepared], [one.size for one in prepared]
        with self.computing():
            if boxes is None:
                return self.model.predict(images, sizes, soft_masks=soft_masks)
            return self.model.predict_masks(images, boxes, sizes, soft_masks=soft_masks)
