"""Predictions of a model, or of a fusion of models, for one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.structures.sample import FIELD, PixelSize

# Key of `provenance`: whether the model was trained with this image.
IN_TRAINING = "in_training"
_OWN_FIELDS = ("id", "file_name", "height", "width", "provenance", FIELD)


@dataclass(repr=False)
class Predictions:
    """N detections of one image; N = 0 is legal everywhere.

    height, width: size of the original image in pixels; all coordinates below refer to it.
    boxes: (N, 4) float32 XYXY half-open. scores: (N,) float32 in [0, 1]. classes: (N,) int64, 0-based.
    quality: (N,) float32 in [0, 1], predicted IoU of each mask with its object; NaN if the model does not predict it;
        None stands for all NaN. Known qualities are part of the score: score = class score x quality, so code that
        ranks, thresholds or fuses scores need not treat them.
    rles: N COCO RLEs of size [height, width], or None for boxes without masks.
    soft_masks: N crops (h, w) uint8, 255 x the probability of every pixel of `soft_mask_window(box)`, or None. They
        allow averaging and thresholding of masks later, from files.
    provenance: plain values on how the predictions were made (config and checkpoint hash, engine, fold, TTA).
    pixel_size: (y, x) micrometres, if known for the image.
    metadata: other image-level fields of the COCO file that are plain values, such as its group, fold and sample.
    """

    image_id: int | str
    file_name: str
    height: int
    width: int
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    rles: list[dict[str, Any]] | None = None
    soft_masks: list[np.ndarray] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    pixel_size: PixelSize | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    quality: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.boxes = np.asarray(self.boxes, dtype=np.float32).reshape(-1, 4)
        self.scores = np.asarray(self.scores, dtype=np.float32).reshape(-1)
        self.classes = np.asarray(self.classes, dtype=np.int64).reshape(-1)
        quality = np.full(len(self.scores), np.nan) if self.quality is None else self.quality
        self.quality = np.asarray(quality, dtype=np.float32).reshape(-1)
        lengths = {name: len(getattr(self, name)) for name in ("boxes", "scores", "classes", "quality")}
        if self.rles is not None:
            lengths["rles"] = len(self.rles)
        if self.soft_masks is not None:
            lengths["soft_masks"] = len(self.soft_masks)
        if len(set(lengths.values())) > 1:
            raise DataError(f"predictions of image {self.file_name or self.image_id} have unequal lengths: {lengths}")
        for index, rle in enumerate(self.rles or ()):
            if list(rle["size"]) != [self.height, self.width]:
                raise DataError(
                    f"predictions of image {self.file_name or self.image_id}: mask {index} has the size {rle['size']}, "
                    f"the image {[self.height, self.width]} (height, width)"
                )

    @classmethod
    def empty(cls, image_id: int | str, file_name: str, height: int, width: int, masks: bool = True) -> Predictions:
        """Return predictions without detections."""
        nothing = np.zeros(0, dtype=np.float32)
        return cls(image_id, file_name, height, width, nothing, nothing, nothing, rles=[] if masks else None)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        scores = f", scores {self.scores.min():.3g} to {self.scores.max():.3g}" if len(self) else ""
        name = self.file_name or f"image {self.image_id}"
        return f"Predictions({name!r}, {self.height} x {self.width}: {len(self)} detections{scores})"

    def select(self, keep: np.ndarray) -> Predictions:
        """Return the detections of `keep`, a mask (N,) bool or indices in the requested order."""
        keep = np.asarray(keep)
        indices = np.flatnonzero(keep) if keep.dtype == bool else keep.astype(np.int64)
        return Predictions(
            image_id=self.image_id,
            file_name=self.file_name,
            height=self.height,
            width=self.width,
            boxes=self.boxes[indices],
            scores=self.scores[indices],
            classes=self.classes[indices],
            rles=None if self.rles is None else [self.rles[index] for index in indices],
            soft_masks=None if self.soft_masks is None else [self.soft_masks[index] for index in indices],
            provenance=dict(self.provenance),
            pixel_size=self.pixel_size,
            metadata=self.metadata,
            quality=self.quality[indices],
        )

    def best_first(self) -> Predictions:
        """Return the detections by descending score; equal scores keep their order."""
        order = np.argsort(-self.scores, kind="stable")
        return self if (order[1:] > order[:-1]).all() else self.select(order)

    @property
    def class_scores(self) -> np.ndarray:
        """Scores (N,) float32 without the factor of mask quality."""
        is_part = self.quality > 0  # False for NaN
        return np.minimum(np.divide(self.scores, self.quality, out=self.scores.copy(), where=is_part), 1)

    def without_masks(self) -> Predictions:
        """Return the boxes with class scores, without masks and their qualities."""
        return replace(self, scores=self.class_scores, quality=None, rles=None, soft_masks=None)

    def with_quality(self, quality: np.ndarray) -> Predictions:
        """Return the detections with other mask qualities (N,), and scores updated by them.

        NaN, for an unknown quality, gives the class score.
        """
        known = np.nan_to_num(np.asarray(quality, dtype=np.float32), nan=1.0)
        return replace(self, scores=self.class_scores * known, quality=quality)


def image_level_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a COCO image that are plain values and have no attribute of their own in Predictions."""
    return {
        name: value
        for name, value in fields.items()
        if name not in _OWN_FIELDS and isinstance(value, (str, int, float)) and value == value  # NaN is not valid JSON
    }


def soft_mask_window(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1, half-open: the pixels of an image of height x width that a box (4,) touches."""
    x0, y0, x1, y1 = soft_mask_windows(box, height, width)[0].tolist()
    return x0, y0, x1, y1


def soft_mask_windows(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """`soft_mask_window` for boxes (N, 4): (N, 4) int64."""
    boxes = np.asarray(boxes).reshape(-1, 4)
    limit = np.array([width, height], dtype=np.int64)
    low = np.clip(np.floor(boxes[:, :2]).astype(np.int64), 0, limit)
    high = np.minimum(np.maximum(np.ceil(boxes[:, 2:]).astype(np.int64), low), limit)
    return np.concatenate([low, high], axis=1)


def move_window(crop: np.ndarray, old: Sequence[int], new: Sequence[int]) -> np.ndarray:
    """Return the pixels of window `new` from a crop of window `old` (both x0, y0, x1, y1); 0 outside the old one."""
    result = np.zeros((new[3] - new[1], new[2] - new[0]), dtype=crop.dtype)
    x0, y0 = max(old[0], new[0]), max(old[1], new[1])
    x1, y1 = min(old[2], new[2]), min(old[3], new[3])
    if x1 > x0 and y1 > y0:
        source = crop[y0 - old[1] : y1 - old[1], x0 - old[0] : x1 - old[0]]
        result[y0 - new[1] : y1 - new[1], x0 - new[0] : x1 - new[0]] = source
    return result


def fit_windows(crops: Sequence[np.ndarray], old: np.ndarray, new: np.ndarray) -> list[np.ndarray]:
    """Change crops of the windows `old` (N, 4) int64 XYXY to the windows `new` by cropping or padding with 0.

    The windows differ if rounding moved a side of a box across a pixel border when it was flipped or scaled and back.
    """
    crops = list(crops)
    for index in np.flatnonzero((old != new).any(axis=1)):
        crops[index] = move_window(crops[index], old[index], new[index])
    return crops
