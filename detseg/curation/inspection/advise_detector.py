"""Suggestions on anchors and limits of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from detseg.curation.inspection.advice import Suggestion, percent, round_up
from detseg.curation.inspection.advise_scale import Crops, NetworkScale
from detseg.curation.inspection.anchors import (
    HIGH_IOU,
    LOW_IOU,
    MOST_BOXES,
    Anchors,
    best_iou,
    choose_anchors,
    cluster_shapes,
    fitness,
    recall,
)
from detseg.curation.inspection.gather import Measurements

# Without suggestions: Detectron2's anchors for photographs, and those of configs/_base_/mask_rcnn_fpn.yaml.
DETECTRON2 = Anchors(((32,), (64,), (128,), (256,), (512,)), (0.5, 1.0, 2.0))
MICROSCOPY = Anchors(((8,), (16,), (32,), (64,), (128,)), (0.5, 1.0, 2.0))
THRESHOLDS = [round(0.3 + 0.05 * step, 2) for step in range(14)]
# Gain in the mean of three recalls above which anchors other than the base's are suggested.
_WORTH = 0.02
CLUSTERS = 9


def advise_anchors(data: Measurements, scale: NetworkScale) -> tuple[dict[str, Any], Suggestion]:
    """Return the numbers for the report, and the suggestion."""
    objects = data.objects
    if not len(objects):
        return {}, Suggestion("anchors", "Those of the base.", "There are no objects to base a suggestion on.")
    own = objects.box, data.image_sizes[objects.image]
    at_network = scale.boxes, scale.sizes[objects.image]
    cases = {
        "detectron2": ("Detectron2's 32 to 512, own size", DETECTRON2, own),
        "before": ("base's 8 to 128, own size", MICROSCOPY, own),
        "scaled": ("base's 8 to 128, suggested size", MICROSCOPY, at_network),
        "suggested": ("suggested", choose_anchors(*at_network), at_network),
    }
    if scale.factor == 1 and not (scale.min_size or scale.pixel_size or scale.object_size):
        del cases["scaled"]
    ious = {name: best_iou(*boxes, anchors) for name, (_, anchors, boxes) in cases.items()}
    base = "scaled" if "scaled" in cases else "before"
    if fitness(ious[base]) >= fitness(ious["suggested"]) - _WORTH:
        cases["suggested"] = ("suggested (the base's)", MICROSCOPY, at_network)
        ious["suggested"] = ious[base]
    shapes = scale.boxes[:, 2:] - scale.boxes[:, :2]
    if len(shapes) > MOST_BOXES:
        shapes = shapes[np.random.default_rng(0).choice(len(shapes), MOST_BOXES, replace=False)]
    means, fit = cluster_shapes(shapes, CLUSTERS)
    numbers = {
        "thresholds": THRESHOLDS,
        "cases": {
            name: {
                "name": title,
                "sizes": [list(level) for level in anchors.sizes],
                "ratios": list(anchors.ratios),
                "mean_iou": float(ious[name].mean()),
                "recall50": recall(ious[name], LOW_IOU),
                "recall70": recall(ious[name], HIGH_IOU),
                "curve": [recall(ious[name], threshold) for threshold in THRESHOLDS],
            }
            for name, (title, anchors, _) in cases.items()
        },
        "clusters": {"shapes": np.round(means, 1).tolist(), "mean_iou": fit},
    }
    return numbers, _suggest_anchors(numbers["cases"], cases["suggested"][1])


def _suggest_anchors(cases: dict[str, Any], chosen: Anchors) -> Suggestion:
    before, after, detectron2 = cases["before"], cases["suggested"], cases["detectron2"]
    reason = (
        f"On the grids of p2 to p6 {percent(after['recall50'])} of the objects have an anchor with IoU 0.5 and "
        f"{percent(after['recall70'])} one with 0.7 (RPN's foreground threshold); before it was "
        f"{percent(before['recall50'])} and {percent(before['recall70'])}, with Detectron2's defaults "
        f"{percent(detectron2['recall50'])} and {percent(detectron2['recall70'])}."
    )
    keys = {
        "MODEL.ANCHOR_GENERATOR.SIZES": [[_plain(size) for size in level] for level in chosen.sizes],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[_plain(ratio) for ratio in chosen.ratios]],
    }
    sizes = ", ".join("/".join(f"{size:g}" for size in level) for level in chosen.sizes)
    ratios = ", ".join(f"{ratio:g}" for ratio in chosen.ratios)
    kept = " (those of the base: others gain almost nothing)" if chosen == MICROSCOPY else ""
    return Suggestion("anchors", f"Anchors of {sizes} pixels with ratios {ratios}{kept}.", reason, keys)


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else float(number)


def advise_limits(data: Measurements, crops: Crops) -> list[Suggestion]:
    """Suggest numbers of detections and proposals, and NMS thresholds that do not drop true neighbours."""
    counts = np.bincount(data.objects.image, minlength=len(data.dataset))
    most, typical = int(counts.max()), float(np.median(counts))
    detections = round_up(1.5 * most, 100)
    after_nms = round_up(2 * detections, 500)
    middle, in_crop = np.quantile(crops.counts, (0.5, 0.95)) if len(crops.counts) else (0.0, 0.0)
    train_after = round_up(10 * in_crop, 500)
    head_samples = next(n for n in (64, 128, 192, 256, 384, 512) if n >= min(3 * in_crop, 512))
    keys = {
        "TEST.DETECTIONS_PER_IMAGE": detections,
        "MODEL.RPN.POST_NMS_TOPK_TEST": after_nms,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": round_up(1.5 * after_nms),
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": train_after,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": round_up(1.5 * train_after),
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256 if 4 * in_crop <= 256 else 512,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": head_samples,
    }
    reason = (
        f"Images have up to {most:,} objects, {typical:.0f} in the median; half as many more detections are a margin, "
        f"with two proposals for each. In training a {'crop' if crops.size else 'image'} shows {middle:.0f} objects in "
        f"the median and 5 % show more than {in_crop:.0f}: ten proposals for each of these, and three times as many "
        "samples for the box head."
    )
    limits = Suggestion("limits", f"{detections:,} detections per image, {after_nms:,} proposals.", reason, keys)
    return [limits, *_advise_nms(data.objects.box_iou)]


# Diameter of a disk of 100 pixels.
SMALL = 11.3


def advise_masks() -> Suggestion:
    """Suggest mask losses and mask scoring that gained on nuclei of all kinds at almost no cost."""
    keys = {
        "MODEL.ROI_MASK_HEAD.BOUNDARY_WEIGHT": 2.0,
        "MODEL.ROI_MASK_HEAD.QUALITY.ENABLED": True,
        "MODEL.ROI_MASK_HEAD.QUALITY.CONV_DIM": 64,
        "MODEL.ROI_MASK_HEAD.QUALITY.FC_DIM": 256,
    }
    reason = (
        "Object AP uses IoU thresholds up to 0.95, which the boundary decides: on DSB2018's validation images weight 2 "
        "gained 0.024 object AP [+0.015, +0.034], and ranking detections by mask quality another 0.015 "
        "(docs/nuclei.md)."
    )
    return Suggestion("masks", "Mask boundaries get more weight, and mask quality is predicted.", reason, keys)


def advise_pretrained(
    suggestions: Sequence[Suggestion], median_side: float | None, has_stride_2: bool
) -> list[Suggestion]:
    """Suggest what a backbone pretrained on photographs changes.

    suggestions: all others. median_side: of the objects in pixels at network scale; None without objects. has_stride_2:
    whether the backbone has feature maps with stride 2.
    """
    changes = []
    if any(one.keys.get("INPUT.GRAYSCALE") for one in suggestions):
        reason = (
            "The backbone was trained on colour: stained sections gain by it, and grayscale images lose nothing "
            "(docs/nuclei.md)."
        )
        changes.append(Suggestion("intensities", "Colour is kept.", reason, {"INPUT.GRAYSCALE": False}))
    if has_stride_2 and median_side is not None and median_side < SMALL:
        keys = {
            "MODEL.FPN.IN_FEATURES": ["res1", "res2", "res3", "res4", "res5"],
            "MODEL.ROI_HEADS.IN_FEATURES": ["p1", "p2", "p3", "p4", "p5"],
        }
        reason = (
            f"The median object has a side of {median_side:.0f} pixels at network scale, less than 3 features with "
            "stride 4, while the box head samples 7 x 7 values. An iteration takes 1.25 x the time (docs/nuclei.md)."
        )
        changes.append(Suggestion("network", "Boxes and masks from a level of stride 2.", reason, keys))
    return changes


def _advise_nms(overlaps: np.ndarray) -> list[Suggestion]:
    """Suggest NMS thresholds at which boxes of true neighbours are kept.

    overlaps: (N,) largest IoU of each object's box with another of its class.
    """
    if not len(overlaps):
        return []
    lost = {threshold: float((overlaps > threshold).mean()) / 2 for threshold in (0.5, 0.6, 0.7)}
    boxes = next((threshold for threshold in (0.5, 0.6, 0.7) if lost[threshold] < 0.005), 0.7)
    proposals = 0.7 if lost[0.7] < 0.005 else 0.8
    reason = (
        f"NMS at 0.5 would drop {percent(lost[0.5])} of the true objects, because their boxes overlap another of their "
        f"class by more; at 0.6 {percent(lost[0.6])}, at 0.7, that of RPN, {percent(lost[0.7])}. A higher threshold "
        "keeps more duplicates, which mask-based suppression can remove."
    )
    advice = f"NMS of detections at {boxes:g}, of proposals at {proposals:g}."
    keys = {"MODEL.ROI_HEADS.NMS_THRESH_TEST": boxes, "MODEL.RPN.NMS_THRESH": proposals}
    return [Suggestion("limits", advice, reason, keys)]
