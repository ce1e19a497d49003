"""Members for the tests of fusion, and fusion written down plainly: full-size masks, one loop after the other."""

from __future__ import annotations

import numpy as np

from detseg.fusion.options import FusionOptions
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import soft_mask_window

SIZE = (60, 70)


def random_members(
    seed: int,
    members: int = 4,
    objects: int = 14,
    classes: int = 2,
    soft: bool = True,
    bare: tuple[int, ...] = (),
    size: tuple[int, int] = SIZE,
) -> list[Predictions]:
    """Ellipses that each member sees moved, misses or doubles; scores differ. Members of `bare` give boxes alone."""
    random = np.random.default_rng(seed)
    height, width = size
    centres = random.uniform([5, 5], [height - 5, width - 5], (objects, 2))
    radii = random.uniform(3, 9, (objects, 2))
    kinds = random.integers(0, classes, objects)
    result = []
    for member in range(members):
        seen = np.concatenate([np.flatnonzero(random.random(objects) < 0.8), random.integers(0, objects, 2)])
        centre = centres[seen] + random.normal(0, 0.8, (len(seen), 2))
        radius = radii[seen] * random.uniform(0.85, 1.15, (len(seen), 2))
        kind = np.where(random.random(len(seen)) < 0.85, kinds[seen], random.integers(0, classes, len(seen)))
        result.append(_draw(random, centre, radius, kind, soft, member in bare, size))
    return result


def _draw(random, centres, radii, kinds, soft, bare, size) -> Predictions:
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    boxes, rles, crops = [], [], []
    for (row, column), (down, across) in zip(centres, radii, strict=True):
        distance = np.sqrt(((y - row) / down) ** 2 + ((x - column) / across) ** 2)
        probability = 1 / (1 + np.exp((distance - 1) * 6))
        mask = probability >= 0.5
        tight = rle_codec.bounding_boxes([rle_codec.encode_mask(mask)])[0]
        box = (tight + random.uniform(-0.7, 0.7, 4)).clip(0, [width, height] * 2).astype(np.float32)
        x0, y0, x1, y1 = soft_mask_window(box, height, width)
        inside = np.zeros_like(mask)
        inside[y0:y1, x0:x1] = True
        boxes.append(box)
        rles.append(rle_codec.encode_mask(mask & inside))
        crops.append(np.rint(probability[y0:y1, x0:x1] * 255).astype(np.uint8))
    scores = random.permutation(np.linspace(0.05, 0.99, len(kinds))) * random.uniform(0.9, 1)
    masks = {} if bare else {"rles": rles, "soft_masks": crops if soft else None}
    return Predictions(7, "a.png", height, width, np.array(boxes), scores, kinds, **masks)


class PlainPool:
    """All detections, best first, with full-size masks (None for boxes)."""

    def __init__(self, members, weights) -> None:
        self.weights = np.asarray(weights, dtype=float)
        rows = []
        for number, member in enumerate(members):
            for index in range(len(member)):
                mask = None if member.rles is None else rle_codec.decode(member.rles[index])
                rows.append(
                    {
                        "score": float(member.scores[index]) * weights[number],
                        "raw": float(member.scores[index]),
                        "box": member.boxes[index].astype(float),
                        "class": int(member.classes[index]),
                        "member": number,
                        "mask": mask,
                        "soft": full_soft_mask(member, index),
                    }
                )
        self.rows = sorted(rows, key=lambda row: -row["score"])


def full_soft_mask(member: Predictions, index: int) -> np.ndarray | None:
    """(H, W) uint8; the hard mask as 0 and 255 where there is no soft one; None for boxes."""
    if member.rles is None:
        return None
    if member.soft_masks is None:
        return rle_codec.decode(member.rles[index]).astype(np.uint8) * 255
    full = np.zeros((member.height, member.width), dtype=np.uint8)
    x0, y0, x1, y1 = soft_mask_window(member.boxes[index], member.height, member.width)
    full[y0:y1, x0:x1] = member.soft_masks[index]
    return full


def plain_overlap(first: dict, second: dict, kind: str) -> float:
    if kind == "box_iou" or first["mask"] is None or second["mask"] is None:
        a, b = first["box"], second["box"]
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        shared = float(np.prod(np.maximum(sides, 0)))
        areas = [float(np.prod(box[2:] - box[:2])) for box in (a, b)]
    else:
        shared = float(np.count_nonzero(first["mask"] & second["mask"]))
        areas = [float(np.count_nonzero(row["mask"])) for row in (first, second)]
    whole = min(areas) if kind == "intersection_over_smaller" else sum(areas) - shared
    return shared / whole if whole else 0.0


def plain_groups(pool: PlainPool, options: FusionOptions) -> list[list[int]]:
    """Groups of row numbers around the best detection: greedy NMS, then each joins the one that it overlaps most."""
    rows, threshold = pool.rows, float(options.threshold)

    def meets(first: dict, second: dict) -> float:
        if not options.across_classes and first["class"] != second["class"]:
            return 0.0
        return plain_overlap(first, second, options.overlap)

    leaders: list[int] = []
    for index, row in enumerate(rows):
        if all(meets(rows[leader], row) <= threshold for leader in leaders):
            leaders.append(index)
    groups = {leader: [leader] for leader in leaders}
    for index, row in enumerate(rows):
        if index not in groups:
            overlaps = [meets(rows[leader], row) if leader < index else 0.0 for leader in leaders]
            groups[leaders[int(np.argmax(overlaps))]].append(index)
    return list(groups.values())


def plain_soft_nms(pool: PlainPool, options: FusionOptions) -> list[float]:
    """The decayed scores of all rows, taken one after the other."""
    rows = pool.rows
    scores, left = [row["score"] for row in rows], list(range(len(rows)))
    while left:
        best = max(left, key=lambda index: (scores[index], -index))
        left.remove(best)
        for other in left:
            if options.across_classes or rows[best]["class"] == rows[other]["class"]:
                overlap = plain_overlap(rows[best], rows[other], options.overlap)
                if options.decay == "gaussian":
                    scores[other] *= np.exp(-(overlap**2) / options.sigma)
                elif overlap > options.threshold:
                    scores[other] *= 1 - overlap
    return scores


def plain_mask(pool: PlainPool, group: list[int], options: FusionOptions) -> np.ndarray | None:
    """The mask (H, W) of a group, or None where none of it has a mask."""
    rows = [pool.rows[index] for index in group if pool.rows[index]["mask"] is not None]
    if not rows:
        return None
    if options.masks == "best":
        return rows[0]["mask"]
    if options.masks == "vote":
        weights = [pool.weights[row["member"]] for row in rows]
        values = [row["mask"].astype(float) for row in rows]
    else:
        weights = [row["score"] for row in rows]
        values = [row["soft"] / 255.0 for row in rows]
    mean = sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
    mask = mean >= float(options.mask_threshold) - 1e-9
    return mask if mask.any() else rows[0]["mask"]


def plain_score(pool: PlainPool, group: list[int], rule: str) -> float:
    """The formulas of ensemble-boxes, one by one."""
    rows, weights = [pool.rows[index] for index in group], pool.weights
    scores = [row["score"] for row in rows]
    found = sorted({row["member"] for row in rows})
    if rule == "max":
        return max(scores) / weights.max()
    mean = sum(scores) / len(scores)
    of_boxes = sum(weights[row["member"]] for row in rows)
    if rule == "mean":
        return sum(scores) / of_boxes
    if rule == "avg":
        return min(mean * min(len(weights), len(rows)) / weights.sum(), 1.0)
    if rule == "box_and_model_avg":
        return mean * len(rows) / of_boxes * weights[found].sum() / weights.sum()
    absent = weights.sum() - weights[found].sum()
    return mean * len(rows) / (of_boxes + absent)
