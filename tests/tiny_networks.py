"""Networks that train in a second on a processor: an R-CNN for tests of what stands around it, and every system."""

from typing import Any

from detseg.models.table import ARCHITECTURES

TINY_RCNN = {
    "MODEL.ENGINE": "native",
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
}
# Two iterations, a checkpoint after each, and nothing that is only looked at.
TWO_ITERATIONS = {
    "SOLVER.MAX_ITER": 2,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.EVAL_PERIOD": 0,
    "TEST.OVERLAYS": 0,
    "DATALOADER.NUM_WORKERS": 0,
}
SMALL_MODEL = {
    "MODEL.ENGINE": "native",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 200,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 200,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.MASK_ON": True,
    "TEST.DETECTIONS_PER_IMAGE": 20,
}
# What makes a bottleneck ResNet of SMALL_MODEL.
NARROW_50 = {
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
}
SMALL_UNET = {
    "MODEL.MASK_ON": True,
    "MODEL.UNET.ENCODER": "plain",
    "MODEL.UNET.CHANNELS": [8, 4],
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.PIXEL_STD": [57.4, 57.1, 58.4],
}
_HEADS = {"MODEL.UNET.HEADS": ["distance", "boundary", "flows", "stars"], "MODEL.UNET.OBJECTS_FROM": "stars"}
# What every system promises is tested over this table. Those of torchvision and SAM have weights and inputs of their
# own (test_torchvision.py, test_prompted.py).
SYSTEMS = {
    name: {"MODEL.META_ARCHITECTURE": name}
    | (SMALL_MODEL if row.finds_boxes else SMALL_UNET)
    | (_HEADS if name == "InstanceUNet" else {})
    for name, row in ARCHITECTURES.items()
    if (row.finds_boxes or row.averages_maps) and name != "TorchvisionMaskRCNN"
}


def as_words(keys: dict[str, Any]) -> list[Any]:
    """Return keys and values alternately, as on a command line."""
    return [word for pair in keys.items() for word in pair]
