"""Models whose answer is maps, values for every pixel, of which objects are made afterwards.

Maps of several views of an image and of several models are averaged first, those of tiles are blended; what is decoded
then is one set of maps, as if there had been one view of the whole image.
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
        map_names: what the M maps are; with several classes, the last are their probabilities, in order. Those of
            models with the same names can be averaged.
        reach: how far around a pixel the image decides on its maps, in pixels at the network; None where that is not
            known. Tiles that share twice this have the maps of the whole image.
    """

    gives_soft_masks = True
    map_names: tuple[str, ...]
    reach: int | None = None

    @abstractmethod
    def predict_maps(
        self, images: Sequence[np.ndarray], output_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[np.ndarray]:
        """Return maps (M, H, W) float32 of every image, in pixels of the output; arguments as those of `predict`."""

    @abstractmethod
    def decode(
        self, maps: np.ndarray, *, soft_masks: bool = False, level: float | None = None, limited: bool = True
    ) -> Predictions:
        """Return the objects of maps (M, H, W) float32, best first; needs no network.

        level: `level` of the whole image where these are maps of a part of it. limited: no more objects than an image
        may have.
        """

    def level(self, maps: np.ndarray) -> float | None:
        """Return the mean over maps (M, H, W) that `decode` goes by, as a threshold; None where there is none."""
        return None

    def pixel_shares(
        self, maps: np.ndarray, layers: LabelLayers, ignore: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Return two numbers of pixels, (2,) int64, for every score that is their ratio.

        `iou_NAME`, of every class of pixels that the model learns beside the foreground: those of the class both by the
        maps (M, H, W) and in truth, and those by either. `pixel_accuracy`, where it learns background, inside and
        boundary: those whose class is right, and all.

        layers: the objects of the image. ignore: (H, W) bool, pixels that do not count.
        """
        return {}

    def turned(self, maps: np.ndarray, symmetry: Symmetry) -> np.ndarray:
        """Return the maps (M, H, W) of an image as those of what a symmetry makes of it.

        Numbers without a direction only move with their pixels; a model whose maps hold directions turns these too.
        """
        return symmetry.array(maps.transpose(1, 2, 0)).transpose(2, 0, 1)

    def with_classes(self, maps: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return maps of a model with the same classes in another order: class k becomes class places[k]."""
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
