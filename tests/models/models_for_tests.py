"""Small models and samples for the tests of this room."""

from __future__ import annotations

import numpy as np
import torch
from rcnn_architectures import C4, CASCADE, DC5
from tiny_networks import NARROW_50, SMALL_MODEL

from detseg.config import load_flat_config
from detseg.engines.build import build_model
from detseg.models.base import Segmenter
from detseg.structures.label_layers import LabelLayers
from detseg.structures.predictions import Predictions
from detseg.structures.sample import Sample

# What turns SMALL_MODEL into its relatives.
RELATIVES = {
    "cascade": CASCADE,
    "C4": NARROW_50 | C4,
    "DC5": NARROW_50 | DC5,
    "stride 2": {
        "MODEL.RESNETS.OUT_FEATURES": ["res1", "res2", "res3", "res4", "res5"],
        "MODEL.FPN.IN_FEATURES": ["res1", "res2", "res3", "res4", "res5"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[4], [8], [16], [32], [64], [128]],
        "MODEL.RPN.IN_FEATURES": ["p1", "p2", "p3", "p4", "p5", "p6"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["p1", "p2", "p3", "p4", "p5"],
    },
    "deformable": NARROW_50 | {"MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, True, True]},
    "modulated, grouped": NARROW_50
    | {
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, False, True],
        "MODEL.RESNETS.DEFORM_MODULATED": True,
        "MODEL.RESNETS.DEFORM_NUM_GROUPS": 2,
        "MODEL.RESNETS.NUM_GROUPS": 4,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    },
    "cascade, GN, convolutions": CASCADE
    | {
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.FPN.NORM": "GN",
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 2,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
        "MODEL.ROI_BOX_HEAD.NORM": "GN",
    },
}


def relative(name: str, **changes: object) -> Segmenter:
    """Return one of RELATIVES as a small model."""
    return small_model(**(RELATIVES[name] | changes))


def small_model(seed: int = 0, **changes: object) -> Segmenter:
    """Return a small model with initial weights; changes: keys with __ for the dots."""
    keys = SMALL_MODEL | {name.replace("__", "."): value for name, value in changes.items()}
    torch.manual_seed(seed)
    return build_model(load_flat_config(keys))


def disks(count: int, size: tuple[int, int], radius: float = 6.0, seed: int = 0, channels: int = 3) -> Sample:
    """Return an image with bright disks of two classes."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    labels = np.zeros(size, dtype=np.int32)
    for index in range(count):
        center_y, center_x = rng.uniform(0, height), rng.uniform(0, width)
        labels[(y - center_y) ** 2 + (x - center_x) ** 2 < radius**2] = index + 1
    layers = LabelLayers.from_label_image(labels)
    noise = rng.normal(60, 10, (height, width, channels))
    image = (noise + 100 * (labels > 0)[..., None]).clip(0, 255).astype(np.uint8)
    return Sample(image, layers, rng.integers(0, 2, len(layers)), image_id=seed, file_name=f"disks_{seed}.png")


def without_objects(size: tuple[int, int], channels: int = 3) -> Sample:
    """Return an image of noise without objects."""
    image = np.random.default_rng(0).integers(0, 255, (*size, channels)).astype(np.uint8)
    return Sample(image, LabelLayers.empty(*size), file_name="nothing.png")


def given_boxes(boxes, size: tuple[int, int], classes=None) -> Predictions:
    """External boxes (N, 4) of an image of size (height, width), of class 0 unless `classes` says others."""
    return Predictions(0, "", *size, boxes, np.ones(len(boxes)), np.zeros(len(boxes)) if classes is None else classes)


def share_found(found: np.ndarray, labels: np.ndarray, iou: float = 0.95) -> float:
    """Return the share of the objects of a label image (H, W) that one of `found` (H, W) matches by `iou` or more."""
    hits = 0
    for number in range(1, labels.max() + 1):
        own = labels == number
        same = found == np.bincount(found[own]).argmax()
        hits += (own & same).sum() >= iou * (own | same).sum()
    return hits / labels.max()
