"""The R-CNN family from configuration keys; the parts themselves know no configuration."""

from __future__ import annotations

from typing import Any

from torch import nn

from detseg.errors import ConfigError
from detseg.models.rcnn.anchors import AnchorGenerator
from detseg.models.rcnn.box_coding import BoxCoder
from detseg.models.rcnn.box_head import BoxPredictor, ConvFCHead
from detseg.models.rcnn.fpn import FPN
from detseg.models.rcnn.generalized_rcnn import GeneralizedRCNN
from detseg.models.rcnn.images import ImageInput
from detseg.models.rcnn.layers import NORMS
from detseg.models.rcnn.mask_head import MaskHead
from detseg.models.rcnn.matching import Matcher
from detseg.models.rcnn.pooler import Pooler
from detseg.models.rcnn.resnet import BLOCKS_OF_DEPTH, STAGES, make_resnet
from detseg.models.rcnn.roi_heads import RegionSampling, ROIHeads
from detseg.models.rcnn.rpn import RPN, ProposalSettings, RPNHead, RPNLossSettings
from detseg.models.torchvision_ops import require_operators


def build_generalized_rcnn(cfg: Any) -> GeneralizedRCNN:
    """Build Mask R-CNN; raises ConfigError for a part that is not known."""
    require_operators()
    backbone = build_backbone(cfg)
    return GeneralizedRCNN(
        image_input=ImageInput(
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            bgr=_known("INPUT.FORMAT", cfg.INPUT.FORMAT, ("BGR", "RGB")) == "BGR",
            size_divisibility=backbone.size_divisibility,
        ),
        backbone=backbone,
        proposal_generator=build_rpn(cfg, backbone),
        roi_heads=build_roi_heads(cfg, backbone),
    )


def build_backbone(cfg: Any) -> nn.Module:
    """Build ResNet with FPN."""
    _known("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, ("build_resnet_fpn_backbone",))
    fpn = cfg.MODEL.FPN
    for name in fpn.IN_FEATURES:
        _known("MODEL.FPN.IN_FEATURES", name, cfg.MODEL.RESNETS.OUT_FEATURES)
    return FPN(
        build_resnet(cfg),
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=_known_norm("MODEL.FPN.NORM", fpn.NORM),
        fuse_type=_known("MODEL.FPN.FUSE_TYPE", fpn.FUSE_TYPE, ("sum", "avg")),
    )


def build_resnet(cfg: Any) -> nn.Module:
    """Build the ResNet, its first parts frozen as MODEL.BACKBONE.FREEZE_AT says."""
    resnets = cfg.MODEL.RESNETS
    for name in resnets.OUT_FEATURES:
        _known("MODEL.RESNETS.OUT_FEATURES", name, STAGES)
    return make_resnet(
        depth=_known("MODEL.RESNETS.DEPTH", resnets.DEPTH, tuple(BLOCKS_OF_DEPTH)),
        in_channels=len(cfg.MODEL.PIXEL_MEAN),
        stem_channels=resnets.STEM_OUT_CHANNELS,
        res2_channels=resnets.RES2_OUT_CHANNELS,
        norm=_known_norm("MODEL.RESNETS.NORM", resnets.NORM),
        width_per_group=resnets.WIDTH_PER_GROUP,
        groups=resnets.NUM_GROUPS,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def build_rpn(cfg: Any, backbone: nn.Module) -> RPN:
    """Build the region proposal network over the backbone's feature maps."""
    rpn = cfg.MODEL.RPN
    _known("MODEL.PROPOSAL_GENERATOR.NAME", cfg.MODEL.PROPOSAL_GENERATOR.NAME, ("RPN",))
    _known("MODEL.RPN.HEAD_NAME", rpn.HEAD_NAME, ("StandardRPNHead",))
    _known("MODEL.ANCHOR_GENERATOR.NAME", cfg.MODEL.ANCHOR_GENERATOR.NAME, ("DefaultAnchorGenerator",))
    strides, channels = _strides_and_channels("MODEL.RPN.IN_FEATURES", rpn.IN_FEATURES, backbone)
    try:
        anchors = AnchorGenerator(
            sizes=_lists(cfg.MODEL.ANCHOR_GENERATOR.SIZES),
            aspect_ratios=_lists(cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS),
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
        matcher=_matcher("MODEL.RPN", rpn, allow_low_quality_matches=True),
        coder=BoxCoder(rpn.BBOX_REG_WEIGHTS),
        train_proposals=_proposal_settings(cfg, rpn.PRE_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TRAIN),
        test_proposals=_proposal_settings(cfg, rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST),
        loss=RPNLossSettings(
            batch_size=rpn.BATCH_SIZE_PER_IMAGE,
            positive_fraction=rpn.POSITIVE_FRACTION,
            box_loss=_known("MODEL.RPN.BBOX_REG_LOSS_TYPE", rpn.BBOX_REG_LOSS_TYPE, ("smooth_l1", "giou")),
            smooth_l1_beta=rpn.SMOOTH_L1_BETA,
            weight=rpn.LOSS_WEIGHT,
            box_weight=rpn.BBOX_REG_LOSS_WEIGHT,
            boundary_threshold=rpn.BOUNDARY_THRESH,
        ),
    )


def build_roi_heads(cfg: Any, backbone: nn.Module) -> ROIHeads:
    """Build the box head and, with MODEL.MASK_ON, the mask head."""
    heads = cfg.MODEL.ROI_HEADS
    _known("MODEL.ROI_HEADS.NAME", heads.NAME, ("StandardROIHeads",))
    strides, channels = _strides_and_channels("MODEL.ROI_HEADS.IN_FEATURES", heads.IN_FEATURES, backbone)
    box_pooler = _pooler("MODEL.ROI_BOX_HEAD", cfg.MODEL.ROI_BOX_HEAD, strides)
    box_head = build_box_head(cfg, channels)
    mask_pooler = mask_head = None
    if cfg.MODEL.MASK_ON:
        mask_pooler = _pooler("MODEL.ROI_MASK_HEAD", cfg.MODEL.ROI_MASK_HEAD, strides)
        mask_head = build_mask_head(cfg, channels)
    return ROIHeads(
        in_features=heads.IN_FEATURES,
        sampling=RegionSampling(
            matcher=_matcher("MODEL.ROI_HEADS", heads),
            batch_size=heads.BATCH_SIZE_PER_IMAGE,
            positive_fraction=heads.POSITIVE_FRACTION,
            append_objects=heads.PROPOSAL_APPEND_GT,
        ),
        box_pooler=box_pooler,
        box_head=box_head,
        box_predictor=build_box_predictor(cfg, box_head.out_channels),
        mask_pooler=mask_pooler,
        mask_head=mask_head,
    )


def build_box_head(cfg: Any, in_channels: int) -> ConvFCHead:
    """Build the box head."""
    head = cfg.MODEL.ROI_BOX_HEAD
    _known("MODEL.ROI_BOX_HEAD.NAME", head.NAME, ("FastRCNNConvFCHead",))
    if head.NUM_FC + head.NUM_CONV < 1:
        raise ConfigError("MODEL.ROI_BOX_HEAD.NUM_FC and MODEL.ROI_BOX_HEAD.NUM_CONV are both 0: a head needs a layer")
    return ConvFCHead(
        in_channels=in_channels,
        size=head.POOLER_RESOLUTION,
        conv_channels=[head.CONV_DIM] * head.NUM_CONV,
        fc_channels=[head.FC_DIM] * head.NUM_FC,
        norm=_known_norm("MODEL.ROI_BOX_HEAD.NORM", head.NORM),
    )


def build_box_predictor(cfg: Any, in_channels: int) -> BoxPredictor:
    """Build the classifier and box regressor."""
    head = cfg.MODEL.ROI_BOX_HEAD
    return BoxPredictor(
        in_channels=in_channels,
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        class_agnostic=head.CLS_AGNOSTIC_BBOX_REG,
        coder=BoxCoder(head.BBOX_REG_WEIGHTS),
        box_loss=_known("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", head.BBOX_REG_LOSS_TYPE, ("smooth_l1", "giou")),
        smooth_l1_beta=head.SMOOTH_L1_BETA,
        box_weight=head.BBOX_REG_LOSS_WEIGHT,
        score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        nms_threshold=cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
    )


def build_mask_head(cfg: Any, in_channels: int) -> MaskHead:
    """Build the mask head."""
    head = cfg.MODEL.ROI_MASK_HEAD
    _known("MODEL.ROI_MASK_HEAD.NAME", head.NAME, ("MaskRCNNConvUpsampleHead",))
    return MaskHead(
        in_channels=in_channels,
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        conv_channels=[head.CONV_DIM] * head.NUM_CONV,
        deconv_channels=head.CONV_DIM,
        class_agnostic=head.CLS_AGNOSTIC_MASK,
        norm=_known_norm("MODEL.ROI_MASK_HEAD.NORM", head.NORM),
    )


def _proposal_settings(cfg: Any, pre_nms: int, post_nms: int) -> ProposalSettings:
    return ProposalSettings(
        pre_nms=pre_nms,
        post_nms=post_nms,
        nms_threshold=cfg.MODEL.RPN.NMS_THRESH,
        min_size=cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
    )


def _matcher(key: str, node: Any, allow_low_quality_matches: bool = False) -> Matcher:
    try:
        return Matcher(tuple(node.IOU_THRESHOLDS), tuple(node.IOU_LABELS), allow_low_quality_matches)
    except ValueError as error:
        raise ConfigError(f"{key}.IOU_THRESHOLDS and {key}.IOU_LABELS: {error}") from None


def _pooler(key: str, node: Any, strides: list[int]) -> Pooler:
    _known(f"{key}.POOLER_TYPE", node.POOLER_TYPE, ("ROIAlignV2",))
    return Pooler(output_size=node.POOLER_RESOLUTION, strides=strides, sampling_ratio=node.POOLER_SAMPLING_RATIO)


def _strides_and_channels(key: str, names: Any, backbone: nn.Module) -> tuple[list[int], int]:
    for name in names:
        _known(key, name, tuple(backbone.strides))
    channels = {backbone.channels[name] for name in names}
    if len(channels) != 1:
        raise ConfigError(f"{key}: these feature maps have different numbers of channels: {sorted(channels)}")
    return [backbone.strides[name] for name in names], channels.pop()


def _lists(values: Any) -> Any:
    """A flat list of numbers stands for all levels."""
    return values if isinstance(values[0], (list, tuple)) else [values]


def _known_norm(key: str, name: str) -> str:
    return _known(key, name, NORMS)


def _known(key: str, value: Any, known: Any) -> Any:
    if value not in known:
        raise ConfigError(
            f"{key} is {value!r}; the native engine knows {', '.join(repr(name) for name in known) or 'nothing here'}"
        )
    return value
