"""What Detectron2 supports here, by key."""

from __future__ import annotations

import torch
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
)

from detseg.config.options import Problems
from detseg.detectron2.keys import REFUSED, note_keys
from detseg.models.table import num_classes

REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
}
_NORMS = ("MODEL.RESNETS.NORM", "MODEL.FPN.NORM", "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM")
_NATIVE_STAGE = "res1"
_WIDTH_OF_SMALL = 64


def note_problems(problems: Problems) -> None:
    """Add problems for values that Detectron2 does not know or support here, and for keys that it would ignore."""
    _check_names(problems)
    note_keys(problems)
    _check_classes(problems)
    _check_device(problems)


def _check_names(problems: Problems) -> None:
    cfg = problems.cfg
    for key, registry in REGISTRIES.items():
        used = cfg.MODEL.MASK_ON or "MASK_HEAD" not in key
        if used and cfg[key] and cfg[key] not in registry and cfg[key] not in REFUSED.get(key, {}):
            known = ", ".join(sorted(name for name, _ in registry))
            problems.add(key, f"Detectron2 knows {known}; MODEL.IMPORTS adds code of yours")
    for key in ("MODEL.RESNETS.OUT_FEATURES", "MODEL.FPN.IN_FEATURES"):
        if _NATIVE_STAGE in cfg[key]:
            problems.add(key, f"{_NATIVE_STAGE} works only in the native engine: set MODEL.ENGINE native")
    resnets = cfg.MODEL.RESNETS
    is_resnet = cfg.MODEL.BACKBONE.NAME in ("build_resnet_backbone", "build_resnet_fpn_backbone")
    if is_resnet and resnets.DEPTH in (18, 34) and resnets.RES2_OUT_CHANNELS != _WIDTH_OF_SMALL:
        problems.add(
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
            f"Detectron2's depths 18 and 34 have {_WIDTH_OF_SMALL}: set it, or MODEL.ENGINE native",
        )


def _check_classes(problems: Problems) -> None:
    """Check that the number of classes is MODEL.ROI_HEADS.NUM_CLASSES in every architecture."""
    cfg = problems.cfg
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" and num_classes(cfg) != cfg.MODEL.RETINANET.NUM_CLASSES:
        problems.add("MODEL.RETINANET.NUM_CLASSES", "expected MODEL.ROI_HEADS.NUM_CLASSES: set both")


def _check_device(problems: Problems) -> None:
    """Check the features that Detectron2 supports only on CUDA."""
    cfg = problems.cfg
    if cfg.MODEL.DEVICE.startswith("cuda") or (cfg.MODEL.DEVICE == "auto" and torch.cuda.is_available()):
        return
    resnets = cfg.MODEL.RESNETS
    if any(resnets.DEFORM_ON_PER_STAGE) and (problems.training or resnets.DEFORM_MODULATED):
        problems.add(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE",
            "Detectron2's deformable convolutions need CUDA: set MODEL.ENGINE native",
        )
    if not problems.training:
        return
    if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE != "auto":
        problems.add("SOLVER.AMP.DTYPE", "Detectron2's mixed precision needs CUDA: set auto, or MODEL.ENGINE native")
    for key in _NORMS:
        if "SyncBN" in cfg[key] and (cfg.MODEL.MASK_ON or "MASK_HEAD" not in key):
            problems.add(key, "Detectron2's SyncBN needs CUDA: set BN, or MODEL.ENGINE native")
