"""The detector: finds the objects in one pixel array with one model, or with several models and views combined.

The code around it (files, thresholds, provenance: `Predictor`; tiles of images too large for memory: `TilePredictor`)
uses only these two steps:

    prepared = detector.prepare(InputImage(pixels, facts, name))        # raises DataError for this image only
    predictions = detector.predict([prepared, ...])                     # in pixels of the input

Views and models are combined in one of three ways (`TestTimeAugmentation.mode`):

    fuse              every model detects in every view; the predictions, mapped back, are fused (detseg.fusion)
    merge_then_mask   the boxes of all views and models are merged; then every model predicts, in every view, mask
                      probabilities for the merged boxes, which are mapped back, averaged and thresholded. Every view
                      passes through the network once: its features are kept for the masks
    average_maps      the maps of all views and models are mapped back and averaged; objects are made from the mean

Boxes and masks may come from different models, and external boxes can be given masks (`predict(boxes=...)`). All
coordinates are pixels of the input image; views are inverted exactly on boxes, probabilities and run lengths.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.errors import ConfigError
from detseg.fusion.fuse import fuse
from detseg.inference.image_model import ImageModel, InputImage, ParentImage
from detseg.inference.object_size import estimate_diameter
from detseg.inference.tta import AVERAGE_MAPS, FUSE, MERGE_THEN_MASK, NO_SHORT_VIEWS, TestTimeAugmentation
from detseg.inference.view_batch import MeanMasks, ViewBatch, network_inputs
from detseg.inference.views import Size
from detseg.models.map_segmenter import MapSegmenter
from detseg.models.region_segmenter import Keep, RegionSegmenter
from detseg.structures.boxes import clip_boxes
from detseg.structures.predictions import Predictions

# Views of one size are batched up to this many pixels at the network's input ...
PIXELS_AT_ONCE = 2**21
# ... and features are kept for the masks up to this many (a pyramid of 256 channels takes about 90 bytes per pixel).
PIXELS_KEPT = 2**23


ReadWindow = Callable[[int, int, int, int], np.ndarray]


@dataclass(frozen=True)
class PreparedImage:
    """An image prepared for the detector that made it.

    size: (height, width) of the input; predictions are in its pixels. key: images with equal keys may share a batch.
    content: private to the detector.
    """

    size: tuple[int, int]
    key: Hashable
    content: Any


class Detector:
    """One or several models with views; see the module.

    Raises:
        ConfigError: no model provides boxes, or none masks; or the mode does not support the models or their roles.
    """

    def __init__(self, models: Sequence[ImageModel], settings: TestTimeAugmentation | None = None) -> None:
        self.models = tuple(models)
        self.settings = (settings or TestTimeAugmentation()).resolved(self.takes_boxes, self.gives_maps)
        # Called by `predict` with the maps of each image, in order, before objects are made from them; not for tiles.
        self.on_maps: Callable[[np.ndarray], None] | None = None
        # Other threads prepare images and estimate object sizes while one predicts.
        self._in_use = threading.Lock()
        if self.sizing_model is not None and any(view.short for view in self.settings.views):
            raise ConfigError(NO_SHORT_VIEWS)
        if self.is_plain:
            return
        if not any(model.gives_boxes for model in models) or not any(model.gives_masks for model in models):
            raise ConfigError("of the models that are combined, at least one must give boxes and one masks")
        whole = all(model.gives_boxes and model.gives_masks for model in models)
        if self.settings.mode != MERGE_THEN_MASK and not whole:
            raise ConfigError("boxes of some models and masks of others need the mode merge_then_mask")
        if self.settings.mode == AVERAGE_MAPS and not self.gives_maps:
            raise ConfigError(
                "the mode average_maps needs models that all make objects from the same maps, which these do not; "
                "use the mode fuse (--tta-mode, TEST.AUG.MODE)"
            )
        if self.settings.mode == MERGE_THEN_MASK and not self.takes_boxes:
            raise ConfigError(
                "the mode merge_then_mask needs models that predict masks for merged boxes, which not all of these "
                "models do; use the mode fuse (--tta-mode, TEST.AUG.MODE)"
            )

    @property
    def is_plain(self) -> bool:
        """Whether there is a single model, which sees every image unchanged."""
        return len(self.models) == 1 and self.settings.is_plain

    @property
    def takes_boxes(self) -> bool:
        """Whether `predict` can give masks to external boxes."""
        return all(model.segmenter.takes_boxes for model in self.models if model.gives_masks)

    @property
    def gives_maps(self) -> bool:
        """Whether all models predict maps, and the same ones."""
        maps = {getattr(model.segmenter, "map_names", None) for model in self.models}
        return None not in maps and len(maps) == 1

    @property
    def decodes_maps(self) -> bool:
        """Whether objects are made from the maps of all views and models together, so that `maps` and `decode` do the
        same as `predict`.
        """
        return self.gives_maps and (self.is_plain or self.settings.mode == AVERAGE_MAPS)

    @property
    def decoder(self) -> MapSegmenter:
        """The model that makes objects from maps: the first."""
        segmenter = self.models[0].segmenter
        assert isinstance(segmenter, MapSegmenter)
        return segmenter

    @property
    def reach(self) -> int | None:
        """The largest MapSegmenter.reach over all views and models; None if it is not known."""
        reaches = [model.segmenter.reach for model in self.models]
        if None in reaches or any(view.short for view in self.settings.views):
            return None
        return math.ceil(max(reaches) / min(view.scale for view in self.settings.views))

    @property
    def gives_soft_masks(self) -> bool:
        """Whether `predict` can return mask probabilities."""
        is_averaged = not self.is_plain and self.settings.mode == MERGE_THEN_MASK
        return is_averaged or all(model.segmenter.gives_soft_masks for model in self.models)

    @property
    def sizing_model(self) -> ImageModel | None:
        """The first model whose input is scaled by object size, and which therefore estimates it; None without one."""
        return next((model for model in self.models if model.size.object_size), None)

    def estimate_diameter(self, read: ReadWindow, parent: ParentImage) -> tuple[float, int]:
        """Estimate the object diameter of an image in pixels, and count the objects used; see `inference.object_size`.

        read: returns the pixels (h, w, C) of a window (y0, x0, y1, x1) of the image.
        """
        model = self.sizing_model
        assert model is not None

        def network_input(window: tuple[int, int, int, int], size: Size) -> np.ndarray:
            part = InputImage(read(*window), parent.facts, parent.name, parent)
            return model.resized(model.channels(part), size)

        object_size = model.size.object_size
        with self._in_use, model.autocast():
            return estimate_diameter(
                model.segmenter,
                network_input,
                parent.size,
                object_size=object_size,
                typical=model.typical_diameter or object_size,
            )

    @property
    def needs_overview(self) -> bool:
        """Whether the intensities of a tile depend on those of its image (`ParentImage.overview`)."""
        return any(model.preprocess.measures for model in self.models)

    def tile_scale(self, parent: ParentImage) -> tuple[float, float]:
        """See ImageModel.tile_scale; of the first model."""
        return self.models[0].tile_scale(parent)

    def describe(self) -> dict[str, Any]:
        """Return what provenance says in addition to the model: views and modes."""
        return {} if self.is_plain else {"tta": self.settings.describe()}

    def check_intensities(self, image: InputImage) -> None:
        """See ImageModel.check_intensities."""
        for model in self.models:
            model.check_intensities(image)

    def prepare(self, image: InputImage) -> PreparedImage:
        """Prepare an image for `predict`. Raises DataError if a model does not accept it."""
        inputs: list[tuple[np.ndarray, list[list[Size]]]] = []
        for index, model in enumerate(self.models):
            same = [i for i in range(index) if self.models[i].preprocess == model.preprocess]
            channels = inputs[same[0]][0] if same else model.channels(image)
            sizes = []
            for view in self.settings.views:
                before = [model.network_size(image)] if view.resized_twice else []
                sizes.append([*before, model.network_size(image, view)])
            inputs.append((channels, sizes))
        if self.is_plain:
            array = self.models[0].resized(inputs[0][0], *inputs[0][1][0])
            return PreparedImage(image.size, array.shape, array)
        # A key of its own: the views of one image already fill a batch.
        return PreparedImage(image.size, object(), inputs)

    def predict(
        self,
        prepared: Sequence[PreparedImage],
        *,
        soft_masks: bool = False,
        boxes: Sequence[Predictions] | None = None,
        keep: Keep | None = None,
    ) -> list[Predictions]:
        """Find the objects of images with equal keys, in pixels of each; the caller sets image_id and file_name.

        boxes: external boxes, one Predictions per image: only their masks are predicted, and the result has all of
        them. keep: says by score and class which objects the caller keeps; others may be dropped before their masks are
        computed. All objects take part in merging views and models.
        """
        with self._in_use:
            return self._predict(prepared, soft_masks, boxes, keep)

    def _predict(
        self,
        prepared: Sequence[PreparedImage],
        soft_masks: bool,
        boxes: Sequence[Predictions] | None,
        keep: Keep | None,
    ) -> list[Predictions]:
        if self.decodes_maps and boxes is None:
            every = self._maps(prepared)
            if self.on_maps is not None:
                for maps in every:
                    self.on_maps(maps)
            return [self.decoder.decode(maps, soft_masks=soft_masks) for maps in every]
        if self.is_plain:
            model, images, sizes = self.models[0], [one.content for one in prepared], [one.size for one in prepared]
            with model.autocast():
                if boxes is not None:
                    return model.segmenter.predict_masks(images, boxes, sizes, soft_masks=soft_masks)
                if keep is not None and isinstance(model.segmenter, RegionSegmenter):
                    return model.segmenter.cache_features(images, sizes).predict(soft_masks=soft_masks, keep=keep)
                return model.segmenter.predict(images, sizes, soft_masks=soft_masks)
        if boxes is not None:
            pairs = zip(prepared, boxes, strict=True)
            return [self._merge_then_mask(one, given, soft_masks) for one, given in pairs]
        if self.settings.mode == FUSE:
            return [self._fuse(one, soft_masks) for one in prepared]
        return [self._merge_then_mask(one, None, soft_masks, keep) for one in prepared]

    def maps(self, prepared: Sequence[PreparedImage]) -> list[np.ndarray]:
        """Return the maps of images with equal keys, averaged over all views and models, (M, H, W) float32 at the size
        of each image; `decoder` makes objects from them.
        """
        with self._in_use:
            return self._maps(prepared)

    def _maps(self, prepared: Sequence[PreparedImage]) -> list[np.ndarray]:
        if self.is_plain:
            model = self.models[0]
            with model.autocast():
                return model.segmenter.predict_maps([one.content for one in prepared], [one.size for one in prepared])
        means = []
        for one in prepared:
            total, weight = None, 0.0
            for batch in self._batches(one):
                for maps in batch.maps():
                    weighted = maps * np.float32(batch.model.weight)
                    total = weighted if total is None else total + weighted
                    weight += batch.model.weight
            means.append(total / np.float32(weight))
        return means

    def _fuse(self, prepared: PreparedImage, soft_masks: bool) -> Predictions:
        """Detect in every view and fuse all detections."""
        needs_soft = soft_masks or self.settings.fusion.needs_soft_masks
        found: list[Predictions] = []
        weights: list[float] = []
        for batch in self._batches(prepared):
            found += batch.detect(needs_soft and batch.model.segmenter.gives_soft_masks)
            weights += [batch.model.weight] * len(batch.views)
        fused = self._best(fuse(found, self.settings.fusion, weights))
        return fused if soft_masks else dataclasses.replace(fused, soft_masks=None)

    def _merge_then_mask(
        self, prepared: PreparedImage, boxes: Predictions | None, soft_masks: bool, keep: Keep | None = None
    ) -> Predictions:
        """Merge boxes unless they are given, then average their masks over all views."""
        batches = [
            batch
            for batch in self._batches(prepared)
            if batch.model.gives_masks or (boxes is None and batch.model.gives_boxes)
        ]
        left = PIXELS_KEPT
        for batch in batches:  # features that do not fit are computed again
            left -= batch.pixels
            batch.keep = left >= 0
        merged = boxes
        if merged is None:
            found: list[Predictions] = []
            weights: list[float] = []
            for batch in batches:
                if batch.model.gives_boxes:
                    found += batch.boxes()
                    weights += [batch.model.weight] * len(batch.views)
            merged = self._best(fuse(found, self.settings.fusion, weights))
            merged = merged if keep is None else merged.select(keep(merged.scores, merged.classes))
        merged = dataclasses.replace(merged, boxes=clip_boxes(merged.boxes, *prepared.size)).without_masks()
        mean = MeanMasks(merged)
        if len(merged):
            for batch in batches:
                if batch.model.gives_masks:
                    batch.add_masks(mean)
        result = mean.result(self.settings.fusion.values("mask_threshold", merged.classes))
        result = result if soft_masks else dataclasses.replace(result, soft_masks=None)
        return result if boxes is not None else result.best_first()

    def _best(self, predictions: Predictions) -> Predictions:
        """Keep the best scores, up to the maximum per image; fused predictions are sorted by descending score."""
        most = self.settings.max_detections
        return predictions.select(np.arange(most)) if 0 < most < len(predictions) else predictions

    def _batches(self, prepared: PreparedImage) -> Iterator[ViewBatch]:
        """Yield views of the same size and model in batches."""
        for model, (channels, sizes) in zip(self.models, prepared.content, strict=True):
            open_batches: dict[tuple[int, ...], ViewBatch] = {}
            for view, array in network_inputs(model, channels, self.settings.views, sizes):
                batch = open_batches.get(array.shape)
                if batch is None or batch.pixels + array.shape[0] * array.shape[1] > PIXELS_AT_ONCE:
                    if batch is not None:
                        yield batch
                    batch = open_batches[array.shape] = ViewBatch(model, prepared.size)
                batch.views.append(view)
                batch.arrays.append(array)
            yield from open_batches.values()
