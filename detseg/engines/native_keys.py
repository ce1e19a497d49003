"""Which of Detectron2's keys the native engine honours, and which values of them it implements.

A key that it does not honour may stand at its default; with another value it is refused by name, never ignored. Keys of
parts that are switched off (keypoints, RetinaNet, ...) are not judged. detseg's own keys are all honoured.
"""

from __future__ import annotations

import fnmatch
import functools
import logging
from typing import Any

from detseg.config.node import Config
from detseg.config.problems import Problems
from detseg.config.schema import default_values, detectron2_defaults

_logger = logging.getLogger(__name__)

# What torchvision's Mask R-CNN (MODEL.META_ARCHITECTURE TorchvisionMaskRCNN) acts on of the MODEL keys.
#
# All other MODEL keys describe networks that it is not: with another value than the default they are refused.

ARCHITECTURE = "TorchvisionMaskRCNN"

# dotted names; * stands for any rest
TORCHVISION_HONOURED = (
    "MODEL.MASK_ON",
    "MODEL.DEVICE",
    "MODEL.META_ARCHITECTURE",
    "MODEL.WEIGHTS",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.RESNETS.NORM",
    "MODEL.ANCHOR_GENERATOR.SIZES",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    "MODEL.RPN.*_NMS_TOPK_*",
    "MODEL.RPN.NMS_THRESH",
    "MODEL.RPN.IOU_THRESHOLDS",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
    "MODEL.RPN.POSITIVE_FRACTION",
    "MODEL.ROI_HEADS.NUM_CLASSES",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST",
)
TORCHVISION_VALUES: dict[str, tuple[Any, ...]] = {
    "MODEL.MASK_ON": (True,),
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN"),
    "MODEL.TORCHVISION.NAME": ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"),
}


# what the engine of Detectron2 honours and the native one does not; * stands for any rest
DETECTRON2_ALONE = ("MODEL.*", "VIS_PERIOD", "TEST.PRECISE_BN.*")

# dotted names; * stands for any rest
HONOURED = (
    "VERSION",
    "MODEL.MASK_ON",
    "MODEL.DEVICE",
    "MODEL.META_ARCHITECTURE",
    "MODEL.WEIGHTS",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.BACKBONE.*",
    "MODEL.FPN.*",
    "MODEL.PROPOSAL_GENERATOR.*",
    "MODEL.ANCHOR_GENERATOR.NAME",
    "MODEL.ANCHOR_GENERATOR.SIZES",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    "MODEL.ANCHOR_GENERATOR.OFFSET",
    "MODEL.RPN.HEAD_NAME",
    "MODEL.RPN.IN_FEATURES",
    "MODEL.RPN.IOU_*",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
    "MODEL.RPN.POSITIVE_FRACTION",
    "MODEL.RPN.BBOX_REG_*",
    "MODEL.RPN.SMOOTH_L1_BETA",
    "MODEL.RPN.LOSS_WEIGHT",
    "MODEL.RPN.*_NMS_TOPK_*",
    "MODEL.RPN.NMS_THRESH",
    "MODEL.RPN.CONV_DIMS",
    "MODEL.RPN.BOUNDARY_THRESH",
    "MODEL.ROI_HEADS.*",
    "MODEL.ROI_BOX_HEAD.NAME",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_*",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
    "MODEL.ROI_BOX_HEAD.POOLER_*",
    "MODEL.ROI_BOX_HEAD.NUM_FC",
    "MODEL.ROI_BOX_HEAD.FC_DIM",
    "MODEL.ROI_BOX_HEAD.NUM_CONV",
    "MODEL.ROI_BOX_HEAD.CONV_DIM",
    "MODEL.ROI_BOX_HEAD.NORM",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
    "MODEL.ROI_MASK_HEAD.*",
    "MODEL.ROI_BOX_CASCADE_HEAD.*",
    "MODEL.RESNETS.*",
    "INPUT.MIN_SIZE_*",
    "INPUT.MAX_SIZE_*",
    "INPUT.RANDOM_FLIP",
    "INPUT.CROP.*",
    "INPUT.FORMAT",
    "DATASETS.TRAIN",
    "DATASETS.TEST",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.SAMPLER_TRAIN",
    "DATALOADER.REPEAT_*",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
    "SOLVER.LR_SCHEDULER_NAME",
    "SOLVER.MAX_ITER",
    "SOLVER.BASE_LR",
    "SOLVER.BASE_LR_END",
    "SOLVER.MOMENTUM",
    "SOLVER.NESTEROV",
    "SOLVER.WEIGHT_DECAY*",
    "SOLVER.GAMMA",
    "SOLVER.STEPS",
    "SOLVER.NUM_DECAYS",
    "SOLVER.RESCALE_INTERVAL",
    "SOLVER.WARMUP_*",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.CLIP_GRADIENTS.*",
    "SOLVER.AMP.ENABLED",
    "TEST.EVAL_PERIOD",
    "TEST.DETECTIONS_PER_IMAGE",
    "TEST.AUG.*",
    "OUTPUT_DIR",
    "SEED",
    "CUDNN_BENCHMARK",
    "FLOAT32_PRECISION",
)

# values of honoured keys that are implemented; every other value is refused, Detectron2's default too
IMPLEMENTED_VALUES: dict[str, tuple[Any, ...]] = {
    "MODEL.IMPORTS": ([],),
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", ARCHITECTURE),
    "MODEL.BACKBONE.NAME": ("build_resnet_fpn_backbone", "build_resnet_backbone"),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": ("smooth_l1", "giou"),
    "MODEL.ROI_HEADS.NAME": ("StandardROIHeads", "CascadeROIHeads", "Res5ROIHeads"),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead",),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": ("smooth_l1", "giou"),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2",),
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead",),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("ROIAlignV2",),
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "MODEL.RESNETS.NORM": ("", "BN", "SyncBN", "FrozenBN", "GN"),
    "MODEL.FPN.NORM": ("", "BN", "SyncBN", "FrozenBN", "GN"),
    "MODEL.ROI_BOX_HEAD.NORM": ("", "BN", "SyncBN", "FrozenBN", "GN"),
    "MODEL.ROI_MASK_HEAD.NORM": ("", "BN", "SyncBN", "FrozenBN", "GN"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
}


# what only training acts on, so that a trained model can predict whatever it was trained with
TRAINING_ONLY = (
    "SOLVER.*",
    "DATASETS.TRAIN",
    "DATASETS.*_TRAIN",
    "DATALOADER.SAMPLER_TRAIN",
    "DATALOADER.REPEAT_*",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
    "DATALOADER.ASPECT_RATIO_GROUPING",
    "INPUT.*_TRAIN*",
    "INPUT.CROP.*",
    "INPUT.RANDOM_*",
    "INPUT.MASK_FORMAT",
    "TEST.PRECISE_BN.*",
    "TEST.EVAL_PERIOD",
    "VIS_PERIOD",
)

# the parts of a box head of its own, which Res5ROIHeads do not have
_BOX_HEAD_LAYERS = [
    "MODEL.ROI_BOX_HEAD.NAME",
    "MODEL.ROI_BOX_HEAD.NUM_FC",
    "MODEL.ROI_BOX_HEAD.FC_DIM",
    "MODEL.ROI_BOX_HEAD.NUM_CONV",
    "MODEL.ROI_BOX_HEAD.CONV_DIM",
    "MODEL.ROI_BOX_HEAD.NORM",
]


def is_honoured(key: str, architecture: str = "GeneralizedRCNN") -> bool:
    """Whether the native engine acts on this key of Detectron2's; detseg's own keys are honoured always."""
    patterns = TORCHVISION_HONOURED if architecture == ARCHITECTURE and key.startswith("MODEL.") else HONOURED
    return key not in detectron2_defaults() or any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def implemented_values(architecture: str) -> dict[str, tuple[Any, ...]]:
    """IMPLEMENTED_VALUES as they are for one MODEL.META_ARCHITECTURE."""
    if architecture != ARCHITECTURE:
        return IMPLEMENTED_VALUES
    others = {key: values for key, values in IMPLEMENTED_VALUES.items() if is_honoured(key, architecture)}
    return others | TORCHVISION_VALUES


def inactive_patterns(cfg: Config) -> list[str]:
    """Patterns of the keys that belong to parts which this configuration does not use."""
    model, solver = cfg.MODEL, cfg.SOLVER
    architecture = model.META_ARCHITECTURE
    parts = [
        (model.KEYPOINT_ON, ["MODEL.ROI_KEYPOINT_HEAD.*", "TEST.KEYPOINT_OKS_SIGMAS"]),
        (model.MASK_ON, ["MODEL.ROI_MASK_HEAD.*"]),
        (model.LOAD_PROPOSALS, ["DATASETS.PROPOSAL_FILES_*", "DATASETS.PRECOMPUTED_PROPOSAL_*"]),
        (architecture == "RetinaNet", ["MODEL.RETINANET.*"]),
        (architecture in ("SemanticSegmentor", "PanopticFPN"), ["MODEL.SEM_SEG_HEAD.*"]),
        (architecture == "PanopticFPN", ["MODEL.PANOPTIC_FPN.*"]),
        (model.BACKBONE.NAME.endswith("_fpn_backbone"), ["MODEL.FPN.*"]),
        (model.ROI_HEADS.NAME != "Res5ROIHeads", [*_BOX_HEAD_LAYERS, "MODEL.ROI_MASK_HEAD.POOLER_*"]),
        (model.ROI_HEADS.NAME == "CascadeROIHeads", ["MODEL.ROI_BOX_CASCADE_HEAD.*"]),
        (model.ANCHOR_GENERATOR.NAME == "RotatedAnchorGenerator", ["MODEL.ANCHOR_GENERATOR.ANGLES"]),
        (any(model.RESNETS.DEFORM_ON_PER_STAGE), ["MODEL.RESNETS.DEFORM_MODULATED", "MODEL.RESNETS.DEFORM_NUM_GROUPS"]),
        (model.ROI_BOX_HEAD.USE_FED_LOSS, ["MODEL.ROI_BOX_HEAD.FED_LOSS_*"]),
        (cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler", ["DATALOADER.REPEAT_*"]),
        (solver.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR", ["SOLVER.NUM_DECAYS"]),
        (cfg.TEST.AUG.ENABLED, ["TEST.AUG.MIN_SIZES", "TEST.AUG.MAX_SIZE", "TEST.AUG.FLIP"]),
        (cfg.TEST.PRECISE_BN.ENABLED, ["TEST.PRECISE_BN.NUM_ITER"]),
    ]
    return [pattern for used, patterns in parts if not used for pattern in patterns]


def check_native(cfg: Config, *, training: bool = True) -> None:
    """Refuse every key that the native engine would have to ignore.

    training: False leaves out what only training acts on.

    A key that is not honoured and says what Detectron2's default is (a file that Detectron2 dumped holds them all) is
    accepted with a warning, since nobody chose it.

    Raises:
        ConfigError: naming each such key, where it was set and what is implemented.
    """
    problems = Problems(cfg)
    ours, theirs = _defaults(), detectron2_defaults()
    architecture = cfg.MODEL.META_ARCHITECTURE
    implemented = implemented_values(architecture)
    patterns = [*inactive_patterns(cfg), *(() if training else TRAINING_ONLY)]
    for key, value in cfg.flatten().items():
        if any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns):
            continue
        if key in implemented:
            if value not in implemented[key]:
                choices = " or ".join(repr(choice) for choice in implemented[key])
                problems.add(key, f"the native engine implements {choices}{_advice(key)}")
        elif not is_honoured(key, architecture) and value != ours[key]:
            if value == theirs[key]:
                _logger.warning(
                    "%s = %r (%s) is Detectron2's default, which the native engine does not follow: it does %r",
                    key,
                    value,
                    cfg.origin(key),
                    ours[key],
                )
            else:
                expected = f"the native engine does not honour this key; leave it at {ours[key]!r}{_advice(key)}"
                problems.add(key, expected)
    problems.raise_if_any()


def _advice(key: str) -> str:
    if any(fnmatch.fnmatchcase(key, pattern) for pattern in DETECTRON2_ALONE):
        return "; for anything else set MODEL.ENGINE detectron2, which takes Detectron2 itself"
    return ", and so does that of Detectron2"


@functools.cache
def _defaults() -> dict[str, Any]:
    return default_values()
