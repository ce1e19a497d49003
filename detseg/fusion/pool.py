"""All detections of all members about one image, in one list, best first."""

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
from detseg.structures.boxes import box_area, clip_boxes
from detseg.structures.runs import Runs

# The class of an image by vote, where images hold one kind of cell.


def apply_image_class(predictions: Predictions, options: FusionOptions) -> Predictions:
    """Drop the detections of all classes but the image's, or give them that class, or leave them (`image_class`)."""
    if options.image_class == "keep" or not len(predictions):
        return predictions
    chosen = vote(predictions, options.image_class_by)
    if options.image_class == "drop":
        return predictions.select(predictions.classes == chosen)
    return dataclasses.replace(predictions, classes=np.full(len(predictions), chosen, dtype=np.int64))


def vote(predictions: Predictions, by: str) -> int:
    """Return the class with the largest sum of "score", of "area" x score, or "count"; of equal ones, the lowest."""
    if by == "count":
        votes = np.ones(len(predictions))
    else:
        votes = predictions.scores.astype(np.float64)
    if by == "area":
        has_masks = predictions.rles is not None
        votes = votes * (rle_codec.area(predictions.rles) if has_masks else box_area(predictions.boxes))
    return int(np.argmax(np.bincount(predictions.classes, votes)))


@dataclass(frozen=True)
class Pool:
    """N detections by descending score x weight of their member, equal ones by box: the members' order does not matter.

    boxes: (N, 4) float64 XYXY inside the image. scores: (N,) float64, as the members gave them. weights: (N,) float64,
    of their members. classes, members: (N,) int64. mask_of: (N,) int64, the number of the mask, -1 for none; masks are
    numbered in the order of the detections. rles, soft_masks: of the M masks; a soft mask may be None.
    mask_boxes: (M, 4) float64, as the members gave them; they say where the soft masks lie. runs: the masks' pixels.
    """

    height: int
    width: int
    boxes: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    classes: np.ndarray
    members: np.ndarray
    mask_of: np.ndarray
    rles: list[dict[str, Any]]
    soft_masks: list[np.ndarray | None]
    mask_boxes: np.ndarray
    runs: Runs

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, keep: np.ndarray) -> Pool:
        """Return the detections of `keep`, ascending indices (M,) int64."""
        masks = self.mask_of[keep]
        masks = masks[masks >= 0]
        return dataclasses.replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            weights=self.weights[keep],
            classes=self.classes[keep],
            members=self.members[keep],
            mask_of=np.where(self.has_mask[keep], np.cumsum(self.has_mask[keep]) - 1, -1),
            rles=[self.rles[index] for index in masks],
            soft_masks=[self.soft_masks[index] for index in masks],
            mask_boxes=self.mask_boxes[masks],
            runs=self.runs.select(masks),
        )

    @property
    def weighted_scores(self) -> np.ndarray:
        return self.scores * self.weights

    @property
    def has_mask(self) -> np.ndarray:
        return self.mask_of >= 0


def gather(members: Sequence[Predictions], weights: Sequence[float], options: FusionOptions) -> Pool:
    """Put the detections of checked members together.

    Left out are scores below `options.min_score`, boxes without area and masks without pixels.
    """
    first = members[0]
    boxes = np.concatenate([member.boxes for member in members])
    scores = np.concatenate([member.scores for member in members]).astype(np.float64)
    classes = np.concatenate([member.classes for member in members])
    lengths = [len(member) for member in members]
    number = np.repeat(np.arange(len(members)), lengths)
    weight = np.repeat(np.asarray(weights, dtype=np.float64), lengths)
    inside = clip_boxes(boxes, first.height, first.width).astype(np.float64)
    rles = [rle for member in members for rle in (member.rles or [None] * len(member))]
    soft_masks = [soft for member in members for soft in (member.soft_masks or [None] * len(member))]
    has_mask = np.array([rle is not None for rle in rles], dtype=bool)

    keep = scores >= options.values("min_score", classes)
    # A mask speaks for itself; a box alone must have area.
    keep &= has_mask | ((inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1]))
    order = np.lexsort((classes, *inside.T[::-1], -scores * weight))
    order = order[keep[order]]
    masked = order[has_mask[order]]
    runs = rle_codec.read_runs([rles[index] for index in masked]).within_columns()
    empty = masked[runs.areas() == 0]
    if len(empty):
        order, masked = order[~np.isin(order, empty)], masked[~np.isin(masked, empty)]
        runs = rle_codec.read_runs([rles[index] for index in masked]).within_columns()
    return Pool(
        height=first.height,
        width=first.width,
        boxes=inside[order],
        scores=scores[order],
        weights=weight[order],
        classes=classes[order],
        members=number[order],
        mask_of=np.where(has_mask[order], np.cumsum(has_mask[order]) - 1, -1),
        rles=[rles[index] for index in masked],
        soft_masks=[soft_masks[index] for index in masked],
        mask_boxes=boxes[masked].astype(np.float64),
        runs=runs,
    )


def check_members(members: Sequence[Predictions]) -> None:
    """Raise DataError where members are none, of different images or sizes, or have impossible scores or boxes."""
    if not members:
        raise DataError("there is nothing to fuse: give the predictions of at least one member")
    first = members[0]
    for position, member in enumerate(members):
        place = f"member {position} of the image {member.file_name or member.image_id}"
        if member.image_id != first.image_id:
            raise DataError(
                f"{place}: has the image id {member.image_id!r}, member 0 {first.image_id!r}; fuse predictions of one "
                "image at a time"
            )
        if (member.height, member.width) != (first.height, first.width):
            raise DataError(
                f"{place}: made at {member.height} x {member.width} pixels (height x width), member 0 at "
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


# Groups of detections that show one object: what their score, class and box is.
#
# Symbols: N detections, K groups, w weights of members, s scores.


@dataclass(frozen=True)
class Groups:
    """number: (N,) int64, the group of every detection, 0..K-1. leaders: (K,) int64, the best of each, ascending."""

    number: np.ndarray
    leaders: np.ndarray

    def __len__(self) -> int:
        return len(self.leaders)

    @classmethod
    def from_leaders(cls, leader: np.ndarray) -> Groups:
        """Make groups of the detections (N,) that have the same leader."""
        leaders, number = np.unique(leader, return_inverse=True)
        return cls(number.reshape(-1), leaders)


def best_of_members(pool: Pool, groups: Groups) -> tuple[Pool, Groups]:
    """Return the detections without those that are not the best of their member in their group."""
    keys = groups.number * (int(pool.members.max(initial=0)) + 1) + pool.members
    keep = np.sort(np.unique(keys, return_index=True)[1])
    # A leader is the best of its group, and therefore of its member.
    return pool.select(keep), Groups(groups.number[keep], np.searchsorted(keep, groups.leaders))


def found_by(pool: Pool, groups: Groups, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many different members (K,) int64 found each group, and the sum (K,) of their weights (M,)."""
    pairs = np.unique(groups.number * len(weights) + pool.members)
    group, member = np.divmod(pairs, len(weights))
    return np.bincount(group, minlength=len(groups)), np.bincount(group, weights[member], len(groups))


def group_scores(pool: Pool, groups: Groups, weights: np.ndarray, rule: str, agreement: float) -> np.ndarray:
    """Return the score (K,) float64, in [0, 1], of every group; the rules are explained at `FusionOptions.scores`.

    weights: (M,) of all members, those that found nothing included.
    """
    count = len(groups)
    total = weights.sum()
    sizes = np.bincount(groups.number, minlength=count)
    sums = np.bincount(groups.number, pool.weighted_scores, count)
    of_detections = np.bincount(groups.number, pool.weights, count)
    of_members = found_by(pool, groups, weights)[1]
    if rule == "max":
        scores = pool.weighted_scores[groups.leaders] / weights.max()
    elif rule == "mean":
        scores = sums / of_detections
    elif rule == "avg":
        scores = sums / sizes * np.minimum(sizes, len(weights)) / total
    elif rule == "box_and_model_avg":
        scores = sums / of_detections * of_members / total
    else:  # absent_model_aware_avg
        scores = sums / (of_detections + total - of_members)
    if agreement:
        scores = scores * (of_members / total) ** agreement
    return np.clip(scores, 0.0, 1.0)


def group_classes(pool: Pool, groups: Groups, rule: str) -> np.ndarray:
    """Return the class (K,) int64 of every group: of its "best" detection, or by "vote" of weighted scores."""
    best = pool.classes[groups.leaders]
    if rule == "best" or not len(pool):
        return best
    kinds = int(pool.classes.max()) + 1
    keys, inverse = np.unique(groups.number * kinds + pool.classes, return_inverse=True)
    votes = np.bincount(inverse.reshape(-1), pool.weighted_scores)
    group, kind = np.divmod(keys, kinds)
    # The last of a group in this order has most votes; of equal ones, the class of the best detection, then the lower.
    order = np.lexsort((-kind, kind == best[group], votes, group))
    last = np.append(np.diff(group[order]) > 0, True)
    return kind[order][last]
