"""What must hold between the keys of an R-CNN model. Keys of parts that are switched off are not judged."""

from __future__ import annotations

import itertools
from typing import Any

from detseg.config.problems import Problems

# res1, the stem before its pooling, is the native engine's own
_STAGES = ("stem", "res1", "res2", "res3", "res4", "res5")
_STRIDE_EXPONENT = {"stem": 2, "res1": 1, "res2": 2, "res3": 3, "res4": 4, "res5": 5}
_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "LN")
_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_GROUPS_OF_GN = 32  # Detectron2's fixed number of groups


def check_model(problems: Problems) -> None:
    """Note what is wrong with a GeneralizedRCNN's keys; other architectures are judged by their builders."""
    if problems.cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        return
    _check_backbone(problems)
    _check_fpn(problems)
    _check_features(problems)
    _check_anchors(problems)
    _check_rpn(problems)
    _check_roi_heads(problems)
    _check_cascade(problems)
    _check_res5_heads(problems)
    _check_box_head(problems)
    _check_mask_head(problems)
    _check_group_norm(problems)


def _has_fpn(problems: Problems) -> bool:
    return problems.cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone"


def _has_resnet(problems: Problems) -> bool:
    return problems.cfg.MODEL.BACKBONE.NAME in ("build_resnet_backbone", "build_resnet_fpn_backbone")


def _check_backbone(problems: Problems) -> None:
    problems.within("MODEL.BACKBONE.FREEZE_AT", 0, 5)
    if not _has_resnet(problems):
        return
    problems.one_of("MODEL.RESNETS.DEPTH", (18, 34, 50, 101, 152))
    problems.one_of("MODEL.RESNETS.NORM", _NORMS)
    problems.one_of("MODEL.RESNETS.RES5_DILATION", (1, 2))
    for name in ("NUM_GROUPS", "WIDTH_PER_GROUP", "RES2_OUT_CHANNELS", "STEM_OUT_CHANNELS", "DEFORM_NUM_GROUPS"):
        problems.within(f"MODEL.RESNETS.{name}", 1)
    problems.length("MODEL.RESNETS.DEFORM_ON_PER_STAGE", 4)
    features = problems.cfg.MODEL.RESNETS.OUT_FEATURES
    if not features or not set(features) <= set(_STAGES):
        problems.add("MODEL.RESNETS.OUT_FEATURES", f"expected some of {', '.join(_STAGES)}")
    resnets = problems.cfg.MODEL.RESNETS
    deforms = any(resnets.DEFORM_ON_PER_STAGE)
    if resnets.DEPTH in (18, 34) and (resnets.NUM_GROUPS != 1 or resnets.RES5_DILATION != 1 or deforms):
        problems.add(
            "MODEL.RESNETS.DEPTH",
            "depths 18 and 34 have no groups, no dilation and no deformable convolution; take 50 or more for these",
        )
    if deforms and resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP % max(resnets.DEFORM_NUM_GROUPS, 1):
        problems.add(
            "MODEL.RESNETS.DEFORM_NUM_GROUPS",
            "expected a divisor of MODEL.RESNETS.NUM_GROUPS x MODEL.RESNETS.WIDTH_PER_GROUP",
        )


def _check_fpn(problems: Problems) -> None:
    if not _has_fpn(problems):
        return
    cfg = problems.cfg
    problems.one_of("MODEL.FPN.NORM", _NORMS)
    problems.one_of("MODEL.FPN.FUSE_TYPE", ("sum", "avg"))
    problems.within("MODEL.FPN.OUT_CHANNELS", 1)
    features, available = cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.RESNETS.OUT_FEATURES
    if not features:
        problems.add(
            "MODEL.FPN.IN_FEATURES", 'expected the levels to build on, such as ["res2", "res3", "res4", "res5"]'
        )
    elif not set(features) <= set(available):
        problems.add("MODEL.FPN.IN_FEATURES", f"expected some of MODEL.RESNETS.OUT_FEATURES {available}")
    else:
        exponents = [_STRIDE_EXPONENT.get(name, 0) for name in features]
        if exponents != list(range(exponents[0], exponents[0] + len(exponents))):
            problems.add("MODEL.FPN.IN_FEATURES", "expected successive levels, finest first")
    if cfg.MODEL.RESNETS.RES5_DILATION != 1 and "res5" in features:
        problems.add("MODEL.RESNETS.RES5_DILATION", "an FPN needs halving levels: set 1")


def _check_features(problems: Problems) -> None:
    """The heads must read what the backbone gives."""
    cfg = problems.cfg
    if _has_fpn(problems):
        exponents = [_STRIDE_EXPONENT.get(name, 0) for name in cfg.MODEL.FPN.IN_FEATURES]
        available = [f"p{exponent}" for exponent in [*exponents, *[max(exponents) + 1 for _ in exponents[:1]]]]
    elif _has_resnet(problems):
        available = cfg.MODEL.RESNETS.OUT_FEATURES
    else:
        return
    for key in ("MODEL.RPN.IN_FEATURES", "MODEL.ROI_HEADS.IN_FEATURES"):
        if not cfg[key] or not set(cfg[key]) <= set(available):
            problems.add(key, f"expected some of what the backbone gives: {available}")


def _check_anchors(problems: Problems) -> None:
    cfg = problems.cfg
    levels = len(cfg.MODEL.RPN.IN_FEATURES)
    counts: dict[str, list[int]] = {}
    for key in ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"):
        value = cfg[key]
        rows = value if value and isinstance(value[0], list) else [value]
        if len(rows) not in (1, levels):
            problems.add(
                key, f"expected one list for all levels, or one for each of the {levels} MODEL.RPN.IN_FEATURES"
            )
        elif not all(row and all(number > 0 for number in row) for row in rows):
            problems.add(key, "expected positive numbers for every level")
        else:
            counts[key] = [len(row) for row in rows] * (levels if len(rows) == 1 else 1)
    if len(counts) == 2:
        anchors = {sizes * ratios for sizes, ratios in zip(*counts.values(), strict=True)}
        if len(anchors) > 1:
            problems.add("MODEL.ANCHOR_GENERATOR.SIZES", "every level must have the same number of anchors a location")
    if not 0 <= cfg.MODEL.ANCHOR_GENERATOR.OFFSET < 1:
        problems.add("MODEL.ANCHOR_GENERATOR.OFFSET", "expected at least 0 and below 1")


def _check_matching(problems: Problems, section: str, labels: tuple[int, ...]) -> None:
    """IoU thresholds split boxes into bands, labelled 1 object, 0 background, -1 ignored."""
    thresholds: list[Any] = problems.cfg[f"{section}.IOU_THRESHOLDS"]
    ascending = all(earlier <= later for earlier, later in itertools.pairwise(thresholds))
    if not thresholds or not ascending or not all(0 < threshold <= 1 for threshold in thresholds):
        problems.add(f"{section}.IOU_THRESHOLDS", "expected ascending overlaps above 0 and at most 1")
    given = problems.cfg[f"{section}.IOU_LABELS"]
    if len(given) != len(thresholds) + 1 or not set(given) <= set(labels):
        problems.add(
            f"{section}.IOU_LABELS",
            f"expected one more than {section}.IOU_THRESHOLDS ({len(thresholds) + 1}), each one of {list(labels)}",
        )
    problems.within(f"{section}.BATCH_SIZE_PER_IMAGE", 1)
    problems.within(f"{section}.POSITIVE_FRACTION", most=1, above=0)


def _check_box_regression(problems: Problems, section: str) -> None:
    problems.one_of(f"{section}.BBOX_REG_LOSS_TYPE", _BOX_LOSSES)
    problems.within(f"{section}.BBOX_REG_LOSS_WEIGHT", 0)
    problems.within(f"{section}.SMOOTH_L1_BETA", 0)
    problems.length(f"{section}.BBOX_REG_WEIGHTS", 4)
    problems.within(f"{section}.BBOX_REG_WEIGHTS", above=0)


def _check_rpn(problems: Problems) -> None:
    if problems.cfg.MODEL.PROPOSAL_GENERATOR.NAME != "RPN":
        return
    problems.within("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 0)
    _check_matching(problems, "MODEL.RPN", (-1, 0, 1))
    _check_box_regression(problems, "MODEL.RPN")
    problems.within("MODEL.RPN.LOSS_WEIGHT", 0)
    problems.within("MODEL.RPN.NMS_THRESH", most=1, above=0)
    for order in ("PRE", "POST"):
        for phase in ("TRAIN", "TEST"):
            problems.within(f"MODEL.RPN.{order}_NMS_TOPK_{phase}", 1)


def _check_roi_heads(problems: Problems) -> None:
    problems.within("MODEL.ROI_HEADS.NUM_CLASSES", 1)
    problems.within("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0, 1)
    problems.within("MODEL.ROI_HEADS.NMS_THRESH_TEST", most=1, above=0)
    _check_matching(problems, "MODEL.ROI_HEADS", (-1, 0, 1))


def _check_cascade(problems: Problems) -> None:
    cfg, section = problems.cfg, "MODEL.ROI_BOX_CASCADE_HEAD"
    if cfg.MODEL.ROI_HEADS.NAME != "CascadeROIHeads":
        return
    ious, weights = cfg[f"{section}.IOUS"], cfg[f"{section}.BBOX_REG_WEIGHTS"]
    problems.within(f"{section}.IOUS", most=1, above=0)
    if not ious:
        problems.add(f"{section}.IOUS", "expected the IoU at which each stage calls a box an object")
    elif [ious[0]] != cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS:
        problems.add(f"{section}.IOUS", "the first must be the one of MODEL.ROI_HEADS.IOU_THRESHOLDS")
    if len(weights) != len(ious):
        problems.add(f"{section}.BBOX_REG_WEIGHTS", f"expected one list for each of the {len(ious)} IOUS")
    if not all(len(row) == 4 and min(row) > 0 for row in weights):
        problems.add(f"{section}.BBOX_REG_WEIGHTS", "expected four numbers above 0 for each stage")
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        problems.add("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "a cascade goes on with one box a region: set True")


def _check_res5_heads(problems: Problems) -> None:
    cfg = problems.cfg
    if cfg.MODEL.ROI_HEADS.NAME != "Res5ROIHeads":
        return
    if _has_fpn(problems) or cfg.MODEL.ROI_HEADS.IN_FEATURES != ["res4"]:
        problems.add(
            "MODEL.ROI_HEADS.IN_FEATURES",
            'Res5ROIHeads continue ["res4"] of MODEL.BACKBONE.NAME build_resnet_backbone; over an FPN or res5 take '
            "MODEL.ROI_HEADS.NAME StandardROIHeads",
        )
    if cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE[-1:] == [True]:
        problems.add("MODEL.RESNETS.DEFORM_ON_PER_STAGE", "the res5 of Res5ROIHeads does not deform: set it to False")


def _check_pooler(problems: Problems, section: str) -> None:
    problems.within(f"{section}.POOLER_RESOLUTION", 1)
    problems.within(f"{section}.POOLER_SAMPLING_RATIO", 0)
    problems.one_of(f"{section}.POOLER_TYPE", ("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated"))
    problems.one_of(f"{section}.NORM", _NORMS)
    problems.within(f"{section}.NUM_CONV", 0)
    problems.within(f"{section}.CONV_DIM", 1)


def _check_box_head(problems: Problems) -> None:
    head = problems.cfg.MODEL.ROI_BOX_HEAD
    if head.NAME not in ("", "FastRCNNConvFCHead"):  # code of the user's, which knows what it takes
        return
    _check_pooler(problems, "MODEL.ROI_BOX_HEAD")
    _check_box_regression(problems, "MODEL.ROI_BOX_HEAD")
    problems.within("MODEL.ROI_BOX_HEAD.NUM_FC", 0)
    problems.within("MODEL.ROI_BOX_HEAD.FC_DIM", 1)
    if head.NAME == "FastRCNNConvFCHead" and head.NUM_FC == 0 and head.NUM_CONV == 0:
        problems.add("MODEL.ROI_BOX_HEAD.NUM_FC", "the box head has no layer: set NUM_FC (usually 2) or NUM_CONV")


def _check_mask_head(problems: Problems) -> None:
    if problems.cfg.MODEL.MASK_ON and problems.cfg.MODEL.ROI_MASK_HEAD.NAME == "MaskRCNNConvUpsampleHead":
        _check_pooler(problems, "MODEL.ROI_MASK_HEAD")


def _check_group_norm(problems: Problems) -> None:
    """GN's 32 groups must divide the channels."""
    cfg = problems.cfg
    width = cfg.MODEL.RESNETS.NUM_GROUPS * cfg.MODEL.RESNETS.WIDTH_PER_GROUP
    heads = ["MODEL.ROI_BOX_HEAD"] + (["MODEL.ROI_MASK_HEAD"] if cfg.MODEL.MASK_ON else [])
    normed: list[tuple[str, str, int]] = []
    if _has_resnet(problems):
        for name in ("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS"):
            key = f"MODEL.RESNETS.{name}"
            normed.append(("MODEL.RESNETS.NORM", key, cfg[key]))
        if cfg.MODEL.RESNETS.DEPTH >= 50:
            normed.append(("MODEL.RESNETS.NORM", "MODEL.RESNETS.WIDTH_PER_GROUP", width))
    if _has_fpn(problems):
        normed.append(("MODEL.FPN.NORM", "MODEL.FPN.OUT_CHANNELS", cfg.MODEL.FPN.OUT_CHANNELS))
    normed += [(f"{head}.NORM", f"{head}.CONV_DIM", cfg[head].CONV_DIM) for head in heads if cfg[head].NUM_CONV > 0]
    for norm, key, channels in normed:
        if cfg[norm] == "GN" and channels % _GROUPS_OF_GN:
            problems.add(key, f"{norm} is GN, whose {_GROUPS_OF_GN} groups do not divide {channels} channels")
