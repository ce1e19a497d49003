"""The detections of all members for one image in one list, best first, and the clusters of those of one object."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.fusion.options import FusionOptions
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.boxes import clip_boxes
from detseg.structures.runs import Runs


@dataclass(frozen=True)
class Detections:
    """N detections in descending order of score x weight of their member, ties by box, so members may come in any
    order.

    boxes: (N, 4) float64 XYXY, clipped to the image. scores: (N,) float64, as given by the members. quality: (N,)
    float64, of the masks, NaN if unknown. weights: (N,) float64, of their members. classes, members: (N,) int64.
    rles, soft_masks: None for a detection without one. given_boxes: (N, 4) float64, boxes as given by the members,
    which are the windows of the soft masks. runs: pixels of the N masks as vertical runs; none for a detection without
    mask.
    """

    height: int
    width: int
    boxes: np.ndarray
    scores: np.ndarray
    quality: np.ndarray
    weights: np.ndarray
    classes: np.ndarray
    members: np.ndarray
    rles: list[dict[str, Any] | None]
    soft_masks: list[np.ndarray | None]
    given_boxes: np.ndarray
    runs: Runs

    @classmethod
    def gather(cls, members: Sequence[Predictions], weights: Sequence[float], options: FusionOptions) -> Detections:
        """Collect the detections of members that `check_members` has accepted.

        Scores below `options.min_score`, boxes without area and masks without pixels are left out.
        """
        height, width = members[0].height, members[0].width
        boxes = np.concatenate([member.boxes for member in members])
        scores = np.concatenate([member.scores for member in members]).astype(np.float64)
        classes = np.concatenate([member.classes for member in members])
        lengths = [len(member) for member in members]
        weight = np.repeat(np.asarray(weights, dtype=np.float64), lengths)
        inside = clip_boxes(boxes, height, width).astype(np.float64)
        rles = [rle for member in members for rle in (member.rles or [None] * len(member))]
        soft_masks = [soft for member in members for soft in (member.soft_masks or [None] * len(member))]
        has_mask = np.array([rle is not None for rle in rles], dtype=bool)

        keep = scores >= options.values("min_score", classes)
        # A detection with a mask is kept whatever its box; one without must have a box with area.
        keep &= has_mask | ((inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1]))
        order = np.lexsort((classes, *inside.T[::-1], -scores * weight))
        order = order[keep[order]]
        masked = np.flatnonzero(has_mask[order])
        runs = rle_codec.read_runs([rles[index] for index in order[masked]]).within_columns()
        sizes = np.full(len(order), height), np.full(len(order), width)
        found = cls(
            height=height,
            width=width,
            boxes=inside[order],
            scores=scores[order],
            quality=np.concatenate([member.quality for member in members])[order].astype(np.float64),
            weights=weight[order],
            classes=classes[order],
            members=np.repeat(np.arange(len(members)), lengths)[order],
            rles=[rles[index] for index in order],
            soft_masks=[soft_masks[index] for index in order],
            given_boxes=boxes[order].astype(np.float64),
            runs=Runs(runs.starts, runs.ends, masked[runs.owners], *sizes),
        )
        empty = has_mask[order] & ~found.has_mask
        return found.select(np.flatnonzero(~empty)) if empty.any() else found

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, keep: np.ndarray) -> Detections:
        """Return the detections with the indices `keep`, ascending (M,) int64."""
        arrays = ("boxes", "scores", "quality", "weights", "classes", "members", "given_boxes")
        return dataclasses.replace(
            self,
            **{name: getattr(self, name)[keep] for name in arrays},
            rles=[self.rles[index] for index in keep],
            soft_masks=[self.soft_masks[index] for index in keep],
            runs=self.runs.select(keep),
        )

    @property
    def weighted_scores(self) -> np.ndarray:
        return self.scores * self.weights

    @property
    def has_mask(self) -> np.ndarray:
        """(N,) bool, which detections have a mask."""
        return np.diff(self.runs.bounds) > 0


def check_members(members: Sequence[Predictions]) -> None:
    """Raise DataError if there are no members, if their image ids or sizes differ, or for invalid scores or boxes."""
    if not members:
        raise DataError("nothing to fuse; give the predictions of at least one member")
    first = members[0]
    for position, member in enumerate(members):
        place = f"member {position} of image {member.file_name or member.image_id}"
        if member.image_id != first.image_id:
            raise DataError(
                f"{place}: its image id is {member.image_id!r}, that of member 0 {first.image_id!r}; fuse predictions "
                "of one image at a time"
            )
        if (member.height, member.width) != (first.height, first.width):
            raise DataError(
                f"{place}: its size is {member.height} x {member.width} pixels (height x width), that of member 0 "
                f"{first.height} x {first.width}; predict at the original size"
            )
        wrong = np.flatnonzero(~((member.scores >= 0) & (member.scores <= 1)))
        if len(wrong):
            raise DataError(
                f"{place}: detection {wrong[0]} has the score {member.scores[wrong[0]]}, expected a number from 0 to 1"
            )
        wrong = np.flatnonzero(~np.isfinite(member.boxes).all(axis=1))
        if len(wrong):
            raise DataError(
                f"{place}: detection {wrong[0]} has the box {member.boxes[wrong[0]].tolist()}, expected finite numbers"
            )


@dataclass(frozen=True)
class Clusters:
    """K clusters of detections of one object each, and the scores, classes and boxes that follow from them.

    number: (N,) int64, the cluster 0..K-1 of every detection. leaders: (K,) int64, the best detection of each cluster,
    ascending. weights: (M,) float64 of all members, including those without detections.
    """

    detections: Detections
    number: np.ndarray
    leaders: np.ndarray
    weights: np.ndarray

    @classmethod
    def of_leaders(cls, detections: Detections, leader: np.ndarray, weights: np.ndarray) -> Clusters:
        """Group the detections by their leader (N,) int64."""
        leaders, number = np.unique(leader, return_inverse=True)
        return cls(detections, number.reshape(-1), leaders, weights)

    def __len__(self) -> int:
        return len(self.leaders)

    def best_of_members(self) -> Clusters:
        """Return the clusters with only the best detection of each member."""
        keys = self.number * len(self.weights) + self.detections.members
        keep = np.sort(np.unique(keys, return_index=True)[1])
        # A leader is the best of its cluster, and therefore of its member.
        leaders = np.searchsorted(keep, self.leaders)
        return Clusters(self.detections.select(keep), self.number[keep], leaders, self.weights)

    def found_by(self) -> tuple[np.ndarray, np.ndarray]:
        """Return how many members (K,) int64 found each cluster, and the sum (K,) of their weights."""
        pairs = np.unique(self.number * len(self.weights) + self.detections.members)
        cluster, member = np.divmod(pairs, len(self.weights))
        return np.bincount(cluster, minlength=len(self)), np.bincount(cluster, self.weights[member], len(self))

    def scores(self, rule: str, agreement: float) -> np.ndarray:
        """Return the scores (K,) float64 in [0, 1]; `FusionOptions` explains the rules."""
        total = self.weights.sum()
        weighted = self.detections.weighted_scores
        sizes = np.bincount(self.number, minlength=len(self))
        sums = np.bincount(self.number, weighted, len(self))
        of_detections = np.bincount(self.number, self.detections.weights, len(self))
        of_members = self.found_by()[1]
        if rule == "max":
            scores = weighted[self.leaders] / self.weights.max()
        elif rule == "mean":
            scores = sums / of_detections
        elif rule == "avg":
            scores = sums / sizes * np.minimum(sizes, len(self.weights)) / total
        elif rule == "box_and_model_avg":
            scores = sums / of_detections * of_members / total
        else:  # absent_model_aware_avg
            scores = sums / (of_detections + total - of_members)
        if agreement:
            scores = scores * (of_members / total) ** agreement
        return np.clip(scores, 0.0, 1.0)

    def quality(self, masks: str) -> np.ndarray:
        """Return the quality (K,) float64 of the masks made by the rule `masks` (see `FusionOptions`); NaN if unknown.

        "best": that of the best detection; else the mean of the known ones, with the weights of the masks.
        """
        quality = self.detections.quality
        if masks == "best":
            return quality[self.leaders]
        weights = self.detections.weighted_scores if masks == "mean" else self.detections.weights
        weights = np.where(np.isfinite(quality), np.maximum(weights, np.finfo(np.float64).tiny), 0.0)
        sums = np.bincount(self.number, np.nan_to_num(quality) * weights, len(self))
        totals = np.bincount(self.number, weights, len(self))
        return np.divide(sums, totals, out=np.full(len(self), np.nan), where=totals > 0)

    def classes(self, rule: str) -> np.ndarray:
        """Return the classes (K,) int64: that of the "best" detection, or a "vote" by weighted score."""
        best = self.detections.classes[self.leaders]
        if rule == "best" or not len(self):
            return best
        kinds = int(self.detections.classes.max()) + 1
        keys, inverse = np.unique(self.number * kinds + self.detections.classes, return_inverse=True)
        votes = np.bincount(inverse.reshape(-1), self.detections.weighted_scores)
        cluster, kind = np.divmod(keys, kinds)
        # The last of a cluster in this order has the most votes; ties go to the class of the best detection, then to
        # the lower class.
        order = np.lexsort((-kind, kind == best[cluster], votes, cluster))
        last = np.append(np.diff(cluster[order]) > 0, True)
        return kind[order][last]

    def mean_boxes(self) -> np.ndarray:
        """Return the mean boxes (K, 4) float64, weighted by score; the plain mean where all scores are 0."""
        weights = self.detections.weighted_scores
        has_score = np.bincount(self.number, weights, len(self))[self.number] > 0
        weights = np.where(has_score, weights, 1.0)
        totals = np.bincount(self.number, weights, len(self))
        sums = [np.bincount(self.number, weights * side, len(self)) for side in self.detections.boxes.T]
        return np.stack(sums, axis=1) / totals[:, None]
