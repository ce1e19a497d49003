"""What torchvision's Mask R-CNN (MODEL.META_ARCHITECTURE TorchvisionMaskRCNN) acts on of the MODEL keys.

All other MODEL keys describe networks that it is not: with another value than the default they are refused.
"""

from __future__ import annotations

from typing import Any

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
