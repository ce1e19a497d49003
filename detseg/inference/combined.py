"""Several views of an image, by one model or several, put together into one answer.

Two ways (`TestTimeAugmentation.mode`):

    fuse              every model detects in every view; the answers, mapped back, are fused (detseg.fusion)
    merge_then_mask   the boxes of all views and models are merged; then every model gives, in every view, the mask
                      probabilities of the merged boxes, which are mapped back, averaged and thresholded. Every view
                      goes through the network once: its features are kept for the masks

Boxes may come from some of the models and masks from others, or boxes from outside (`predict(boxes=...)`). All places
are those of the input image's pixels; a view is undone on boxes, probabilities and run-lengths (square.py), exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.errors import ConfigError, DataError
from detseg.fusion.fuse import fuse
from detseg.inference.detector import Detector, InputImage, Prepared
from detseg.inference.image_model import ImageModel
from detseg.inference.views import FUSE, PLAIN, Intensities, TestTimeAugmentation, View
from detseg.models.region_segmenter import CachedFeatures
from detseg.structures.boxes import clip_boxes
from detseg.structures.predictions import Predictions, fit_windows, soft_mask_windows
from detseg.structures.rle import encode_crops

# Views of one size go through the network together, up to this many pixels at the network ...
PIXELS_AT_ONCE = 2**21
# ... and features are kept for the masks up to this many (a pyramid of 256 channels holds about 90 bytes a pixel).
PIXELS_KEPT = 2**23


@dataclass(frozen=True)
class Member:
    """A model of the combination. weight: of its boxes and masks. gives_boxes, gives_masks: what it is asked for."""

    model: ImageModel
    weight: float = 1.0
    gives_boxes: bool = True
    gives_masks: bool = True


class CombinedDetector(Detector):
    """See the module.

    Raises:
        ConfigError: no member gives boxes, or none masks; roles that the mode `fuse` does not know.
    """

    def __init__(self, members: Sequence[Member], settings: TestTimeAugmentation) -> None:
        self.members = tuple(members)
        self.settings = settings
        if not any(member.gives_boxes for member in members) or not any(member.gives_masks for member in members):
            raise ConfigError("of the models that are combined, at least one must give boxes and one masks")
        if settings.mode == FUSE and not all(member.gives_boxes and member.gives_masks for member in members):
            raise ConfigError("boxes of some models and masks of others need the mode merge_then_mask")

    def describe(self) -> dict[str, Any]:
        """See Detector.describe."""
        return {"tta": self.settings.describe()}

    @property
    def needs_overview(self) -> bool:
        """See Detector.needs_overview."""
        return any(member.model.needs_overview for member in self.members)

    def scale(self, image: InputImage) -> tuple[float, float]:
        """See Detector.scale; that of the first model."""
        return self.members[0].model.scale(image)

    def prepare(self, image: InputImage) -> Prepared:
        """See Detector.prepare. Every image is alone in its batch: its views fill it."""
        channels: list[np.ndarray] = []
        for index, member in enumerate(self.members):
            same = [i for i in range(index) if self.members[i].model.preprocess == member.model.preprocess]
            channels.append(channels[same[0]] if same else member.model.channels(image))
            for view in self.settings.views:
                member.model.network_size(*image.size, image.facts, view, name=image.name, whole=image.whole)
        facts = dataclasses.replace(image, pixels=image.pixels[:0])
        return Prepared(image.size, object(), (facts, channels))

    def predict(
        self,
        prepared: Sequence[Prepared],
        *,
        soft_masks: bool = False,
        boxes: Sequence[Predictions] | None = None,
    ) -> list[Predictions]:
        """See Detector.predict."""
        answers = []
        for index, one in enumerate(prepared):
            if boxes is not None:
                answers.append(self._merge_then_mask(one, boxes[index], soft_masks))
            elif self.settings.mode == FUSE:
                answers.append(self._fuse(one, soft_masks))
            else:
                answers.append(self._merge_then_mask(one, None, soft_masks))
        return answers

    def _fuse(self, prepared: Prepared, soft_masks: bool) -> Predictions:
        """Every view detects, all are fused."""
        needs_soft = soft_masks or self.settings.fusion.needs_soft_masks
        found: list[Predictions] = []
        weights: list[float] = []
        for batch in self._batches(prepared):
            answers = batch.detect(needs_soft)
            found += answers
            weights += [batch.member.weight] * len(answers)
        fused = self._best(fuse(found, self.settings.fusion, weights))
        return fused if soft_masks else dataclasses.replace(fused, soft_masks=None)

    def _merge_then_mask(self, prepared: Prepared, boxes: Predictions | None, soft_masks: bool) -> Predictions:
        """Merge boxes unless they are given, then average the masks of all views for them."""
        batches = [
            batch
            for batch in self._batches(prepared)
            if batch.member.gives_masks or (boxes is None and batch.member.gives_boxes)
        ]
        _keep_features(batches)
        if boxes is None:
            givers = [batch for batch in batches if batch.member.gives_boxes]
            found = [(batch.boxes(), batch.member.weight) for batch in givers]
            weights = [weight for answers, weight in found for _ in answers]
            boxes = self._best(fuse([one for answers, _ in found for one in answers], self.settings.fusion, weights))
        height, width = prepared.size
        boxes = dataclasses.replace(boxes, boxes=clip_boxes(boxes.boxes, height, width), rles=None, soft_masks=None)
        mean = _MeanMasks(boxes.boxes, height, width)
        if len(boxes):
            for batch in batches:
                if batch.member.gives_masks:
                    batch.add_masks(mean, boxes)
        rles, soft = mean.result(self.settings.fusion.values("mask_threshold", boxes.classes))
        return dataclasses.replace(boxes, rles=rles, soft_masks=soft if soft_masks else None)

    def _best(self, predictions: Predictions) -> Predictions:
        """The best scores, as many as an image may have; fused predictions come by descending score."""
        most = self.settings.max_detections
        return predictions.select(np.arange(most)) if 0 < most < len(predictions) else predictions

    def _batches(self, prepared: Prepared) -> Iterator[_Batch]:
        """Views of one size and model together."""
        image, channels = prepared.content
        for member, own in zip(self.members, channels, strict=True):
            open_batches: dict[tuple[int, ...], _Batch] = {}
            for view, array in _arrays(member.model, image, own, prepared.size, self.settings.views):
                batch = open_batches.get(array.shape)
                if batch is None or batch.pixels + array.shape[0] * array.shape[1] > PIXELS_AT_ONCE:
                    if batch is not None:
                        yield batch
                    batch = open_batches[array.shape] = _Batch(member, prepared.size)
                batch.views.append(view)
                batch.arrays.append(array)
            yield from open_batches.values()


def _arrays(
    model: ImageModel, image: InputImage, channels: np.ndarray, size: tuple[int, int], views: Sequence[View]
) -> Iterator[tuple[View, np.ndarray]]:
    """Every view with what its network sees, (h, w, C); what views share is computed once."""
    value_range = None
    resized: dict[tuple[Intensities, tuple[int, int]], np.ndarray] = {}
    for view in views:
        at_network = model.network_size(*size, image.facts, view, name=image.name, whole=image.whole)
        key = view.intensities, at_network
        if key not in resized:
            changed = channels
            if view.intensities != PLAIN.intensities:
                value_range = value_range or model.preprocess.value_range(channels)
                changed = view.intensities(channels, value_range)
            resized[key] = model.array(changed, at_network)
        yield view, np.ascontiguousarray(view.symmetry.array(resized[key]))


class _Batch:
    """Views of one image, of one size, that go through a model together. size: (height, width) of the image."""

    def __init__(self, member: Member, size: tuple[int, int]) -> None:
        self.member = member
        self.size = size
        self.views: list[View] = []
        self.arrays: list[np.ndarray] = []
        self.keep = False
        self._cached: CachedFeatures | None = None

    @property
    def pixels(self) -> int:
        """At the network, of all views."""
        return sum(array.shape[0] * array.shape[1] for array in self.arrays)

    def detect(self, soft_masks: bool) -> list[Predictions]:
        """Boxes and masks that every view finds, in the pixels of the image."""
        with self.member.model.computing():
            answers = self.member.model.model.predict(self.arrays, self._output_sizes(), soft_masks=soft_masks)
        return self._mapped_back(answers)

    def boxes(self) -> list[Predictions]:
        """Boxes that every view finds, in the pixels of the image."""
        with self.member.model.computing():
            if self.member.model.model.takes_boxes:
                found = self._features().predict(masks=False)
            else:
                found = self.member.model.model.predict(self.arrays, self._output_sizes())
        return self._mapped_back([dataclasses.replace(one, rles=None, soft_masks=None) for one in found])

    def add_masks(self, mean: _MeanMasks, boxes: Predictions) -> None:
        """Add the probabilities that every view gives to boxes of the image."""
        turned = [view.symmetry.predictions(boxes) for view in self.views]
        with self.member.model.computing():
            masks = self._features().soft_masks(turned)
        for view, given, crops in zip(self.views, turned, masks, strict=True):
            back = view.symmetry.inverse
            size = given.height, given.width
            windows = back.boxes(soft_mask_windows(given.boxes, *size), *size).astype(np.int64)
            mean.add([back.array(crop) for crop in crops], windows, self.member.weight)
        self._cached = None  # nothing is asked of these features any more

    def _output_sizes(self) -> list[tuple[int, int]]:
        return [view.symmetry.size(*self.size) for view in self.views]

    def _mapped_back(self, answers: Sequence[Predictions]) -> list[Predictions]:
        return [view.symmetry.inverse.predictions(one) for view, one in zip(self.views, answers, strict=True)]

    def _features(self) -> CachedFeatures:
        """The features of the views, kept for the next question where there is memory for them."""
        if self._cached is not None:
            return self._cached
        features = self.member.model.model.cache_features(self.arrays, self._output_sizes())
        if self.keep:
            self._cached = features
        return features


def _keep_features(batches: Sequence[_Batch]) -> None:
    """Let the first batches keep their features, as many as there is room for; the others look twice."""
    room = PIXELS_KEPT
    for batch in batches:
        room -= batch.pixels
        batch.keep = room >= 0


class _MeanMasks:
    """The weighted mean of mask probabilities over views. boxes: (N, 4) float32 in an image height x width."""

    def __init__(self, boxes: np.ndarray, height: int, width: int) -> None:
        self.size = height, width
        self.windows = soft_mask_windows(boxes, height, width)
        self.weight = 0.0
        self.sums = [np.zeros((y1 - y0, x1 - x0), dtype=np.float32) for x0, y0, x1, y1 in self.windows.tolist()]

    def add(self, crops: Sequence[np.ndarray], windows: np.ndarray, weight: float) -> None:
        """Add N crops uint8 of windows (N, 4) XYXY."""
        self.weight += weight
        factor = np.float32(weight)
        for total, crop in zip(self.sums, fit_windows(crops, windows, self.windows), strict=True):
            total += crop if factor == 1 else crop * factor

    def result(self, thresholds: np.ndarray) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
        """Return RLEs of the pixels with at least `thresholds` (N,) mean probability, and the means as crops uint8."""
        if not self.sums:
            return [], []
        if not self.weight:
            raise DataError("no model gave masks")
        cuts = thresholds * 255 * self.weight
        corners = self.windows[:, :2].tolist()
        crops = [(sums >= cut, *corner) for sums, cut, corner in zip(self.sums, cuts, corners, strict=True)]
        soft = [np.rint(sums / np.float32(self.weight)).astype(np.uint8) for sums in self.sums]
        return encode_crops(crops, *self.size), soft
