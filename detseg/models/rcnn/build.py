"""The R-CNN family from configuration keys; the parts themselves know no configuration."""

from __future__ import annotations

from typing import Any

from torch import nn

from detseg.errors import ConfigError
from detseg.models.rcnn.anchors import AnchorGenerator
from detseg.models.rcnn.box_coding import BoxCoder
from detseg.models.rcnn.build_heads import build_roi_heads
from detseg.models.rcnn.build_parts import known, known_norm, make_matcher, one_list_for_all, strides_and_channels
from detseg.models.rcnn.deformable import Deformable
from detseg.models.rcnn.fpn import FPN
from detseg.models.rcnn.generalized_rcnn import GeneralizedRCNN
from detseg.models.rcnn.images import ImageInput
from detseg.models.rcnn.resnet import BLOCKS_OF_DEPTH, FEATURES, STAGES, make_resnet
from detseg.models.rcnn.rpn import RPN, ProposalSettings, RPNHead, RPNLossSettings
from detseg.models.torchvision_ops import require_operators


def build_generalized_rcnn(cfg: Any) -> GeneralizedRCNN:
    """Build Mask R-CNN or one of its relatives; raises ConfigError for a part that is not known."""
    require_operators()
    backbone = build_backbone(cfg)
    return GeneralizedRCNN(
        image_input=ImageInput(
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            bgr=known("INPUT.FORMAT", cfg.INPUT.FORMAT, ("BGR", "RGB")) == "BGR",
            size_divisibility=backbone.size_divisibility,
        ),
        backbone=backbone,
        proposal_generator=build_rpn(cfg, backbone),
        roi_heads=build_roi_heads(cfg, backbone),
    )


def build_backbone(cfg: Any) -> nn.Module:
    """Build a ResNet, with FPN or without."""
    kind = known("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, ("build_resnet_fpn_backbone", "build_resnet_backbone"))
    resnet = build_resnet(cfg)
    if kind == "build_resnet_backbone":
        return resnet
    fpn = cfg.MODEL.FPN
    for name in fpn.IN_FEATURES:
        known("MODEL.FPN.IN_FEATURES", name, cfg.MODEL.RESNETS.OUT_FEATURES)
    return FPN(
        resnet,
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=known_norm("MODEL.FPN.NORM", fpn.NORM),
        fuse_type=known("MODEL.FPN.FUSE_TYPE", fpn.FUSE_TYPE, ("sum", "avg")),
    )


def build_resnet(cfg: Any) -> nn.Module:
    """Build the ResNet or ResNeXt, its first parts frozen as MODEL.BACKBONE.FREEZE_AT says."""
    resnets = cfg.MODEL.RESNETS
    for name in resnets.OUT_FEATURES:
        known("MODEL.RESNETS.OUT_FEATURES", name, FEATURES)
    return make_resnet(
        depth=known("MODEL.RESNETS.DEPTH", resnets.DEPTH, tuple(BLOCKS_OF_DEPTH)),
        in_channels=len(cfg.MODEL.PIXEL_MEAN),
        stem_channels=resnets.STEM_OUT_CHANNELS,
        res2_channels=resnets.RES2_OUT_CHANNELS,
        norm=known_norm("MODEL.RESNETS.NORM", resnets.NORM),
        width_per_group=resnets.WIDTH_PER_GROUP,
        groups=resnets.NUM_GROUPS,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        res5_dilation=resnets.RES5_DILATION,
        deformable=Deformable(modulated=resnets.DEFORM_MODULATED, groups=resnets.DEFORM_NUM_GROUPS),
        deformable_stages=[name for name, on in zip(STAGES, resnets.DEFORM_ON_PER_STAGE, strict=True) if on],
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def build_rpn(cfg: Any, backbone: nn.Module) -> RPN:
    """Build the region proposal network over the backbone's feature maps."""
    rpn = cfg.MODEL.RPN
    known("MODEL.PROPOSAL_GENERATOR.NAME", cfg.MODEL.PROPOSAL_GENERATOR.NAME, ("RPN",))
    known("MODEL.RPN.HEAD_NAME", rpn.HEAD_NAME, ("StandardRPNHead",))
    known("MODEL.ANCHOR_GENERATOR.NAME", cfg.MODEL.ANCHOR_GENERATOR.NAME, ("DefaultAnchorGenerator",))
    strides, channels = strides_and_channels("MODEL.RPN.IN_FEATURES", rpn.IN_FEATURES, backbone)
    try:
        anchors = AnchorGenerator(
            sizes=one_list_for_all(cfg.MODEL.ANCHOR_GENERATOR.SIZES),
            aspect_ratios=one_list_for_all(cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS),
            strides=strides,
            offset=cfg.MODEL.ANCHOR_GENERATOR.OFFSET,
        )
    except ValueError as error:
        raise ConfigError(f"MODEL.ANCHOR_GENERATOR does not fit MODEL.RPN.IN_FEATURES: {error}") from None
    if len(set(anchors.anchors_per_position)) > 1:
        raise ConfigError(
            "MODEL.ANCHOR_GENERATOR gives levels different numbers of anchors a position "
            f"({anchors.anchors_per_position}); the RPN's head is shared by all levels and needs the same number"
        )
    return RPN(
        in_features=rpn.IN_FEATURES,
        head=RPNHead(channels, anchors.anchors_per_position[0], rpn.CONV_DIMS),
        anchor_generator=anchors,
        matcher=make_matcher("MODEL.RPN", rpn, allow_low_quality_matches=True),
        coder=BoxCoder(rpn.BBOX_REG_WEIGHTS),
        train_proposals=_proposal_settings(cfg, rpn.PRE_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TRAIN),
        test_proposals=_proposal_settings(cfg, rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST),
        loss=RPNLossSettings(
            batch_size=rpn.BATCH_SIZE_PER_IMAGE,
            positive_fraction=rpn.POSITIVE_FRACTION,
            box_loss=known("MODEL.RPN.BBOX_REG_LOSS_TYPE", rpn.BBOX_REG_LOSS_TYPE, ("smooth_l1", "giou")),
            smooth_l1_beta=rpn.SMOOTH_L1_BETA,
            weight=rpn.LOSS_WEIGHT,
            box_weight=rpn.BBOX_REG_LOSS_WEIGHT,
            boundary_threshold=rpn.BOUNDARY_THRESH,
        ),
    )


def _proposal_settings(cfg: Any, pre_nms: int, post_nms: int) -> ProposalSettings:
    return ProposalSettings(
        pre_nms=pre_nms,
        post_nms=post_nms,
        nms_threshold=cfg.MODEL.RPN.NMS_THRESH,
        min_size=cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
    )
