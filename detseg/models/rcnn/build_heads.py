"""The region heads of the R-CNN family from configuration keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from detseg.errors import ConfigError
from detseg.models.rcnn.box_coding import BoxCoder
from detseg.models.rcnn.box_head import BoxPredictor, ConvFCHead
from detseg.models.rcnn.build_parts import known, known_norm, make_matcher, make_pooler, strides_and_channels
from detseg.models.rcnn.cascade_heads import CascadeROIHeads
from detseg.models.rcnn.mask_head import MaskHead
from detseg.models.rcnn.matching import Matcher
from detseg.models.rcnn.pooler import Pooler
from detseg.models.rcnn.regions import RegionSampling
from detseg.models.rcnn.res5_heads import Res5ROIHeads, make_res5
from detseg.models.rcnn.roi_heads import ROIHeads


def build_roi_heads(cfg: Any, backbone: nn.Module) -> nn.Module:
    """Build the region heads that MODEL.ROI_HEADS.NAME names; masks only with MODEL.MASK_ON."""
    return HEADS[known("MODEL.ROI_HEADS.NAME", cfg.MODEL.ROI_HEADS.NAME, tuple(HEADS))](cfg, backbone)


def build_standard_heads(cfg: Any, backbone: nn.Module) -> ROIHeads:
    """Build a box head and a mask head."""
    names = cfg.MODEL.ROI_HEADS.IN_FEATURES
    strides, channels = strides_and_channels("MODEL.ROI_HEADS.IN_FEATURES", names, backbone)
    box_pooler = make_pooler("MODEL.ROI_BOX_HEAD", cfg.MODEL.ROI_BOX_HEAD, strides)
    box_head = build_box_head(cfg, channels)
    mask_pooler, mask_head = _build_masks(cfg, strides, channels)
    return ROIHeads(
        in_features=names,
        sampling=_build_sampling(cfg, make_matcher("MODEL.ROI_HEADS", cfg.MODEL.ROI_HEADS)),
        box_pooler=box_pooler,
        box_head=box_head,
        box_predictor=build_box_predictor(cfg, box_head.out_channels),
        mask_pooler=mask_pooler,
        mask_head=mask_head,
    )


def build_cascade_heads(cfg: Any, backbone: nn.Module) -> CascadeROIHeads:
    """Build the stages of a cascade and a mask head."""
    names, cascade = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_BOX_CASCADE_HEAD
    strides, channels = strides_and_channels("MODEL.ROI_HEADS.IN_FEATURES", names, backbone)
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise ConfigError("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG must be True for CascadeROIHeads")
    if not len(cascade.IOUS) == len(cascade.BBOX_REG_WEIGHTS) > 0:
        raise ConfigError("MODEL.ROI_BOX_CASCADE_HEAD needs as many BBOX_REG_WEIGHTS as IOUS, one a stage")
    try:
        matchers = [Matcher((iou,), (0, 1)) for iou in cascade.IOUS]
    except ValueError as error:
        raise ConfigError(f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS: {error}") from None
    box_heads, predictors = [], []
    for weights in cascade.BBOX_REG_WEIGHTS:
        box_heads.append(build_box_head(cfg, channels))
        predictors.append(build_box_predictor(cfg, box_heads[-1].out_channels, weights))
    mask_pooler, mask_head = _build_masks(cfg, strides, channels)
    return CascadeROIHeads(
        in_features=names,
        sampling=_build_sampling(cfg, matchers[0]),
        matchers=matchers[1:],
        box_pooler=make_pooler("MODEL.ROI_BOX_HEAD", cfg.MODEL.ROI_BOX_HEAD, strides),
        box_heads=box_heads,
        box_predictors=predictors,
        mask_pooler=mask_pooler,
        mask_head=mask_head,
    )


def build_res5_heads(cfg: Any, backbone: nn.Module) -> Res5ROIHeads:
    """Build heads with a res5 of their own; the pooling is MODEL.ROI_BOX_HEAD's, for boxes and masks alike."""
    resnets, names = cfg.MODEL.RESNETS, cfg.MODEL.ROI_HEADS.IN_FEATURES
    strides, channels = strides_and_channels("MODEL.ROI_HEADS.IN_FEATURES", names, backbone)
    res5, out_channels = make_res5(
        res2_channels=resnets.RES2_OUT_CHANNELS,
        width_per_group=resnets.WIDTH_PER_GROUP,
        groups=resnets.NUM_GROUPS,
        norm=known_norm("MODEL.RESNETS.NORM", resnets.NORM),
        stride_in_1x1=resnets.STRIDE_IN_1X1,
    )
    if len(names) != 1 or channels != out_channels // 2:
        raise ConfigError(
            f"MODEL.ROI_HEADS.IN_FEATURES is {names}; Res5ROIHeads continue one feature map of {out_channels // 2} "
            "channels: that of res4"
        )
    if resnets.DEFORM_ON_PER_STAGE[-1]:
        raise ConfigError("MODEL.RESNETS.DEFORM_ON_PER_STAGE: the res5 of Res5ROIHeads does not deform")
    return Res5ROIHeads(
        in_feature=names[0],
        sampling=_build_sampling(cfg, make_matcher("MODEL.ROI_HEADS", cfg.MODEL.ROI_HEADS)),
        pooler=make_pooler("MODEL.ROI_BOX_HEAD", cfg.MODEL.ROI_BOX_HEAD, strides),
        res5=res5,
        box_predictor=build_box_predictor(cfg, out_channels),
        mask_head=build_mask_head(cfg, out_channels) if cfg.MODEL.MASK_ON else None,
    )


HEADS = {
    "StandardROIHeads": build_standard_heads,
    "CascadeROIHeads": build_cascade_heads,
    "Res5ROIHeads": build_res5_heads,
}


def _build_sampling(cfg: Any, matcher: Matcher) -> RegionSampling:
    heads = cfg.MODEL.ROI_HEADS
    return RegionSampling(
        matcher=matcher,
        batch_size=heads.BATCH_SIZE_PER_IMAGE,
        positive_fraction=heads.POSITIVE_FRACTION,
        append_objects=heads.PROPOSAL_APPEND_GT,
    )


def _build_masks(cfg: Any, strides: list[int], channels: int) -> tuple[Pooler, MaskHead] | tuple[None, None]:
    if not cfg.MODEL.MASK_ON:
        return None, None
    return make_pooler("MODEL.ROI_MASK_HEAD", cfg.MODEL.ROI_MASK_HEAD, strides), build_mask_head(cfg, channels)


def build_box_head(cfg: Any, in_channels: int) -> ConvFCHead:
    """Build the box head."""
    head = cfg.MODEL.ROI_BOX_HEAD
    known("MODEL.ROI_BOX_HEAD.NAME", head.NAME, ("FastRCNNConvFCHead",))
    if head.NUM_FC + head.NUM_CONV < 1:
        raise ConfigError("MODEL.ROI_BOX_HEAD.NUM_FC and MODEL.ROI_BOX_HEAD.NUM_CONV are both 0: a head needs a layer")
    return ConvFCHead(
        in_channels=in_channels,
        size=head.POOLER_RESOLUTION,
        conv_channels=[head.CONV_DIM] * head.NUM_CONV,
        fc_channels=[head.FC_DIM] * head.NUM_FC,
        norm=known_norm("MODEL.ROI_BOX_HEAD.NORM", head.NORM),
    )


def build_box_predictor(cfg: Any, in_channels: int, weights: Sequence[float] | None = None) -> BoxPredictor:
    """Build the classifier and box regressor; weights: of the box deltas, None for the box head's own."""
    head = cfg.MODEL.ROI_BOX_HEAD
    return BoxPredictor(
        in_channels=in_channels,
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        class_agnostic=head.CLS_AGNOSTIC_BBOX_REG,
        coder=BoxCoder(weights or head.BBOX_REG_WEIGHTS),
        box_loss=known("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", head.BBOX_REG_LOSS_TYPE, ("smooth_l1", "giou")),
        smooth_l1_beta=head.SMOOTH_L1_BETA,
        box_weight=head.BBOX_REG_LOSS_WEIGHT,
        score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        nms_threshold=cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
    )


def build_mask_head(cfg: Any, in_channels: int) -> MaskHead:
    """Build the mask head."""
    head = cfg.MODEL.ROI_MASK_HEAD
    known("MODEL.ROI_MASK_HEAD.NAME", head.NAME, ("MaskRCNNConvUpsampleHead",))
    return MaskHead(
        in_channels=in_channels,
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        conv_channels=[head.CONV_DIM] * head.NUM_CONV,
        deconv_channels=head.CONV_DIM,
        class_agnostic=head.CLS_AGNOSTIC_MASK,
        norm=known_norm("MODEL.ROI_MASK_HEAD.NORM", head.NORM),
    )
