"""Pixel embeddings, similar within an object and different between neighbours, from which objects are grown or
clustered.

Embeddings of two views or models are unrelated, yet they can be averaged: what is constant on an object in each is
constant in the mean, and what differs between two objects in one of them differs in the mean too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.config.options import Problems, key, part
from detseg.data.pixel_classes import ClassMasks, compared_classes, pixel_classes
from detseg.models.bottom_up.binary import foreground_losses
from detseg.models.bottom_up.clustering import AGGLOMERATIVE, HDBSCAN, INSTALL, MEAN_SHIFT, objects_by_clustering
from detseg.models.bottom_up.contrast import BINARY, ContrastOptions, embedding_loss
from detseg.models.bottom_up.growing import density, mean_vectors, objects_from_seeds, unit_vectors
from detseg.models.bottom_up.losses import class_losses, mean_loss, pixel_ious
from detseg.models.bottom_up.seeds import edge_distances
from detseg.models.bottom_up.unet import UNet, UNetOptions

GROWING = "growing"
HEAD, DENSITY = "head", "density"


@dataclass(frozen=True)
class EmbeddingOptions(UNetOptions):
    """size: dimensions of an embedding. objects: how objects are formed. seeds: from which map objects grow;
    seed_threshold: on that map. grid: see `objects_by_clustering`. loss_weight: of the embedding loss, relative to the
    others. boundary_width: see `pixel_classes`.
    """

    size: int = key("MODEL.EMBEDDING.SIZE", at_least=2, at_most=64)
    objects: str = key("MODEL.EMBEDDING.OBJECTS", choices=(GROWING, AGGLOMERATIVE, MEAN_SHIFT, HDBSCAN))
    seeds: str = key("MODEL.EMBEDDING.SEEDS", choices=(HEAD, DENSITY))
    seed_threshold: float = key("MODEL.EMBEDDING.SEED_THRESHOLD", above=0, below=1)
    grid: tuple[int, ...] = key("MODEL.EMBEDDING.GRID", at_least=8, length=2)
    loss_weight: float = key("MODEL.EMBEDDING.LOSS_WEIGHT", above=0)
    boundary_width: int = key("BOUNDARY_WIDTH", at_least=1, at_most=32)
    contrast: ContrastOptions = part(ContrastOptions)

    @property
    def tells_classes(self) -> bool:
        """Whether pixel classes are predicted from the embedding, instead of heads for foreground and seeds."""
        return self.contrast.loss == BINARY

    @property
    def pixel_classes(self) -> int:
        """Number of pixel classes, each with a value in CLASS_WEIGHTS."""
        return 3 if self.tells_classes else 2

    def check(self, problems: Problems) -> None:
        super().check(problems)
        if self.objects in (MEAN_SHIFT, HDBSCAN) and find_spec("sklearn") is None:
            problems.add("MODEL.EMBEDDING.OBJECTS", INSTALL)


class PixelEmbedding(UNet):
    """See the module.

    Foreground and seeds, the distance to an object's edge, are separate heads; with the binary loss a single head
    predicts three pixel classes from the embedding: background, inside, boundary to another object.
    """

    @property
    def system_heads(self) -> Mapping[str, int]:
        """See UNet."""
        heads = {"embedding": self.options.size}
        return heads if self.options.tells_classes else heads | {"foreground": 1, "seed": 1}

    @property
    def system_maps(self) -> tuple[str, ...]:
        """See UNet."""
        return ("foreground", "seed", *(f"embedding {number}" for number in range(self.options.size)))

    def __init__(self, options: EmbeddingOptions) -> None:
        super().__init__(options)
        if options.tells_classes:
            # a hidden layer: embeddings of many objects must all map to inside, and those of their edges to boundary
            self.pixels = nn.Sequential(nn.Conv2d(options.size, 32, 1), nn.ReLU(), nn.Conv2d(32, 3, 1))
            for layer in (self.pixels[0], self.pixels[2]):
                # components of a unit vector are small; with default weights the classes were not learned at all
                nn.init.xavier_uniform_(layer.weight, gain=4)
                nn.init.zeros_(layer.bias)

    def targets(self, labels: np.ndarray) -> dict[str, np.ndarray]:
        """See UNet.targets."""
        if self.options.tells_classes:
            return {"labels": labels, "pixels": pixel_classes(labels, self.options.boundary_width)}
        return {"labels": labels, "foreground": labels > 0, "seed": edge_distances(labels)}

    def system_losses(
        self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], share: Tensor
    ) -> dict[str, Tensor]:
        """See UNet.system_losses."""
        options = self.options.losses
        of_pairs = embedding_loss(logits["embedding"], targets["labels"], share, self.options.contrast)
        losses = {"loss_embedding": of_pairs * self.options.loss_weight}
        if self.options.tells_classes:
            own, target = logits["pixels"], targets["pixels"]
            losses |= class_losses("pixels", own, target, share, options.names, options.class_weights)
            return losses | pixel_ious(own, target, share, ("inside", "boundary"))
        losses |= foreground_losses(self.options, logits["foreground"], targets["foreground"], share)
        seed = F.binary_cross_entropy_with_logits(logits["seed"][:, 0].float(), targets["seed"], reduction="none")
        return losses | {"loss_seed": mean_loss(seed, share)}

    def system_maps_of(self, logits: Mapping[str, Tensor]) -> Tensor:
        """See UNet.system_maps_of."""
        if self.options.tells_classes:
            background, inside, _ = logits["pixels"].float().softmax(dim=1).unbind(dim=1)
            own = [(1 - background)[:, None], inside[:, None]]
        else:
            own = [logits[name].float().sigmoid() for name in ("foreground", "seed")]
        return torch.cat([*own, logits["embedding"]], dim=1)

    def compared_pixels(self, maps: np.ndarray, labels: np.ndarray) -> ClassMasks:
        """See UNet.compared_pixels."""
        if not self.options.tells_classes:
            return {}
        foreground, inside = maps[:2]
        return compared_classes(
            np.stack([1 - foreground, inside, foreground - inside]), labels, self.options.boundary_width
        )

    def objects(self, maps: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See UNet.objects; the quality of an object is the length of its mean unit vector, a measure of similarity."""
        options, similarity = self.options, self.options.contrast.similarity
        unit = unit_vectors(maps[2:])
        if options.objects == GROWING:
            height = maps[1] if options.seeds == HEAD else density(unit, mask)
            labels = objects_from_seeds(height, mask, unit, threshold=options.seed_threshold, similarity=similarity)
        else:
            labels = objects_by_clustering(mask, unit, method=options.objects, grid=options.grid, similarity=similarity)
        return labels, np.linalg.norm(mean_vectors(labels, unit)[1:], axis=1).clip(0, 1)

    def _logits(self, images: Tensor) -> dict[str, Tensor]:
        logits = super()._logits(images)
        logits["embedding"] = F.normalize(logits["embedding"].float(), dim=1)
        if self.options.tells_classes:
            logits["pixels"] = self.pixels(logits["embedding"])
        return logits
