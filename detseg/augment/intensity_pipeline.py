"""Changes of intensities by Albumentations, with randomness that is a function of the sample's generator alone."""

from __future__ import annotations

import json
import random
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from detseg.config.intensity_transforms import build_intensity_transforms, takes_image
from detseg.errors import DataError

if TYPE_CHECKING:
    from detseg.config import Config


class IntensityPipeline:
    """The transforms of INPUT.ALBUMENTATIONS.

    entries: as the key has them; they were checked when the configuration was loaded. num_channels: of the model. The
    library is imported, and the transforms are made, with the first image: in every worker of a loader anew.
    """

    def __init__(self, entries: list[Any], num_channels: int = 3) -> None:
        self.entries = entries
        self.num_channels = num_channels

    @classmethod
    def from_config(cls, cfg: Config) -> IntensityPipeline:
        """Read INPUT.ALBUMENTATIONS."""
        return cls(cfg.INPUT.ALBUMENTATIONS, len(cfg.MODEL.PIXEL_MEAN))

    def __call__(self, image: np.ndarray, rng: np.random.Generator, value_range: tuple[float, float]) -> np.ndarray:
        """Return a changed image of the same size, dtype and range.

        image: (H, W, C) uint8, or uint16 or float32 within value_range, which Albumentations sees as fractions of it.
        Where a transform takes colour images only, one channel is repeated to as many as the model takes.
        """
        if image.shape[2] == 1 and self.num_channels > 1 and not self._takes_gray:
            image = np.repeat(image, self.num_channels, axis=2)
        seed = int(rng.integers(2**63))
        self._transforms.set_random_state(np.random.default_rng(seed), random.Random(seed))
        if image.dtype == np.uint8:
            return self._apply(image)
        low, high = value_range
        scale = max(high - low, 1e-12)
        fractions = np.clip((image - np.float32(low)) * np.float32(1 / scale), 0, 1, dtype=np.float32)
        changed = np.clip(self._apply(fractions), 0, 1) * np.float32(scale) + np.float32(low)
        return np.rint(changed).astype(image.dtype) if image.dtype.kind == "u" else changed.astype(np.float32)

    def _apply(self, image: np.ndarray) -> np.ndarray:
        # A transform that is skipped hands the image itself on: none may write into it.
        changed = self._transforms(image=np.array(image, order="C"))["image"].reshape(image.shape)
        if changed.dtype != image.dtype:
            raise DataError(f"INPUT.ALBUMENTATIONS made {changed.dtype} of an image of {image.dtype}")
        return changed

    @cached_property
    def _transforms(self) -> Any:
        return build_intensity_transforms(self.entries)

    @cached_property
    def _takes_gray(self) -> bool:
        ramp = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64, 1)
        return takes_image(self.entries, ramp)

    def __getstate__(self) -> dict[str, Any]:
        return {"entries": self.entries, "num_channels": self.num_channels}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IntensityPipeline):
            return NotImplemented
        return self.__getstate__() == other.__getstate__()

    def __hash__(self) -> int:
        return hash((json.dumps(self.entries, sort_keys=True), self.num_channels))
