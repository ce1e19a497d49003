"""Mask R-CNN and its relatives: all options of a GeneralizedRCNN, and the model from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from detseg.config.node import Config
from detseg.config.options import Options, Problems, key, part
from detseg.errors import ConfigError
from detseg.models.image_input import ImageInput
from detseg.models.options import ImageInputOptions
from detseg.models.rcnn.anchors import AnchorGenerator
from detseg.models.rcnn.box_head import BoxPredictor, ConvFCHead
from detseg.models.rcnn.boxes import BoxCoder, BoxRegressionOptions
from detseg.models.rcnn.fpn import FPN, FPNOptions, are_successive
from detseg.models.rcnn.generalized_rcnn import GeneralizedRCNN
from detseg.models.rcnn.mask_head import MaskHead
from detseg.models.rcnn.mask_quality import QualityHead
from detseg.models.rcnn.matching import Matcher, MatchingOptions
from detseg.models.rcnn.regions import RegionSampling
from detseg.models.rcnn.resnet import STAGES, ResNet, ResNetOptions
from detseg.models.rcnn.roi_align import Pooler, PoolerOptions
from detseg.models.rcnn.roi_heads import CascadeROIHeads, Res5ROIHeads, ROIHeads, ROIHeadsOptions, make_res5
from detseg.models.rcnn.rpn import RPN, RPNHead, RPNOptions
from detseg.models.timm_backbone import TimmBackbone, TimmOptions
from detseg.models.torchvision_ops import require_operators

_WITH_FPN, _WITHOUT_FPN, _TIMM = "build_resnet_fpn_backbone", "build_resnet_backbone", "build_timm_fpn_backbone"


def _has_resnet(cfg: Config) -> bool:
    return cfg.MODEL.BACKBONE.NAME in (_WITH_FPN, _WITHOUT_FPN)


@dataclass(frozen=True)
class RCNNOptions(Options):
    """The options of a GeneralizedRCNN.

    Parts are None if they are not used, or replaced by the user's own code in Detectron2.
    """

    backbone: str = key("MODEL.BACKBONE.NAME", choices=(_WITH_FPN, _WITHOUT_FPN, _TIMM), registry=True)
    proposal_generator: str = key("MODEL.PROPOSAL_GENERATOR.NAME", choices=("RPN",), registry=True)
    masks: bool = key("MODEL.MASK_ON")
    image_input: ImageInputOptions = part(ImageInputOptions)
    resnet: ResNetOptions | None = part(ResNetOptions, when=_has_resnet)
    timm: TimmOptions | None = part(TimmOptions, when=lambda cfg: cfg.MODEL.BACKBONE.NAME == _TIMM)
    fpn: FPNOptions | None = part(FPNOptions, when=lambda cfg: cfg.MODEL.BACKBONE.NAME in (_WITH_FPN, _TIMM))
    rpn: RPNOptions | None = part(RPNOptions, when=lambda cfg: cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN")
    heads: ROIHeadsOptions = part(ROIHeadsOptions)

    def check(self, problems: Problems) -> None:
        if self.resnet is None and self.timm is None:
            return
        given = self.timm.features if self.resnet is None else self.resnet.out_features
        if self.fpn is not None:
            if not set(self.fpn.in_features) <= set(given):
                whose = "MODEL.RESNETS.OUT_FEATURES" if self.timm is None else f"those of {self.timm.name},"
                problems.add("MODEL.FPN.IN_FEATURES", f"expected some of {whose} {list(given)}")
                return
            if self.resnet is not None and self.resnet.res5_dilation != 1 and "res5" in self.fpn.in_features:
                problems.add("MODEL.RESNETS.RES5_DILATION", "an FPN needs halving levels: set 1")
            given = self.fpn.features
        used = {"MODEL.ROI_HEADS.IN_FEATURES": self.heads.in_features}
        if self.rpn is not None:
            used["MODEL.RPN.IN_FEATURES"] = self.rpn.in_features
        for name, features in used.items():
            if not set(features) <= set(given):
                problems.add(name, f"expected some of the backbone's outputs: {list(given)}")
        if not are_successive(self.heads.in_features):
            problems.add(
                "MODEL.ROI_HEADS.IN_FEATURES",
                "expected consecutive levels, finest first: each region is pooled from the level for its size",
            )
        if self.heads.name == "Res5ROIHeads":
            self._check_res5_heads(problems)

    def _check_res5_heads(self, problems: Problems) -> None:
        if self.fpn is not None or self.heads.in_features != ("res4",):
            problems.add(
                "MODEL.ROI_HEADS.IN_FEATURES",
                'Res5ROIHeads continue ["res4"] of MODEL.BACKBONE.NAME build_resnet_backbone; over an FPN or res5 take '
                "MODEL.ROI_HEADS.NAME StandardROIHeads",
            )
            return
        if self.resnet.deform_on_stages[-1]:
            expected = "the res5 of Res5ROIHeads does not deform: set it to False"
            problems.add("MODEL.RESNETS.DEFORM_ON_PER_STAGE", expected)


def build_generalized_rcnn(options: RCNNOptions) -> GeneralizedRCNN:
    """Build Mask R-CNN or one of its relatives, randomly initialized."""
    require_operators()
    backbone = _build_backbone(options)
    return GeneralizedRCNN(
        image_input=ImageInput.from_options(options.image_input, size_divisibility=backbone.size_divisibility),
        backbone=backbone,
        proposal_generator=_build_rpn(options.rpn, backbone),
        roi_heads=_build_roi_heads(options.heads, options.resnet, backbone),
    )


def _build_backbone(options: RCNNOptions) -> nn.Module:
    """Return a ResNet, with or without FPN, or a timm network with FPN."""
    if options.timm is None:
        body = _build_resnet(options.resnet, len(options.image_input.pixel_mean))
    else:
        body = TimmBackbone(
            **asdict(options.timm),
            in_channels=len(options.image_input.pixel_mean),
            out_features=options.fpn.in_features,
        )
    return body if options.fpn is None else FPN(body, **asdict(options.fpn))


def _build_resnet(resnet: ResNetOptions, in_channels: int) -> ResNet:
    return ResNet(
        depth=resnet.depth,
        in_channels=in_channels,
        stem_channels=resnet.stem_channels,
        res2_channels=resnet.res2_channels,
        norm=resnet.norm,
        groups=resnet.groups,
        res5_dilation=resnet.res5_dilation,
        deformable=resnet.deformable,
        deformable_stages=[name for name, on in zip(STAGES, resnet.deform_on_stages, strict=True) if on],
        resnest=resnet.resnest,
        out_features=resnet.out_features,
        freeze_at=resnet.freeze_at,
        **({} if resnet.bottleneck is None else asdict(resnet.bottleneck)),
    )


def _build_rpn(options: RPNOptions, backbone: nn.Module) -> RPN:
    strides, channels = _strides_and_channels("MODEL.RPN.IN_FEATURES", options.in_features, backbone)
    anchors = AnchorGenerator(
        sizes=options.anchors.sizes,
        aspect_ratios=options.anchors.aspect_ratios,
        strides=strides,
        offset=options.anchors.offset,
    )
    return RPN(
        options,
        head=RPNHead(channels, anchors.anchors_per_position[0], options.conv_channels),
        anchor_generator=anchors,
        matcher=_build_matcher(options.matching, allow_low_quality_matches=True),
        coder=_build_coder(options.regression),
    )


def _build_roi_heads(options: ROIHeadsOptions, resnet: ResNetOptions, backbone: nn.Module) -> ROIHeads:
    strides, channels = _strides_and_channels("MODEL.ROI_HEADS.IN_FEATURES", options.in_features, backbone)
    matching = options.matching
    common: dict[str, Any] = {
        "num_classes": options.num_classes,
        "sampling": RegionSampling(
            matcher=_build_matcher(matching),
            batch_size=matching.batch_size,
            positive_fraction=matching.positive_fraction,
            append_objects=options.append_objects,
        ),
    }
    box_pooler = _build_pooler(options.box_pooler, strides)
    if options.name == "Res5ROIHeads":
        res5 = make_res5(
            res2_channels=resnet.res2_channels,
            groups=resnet.groups,
            norm=resnet.norm,
            **asdict(resnet.bottleneck),
        )
        channels = resnet.res2_channels * 8
        return Res5ROIHeads(
            in_feature=options.in_features[0],
            pooler=box_pooler,
            res5=res5,
            box_predictor=_build_predictor(options, channels, _build_coder(options.box_regression)),
            mask_head=_build_mask_head(options, channels),
            quality_head=_build_quality_head(options, channels, (options.box_pooler.resolution + 1) // 2),
            **common,
        )
    common |= {"in_features": options.in_features, "box_pooler": box_pooler}
    if options.cascade is None:
        # This order keeps the initial weights of a seed as they have always been.
        box_head = _build_box_head(options, channels)
        common |= _mask_parts(options, strides, channels)
        predictor = _build_predictor(options, box_head.out_channels, _build_coder(options.box_regression))
        common["quality_head"] = _build_quality_head(options, channels)
        return ROIHeads(box_head=box_head, box_predictor=predictor, **common)
    box_heads, predictors = [], []
    for weights in options.cascade.weights:
        box_heads.append(_build_box_head(options, channels))
        coder = _build_coder(options.box_regression, weights)
        predictors.append(_build_predictor(options, box_heads[-1].out_channels, coder))
    common |= _mask_parts(options, strides, channels)
    common["quality_head"] = _build_quality_head(options, channels)
    matchers = [Matcher((iou,), (0, 1)) for iou in options.cascade.ious[1:]]
    return CascadeROIHeads(matchers=matchers, box_heads=box_heads, box_predictors=predictors, **common)


def _mask_parts(options: ROIHeadsOptions, strides: Sequence[int], channels: int) -> dict[str, nn.Module]:
    if options.mask_head is None:
        return {}
    pooler = _build_pooler(options.mask_head.pooler, strides)
    return {"mask_pooler": pooler, "mask_head": _build_mask_head(options, channels)}


def _build_box_head(options: ROIHeadsOptions, in_channels: int) -> ConvFCHead:
    layers = options.box_head.layers
    return ConvFCHead(
        in_channels=in_channels,
        size=options.box_pooler.resolution,
        conv_channels=[layers.conv_channels] * layers.num_conv,
        fc_channels=[layers.fc_channels] * layers.num_fc,
        norm=layers.norm,
    )


def _build_predictor(options: ROIHeadsOptions, in_channels: int, coder: BoxCoder) -> BoxPredictor:
    return BoxPredictor(
        in_channels=in_channels,
        num_classes=options.num_classes,
        class_agnostic=options.class_agnostic,
        coder=coder,
        box_weight=options.box_regression.loss_weight,
        score_threshold=options.score_threshold,
        nms_threshold=options.nms_threshold,
        detections_per_image=options.detections_per_image,
    )


def _build_mask_head(options: ROIHeadsOptions, in_channels: int) -> MaskHead | None:
    if options.mask_head is None:
        return None
    layers = options.mask_head.layers
    return MaskHead(
        in_channels=in_channels,
        num_classes=options.num_classes,
        conv_channels=[layers.channels] * layers.num_conv,
        deconv_channels=layers.channels,
        class_agnostic=layers.class_agnostic,
        norm=layers.norm,
        boundary_weight=layers.boundary_weight,
    )


def _build_quality_head(options: ROIHeadsOptions, in_channels: int, size: int | None = None) -> QualityHead | None:
    """Return the quality head. It is built last, so that the initial weights of the other parts do not depend on it.

    size: of the pooled regions; None for that of the mask head's pooler.
    """
    if options.mask_head is None or options.mask_head.quality is None:
        return None
    return QualityHead(
        options.mask_head.quality,
        in_channels=in_channels,
        size=options.mask_head.pooler.resolution if size is None else size,
        num_classes=options.num_classes,
        norm=options.mask_head.layers.norm,
    )


def _build_matcher(options: MatchingOptions, *, allow_low_quality_matches: bool = False) -> Matcher:
    return Matcher(options.thresholds, options.labels, allow_low_quality_matches)


def _build_coder(options: BoxRegressionOptions, weights: Sequence[float] | None = None) -> BoxCoder:
    return BoxCoder(weights or options.weights, loss=options.loss, beta=options.beta)


def _build_pooler(options: PoolerOptions, strides: Sequence[int]) -> Pooler:
    return Pooler(output_size=options.resolution, strides=strides, sampling_ratio=options.sampling_ratio)


def _strides_and_channels(name: str, features: Sequence[str], backbone: nn.Module) -> tuple[list[int], int]:
    """The strides of the named feature maps and their common number of channels."""
    channels = {backbone.channels[feature] for feature in features}
    if len(channels) != 1:
        raise ConfigError(f"{name}: these feature maps have different numbers of channels: {sorted(channels)}")
    return [backbone.strides[feature] for feature in features], channels.pop()
