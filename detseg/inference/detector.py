"""The seam of prediction: what finds the objects of one array of pixels.

A Detector is a model with its preprocessing (image_model.ImageModel), or several views of an image and several models
put together (combined.CombinedDetector). Whatever goes around it (Predictor: files, thresholds, provenance; a sliding
window: pieces of an image too large for memory) needs no more than these two steps:

    prepared = detector.prepare(InputImage(pixels, facts, name))        # raises DataError for this image alone
    answers = detector.predict([prepared, ...])                         # Predictions in the pixels of the input

so that a sliding window, with or without augmentation at test time, is a Detector around a Detector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from detseg.coco.dataset import ImageRecord
from detseg.errors import DataError
from detseg.structures.predictions import Predictions

# Reading and preparing what comes next while the network computes.

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Return function(item) in the order of the items, computed by `workers` threads ahead of their use.

    At most two results a worker wait. 0 workers: each is computed when it is asked for. An exception of `function` is
    raised where its result would have come. Decoders, OpenCV and NumPy leave Python's lock while they work.
    """
    if not workers:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="detseg-ahead") as pool:
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


# What an image must be to be predicted: an array of a known kind, a file of the size that its data set says.


def check_size(record: ImageRecord, height: int, width: int) -> None:
    """Raise DataError for a file of height x width pixels where the data set says another size."""
    if record.height and record.width and (record.height, record.width) != (height, width):
        raise DataError(
            f"{record.file_name or 'image'}: the file has {height} x {width} pixels (height x width), but the data set "
            f"says {record.height} x {record.width}; its masks belong to another version of the image"
        )


def as_image(array: np.ndarray) -> np.ndarray:
    """Return an array given by the caller as (H, W, C) uint8, uint16 or float32. Raises DataError for anything else."""
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or 0 in array.shape:
        raise DataError(f"expected an image (height, width) or (height, width, channels), got the shape {array.shape}")
    if array.dtype in (np.uint8, np.uint16, np.float32):
        return array
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    raise DataError(f"expected an image of uint8, uint16 or float, got {array.dtype}; convert it to one of them")


@dataclass(frozen=True, eq=False)
class Whole:
    """The image that a tile is a part of, which decides on its size at the network and on its intensities.

    size: (height, width). overview: pixels (h, w, C) from all over it; None where no model asks for them. scale: pixels
    at the network per pixel; None: as the model would see the whole image. levels: what models measured on the
    overview.
    """

    size: tuple[int, int]
    overview: np.ndarray | None = None
    scale: float | None = None
    levels: dict[Hashable, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InputImage:
    """pixels: (H, W, C) uint8, uint16 or float32 as in the file. facts: as `data.images.read_picture` gives them
    (`pixel_size`, `channel_names`). name: what messages call it. whole: the image that this is a tile of, if it is one.
    """

    pixels: np.ndarray
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str = "image"
    whole: Whole | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[:2]


@dataclass(frozen=True)
class Prepared:
    """An image ready for its detector. size: (height, width) of the input, in whose pixels the answer is given. key:
    images of one key may share a batch. content: known to the detector that made it.
    """

    size: tuple[int, int]
    key: Hashable
    content: Any


class Detector(ABC):
    """Finds objects in arrays of pixels; see the module."""

    @abstractmethod
    def prepare(self, image: InputImage) -> Prepared:
        """Bring an image to what `predict` takes. Raises DataError where the model cannot take it."""

    @abstractmethod
    def predict(
        self,
        prepared: Sequence[Prepared],
        *,
        soft_masks: bool = False,
        boxes: Sequence[Predictions] | None = None,
    ) -> list[Predictions]:
        """Find the objects of images of one key, in their own pixels; image_id and file_name are left to the caller.

        boxes: given by somebody else, one Predictions an image: only their masks are predicted, all are in the answer.
        """

    @property
    def needs_overview(self) -> bool:
        """Whether a tile's intensities depend on those of its image (`Whole.overview`)."""
        return True

    def scale(self, image: InputImage) -> tuple[float, float]:
        """Pixels at the network per pixel (y, x) of an image with a `whole`. Raises DataError where it is not known."""
        return 1.0, 1.0

    def describe(self) -> dict[str, Any]:
        """Return what provenance says beyond the model: views, models put together; empty for one model."""
        return {}
