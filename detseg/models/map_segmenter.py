"""Models that predict maps, values for every pixel, from which objects are formed afterwards.

Maps of several views of an image, and of several models, are averaged first, and those of tiles are blended; then a
single set of maps is decoded, as for one view of the whole image.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from detseg.models.base import Segmenter
from detseg.structures.label_layers import LabelLayers
from detseg.structures.predictions import Predictions
from detseg.structures.symmetries import Symmetry


class MapSegmenter(Segmenter):
    """A model that predicts maps (M, H, W) and decodes them to objects.

    Attributes:
        map_names: names of the M maps; with several classes, the last ones are their probabilities, in order. Maps of
            models with the same names can be averaged.
        reach: radius of the receptive field, in pixels at network scale; None if unknown. Tiles with twice this overlap
            give the maps of the whole image.
    """

    gives_soft_masks = True
    map_names: tuple[str, ...]
    reach: int | None = None

    @abstractmethod
    def predict_maps(
        self, images: Sequence[np.ndarray], output_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[np.ndarray]:
        """Return maps (M, H, W) float32 of every image, in pixels of the output; arguments as in `predict`."""

    @abstractmethod
    def decode(
        self, maps: np.ndarray, *, soft_masks: bool = False, level: float | None = None, limited: bool = True
    ) -> Predictions:
        """Return the objects of maps (M, H, W) float32, best first; needs no network.

        level: `level` of the whole image if these maps are of a part of it. limited: apply the limit on objects per
        image.
        """

    def level(self, maps: np.ndarray) -> float | None:
        """Return the mean over maps (M, H, W) that `decode` uses as a threshold; None if it uses none."""
        return None

    def pixel_shares(
        self, maps: np.ndarray, layers: LabelLayers, ignore: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Return two numbers of pixels, (2,) int64, for every score that is their ratio.

        `iou_NAME`, for every pixel class that the model learns besides foreground: intersection and union of the class
        by the maps (M, H, W) and in truth. `pixel_accuracy`, if it learns background, inside and boundary: pixels with
        the right class, and all pixels.

        layers: the objects of the image. ignore: (H, W) bool, pixels that do not count.
        """
        return {}

    def turned(self, maps: np.ndarray, symmetry: Symmetry) -> np.ndarray:
        """Return the maps (M, H, W) of an image, transformed by a symmetry.

        Values without a direction only move with their pixels; a model with directions in its maps transforms these.
        """
        return symmetry.array(maps.transpose(1, 2, 0)).transpose(2, 0, 1)

    def with_classes(self, maps: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return the maps with classes in another order: class k becomes class places[k]."""
        if len(places) == 1:
            return maps
        ordered = maps.copy()
        ordered[len(maps) - len(places) + places] = maps[-len(places) :]
        return ordered

    def predict(
        self,
        images: Sequence[np.ndarray],
        output_sizes: Sequence[tuple[int, int]] | None = None,
        *,
        soft_masks: bool = False,
    ) -> list[Predictions]:
        """See Segmenter.predict."""
        return [self.decode(maps, soft_masks=soft_masks) for maps in self.predict_maps(images, output_sizes)]
