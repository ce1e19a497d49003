"""The R-CNN family from configuration keys; the parts themselves know no configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from detseg.errors import ConfigError
from detseg.models.rcnn.anchors import AnchorGenerator
from detseg.models.rcnn.box_head import BoxPredictor, ConvFCHead
from detseg.models.rcnn.boxes import BoxCoder
from detseg.models.rcnn.deformable import Deformable
from detseg.models.rcnn.generalized_rcnn import GeneralizedRCNN, ImageInput
from detseg.models.rcnn.layers import NORMS
from detseg.models.rcnn.mask_head import MaskHead
from detseg.models.rcnn.matching import Matcher
from detseg.models.rcnn.regions import RegionSampling
from detseg.models.rcnn.resnet import BLOCKS_OF_DEPTH, FEATURES, FPN, STAGES, make_resnet
from detseg.models.rcnn.roi_align import Pooler
from detseg.models.rcnn.roi_heads import CascadeROIHeads, Res5ROIHeads, ROIHeads, make_res5
from detseg.models.rcnn.rpn import RPN, ProposalSettings, RPNHead, RPNLossSettings
from detseg.models.torchvision_ops import require_operators

# Small parts of the R-CNN family from configuration keys, and the refusal of values that are not known.


def make_matcher(key: str, node: Any, allow_low_quality_matches: bool = False) -> Matcher:
    """Build the Matcher of a section (`key`, `node`) of the configuration."""
    try:
        return Matcher(tuple(node.IOU_THRESHOLDS), tuple(node.IOU_LABELS), allow_low_quality_matches)
    except ValueError as error:
        raise ConfigError(f"{key}.IOU_THRESHOLDS and {key}.IOU_LABELS: {error}") from None


def make_pooler(key: str, node: Any, strides: list[int]) -> Pooler:
    """Build the pooling of a section (`key`, `node`) for feature maps of these strides."""
    known(f"{key}.POOLER_TYPE", node.POOLER_TYPE, ("ROIAlignV2",))
    return Pooler(output_size=node.POOLER_RESOLUTION, strides=strides, sampling_ratio=node.POOLER_SAMPLING_RATIO)


def strides_and_channels(key: str, names: Any, backbone: nn.Module) -> tuple[list[int], int]:
    """Return the strides of the named feature maps and their number of channels, which must be one."""
    for name in names:
        known(key, name, tuple(backbone.strides))
    channels = {backbone.channels[name] for name in names}
    if len(channels) != 1:
        raise ConfigError(f"{key}: these feature maps have different numbers of channels: {sorted(channels)}")
    return [backbone.strides[name] for name in names], channels.pop()


def one_list_for_all(values: Any) -> Any:
    """A flat list of numbers stands for all levels."""
    return values if isinstance(values[0], (list, tuple)) else [values]


def known_norm(key: str, name: str) -> str:
    """Return the name of a normalisation that there is, or raise ConfigError."""
    return known(key, name, NORMS)


def known(key: str, value: Any, choices: Any) -> Any:
    """Return a value that is among the choices, or raise ConfigError naming the key and the choices."""
    if value not in choices:
        raise ConfigError(
            f"{key} is {value!r}; the native engine knows {', '.join(repr(name) for name in choices) or 'nothing here'}"
        )
    return value


# The region heads of the R-CNN family from configuration keys.


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
