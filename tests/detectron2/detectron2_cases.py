"""What the tests against Detectron2 share: small models, images and configurations for both engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rcnn_architectures import C4, CASCADE, DC5
from tiny_networks import NARROW_50, SMALL_MODEL

from detseg.config import Config, get_default_config, load_flat_config
from detseg.engines.build import build_model
from detseg.models.base import Segmenter
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample


def require_detectron2() -> None:
    """Skip a module of tests where Detectron2 does not import."""
    pytest.importorskip(
        "detectron2.modeling",
        reason="needs Detectron2 itself: https://detectron2.readthedocs.io/tutorials/install.html",
        exc_type=ImportError,
    )


# A narrow ResNet-50 pyramid. Sampling takes all there is, so that no random choice is left.
KEYS: dict[str, Any] = {
    **SMALL_MODEL,
    **NARROW_50,
    "MODEL.DEVICE": "cpu",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100_000,
    "MODEL.RPN.POSITIVE_FRACTION": 1.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 100_000,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "FPN": {},
    "FPN, GN, class-agnostic masks": {
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.FPN.NORM": "GN",
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": "giou",
    },
    "no normalisation, diou": {
        "MODEL.RESNETS.NORM": "",
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": "diou",
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "diou",
    },
    "LN, ciou, from the stem": {
        "MODEL.RESNETS.NORM": "LN",
        "MODEL.RESNETS.OUT_FEATURES": ["stem", "res3", "res4", "res5"],
        "MODEL.FPN.IN_FEATURES": ["stem", "res3", "res4", "res5"],
        "MODEL.FPN.NORM": "LN",
        "MODEL.ROI_MASK_HEAD.NORM": "LN",
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": "ciou",
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "ciou",
    },
    "cascade": CASCADE,
    "C4": C4,
    "DC5": DC5,
    "deformable": {"MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, False, True, True]},
}


def in_both_engines(architecture: str, **changes: Any) -> tuple[Segmenter, Segmenter]:
    """Detectron2's model and the native one with its weights; changes: keys with __ for the dots."""
    keys = KEYS | ARCHITECTURES[architecture] | {name.replace("__", "."): value for name, value in changes.items()}
    torch.manual_seed(0)
    theirs = build_model(load_flat_config(keys | {"MODEL.ENGINE": "detectron2"}))
    ours = build_model(load_flat_config(keys | {"MODEL.ENGINE": "native"}))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def disks(count: int, size: tuple[int, int] = (96, 128), seed: int = 0) -> Sample:
    """An image with bright disks of two classes, some of them over one another."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    masks = []
    for _ in range(count):
        center, radius = rng.uniform(0, size), rng.uniform(3, 14)
        masks.append((y - center[0]) ** 2 + (x - center[1]) ** 2 < radius**2)
    masks = np.array(masks).reshape(-1, *size)
    noise = rng.normal(60, 10, (*size, 3))
    image = (noise + 100 * masks.any(axis=0)[..., None]).clip(0, 255).astype(np.uint8)
    classes = rng.integers(0, 2, count)
    return Sample(image, LabelLayers.from_masks(masks), classes, image_id=seed, file_name=f"disks_{seed}.png")


def without_objects(size: tuple[int, int] = (64, 64)) -> Sample:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    return Sample(image, LabelLayers.empty(*size), np.zeros(0, dtype=np.int64), file_name="nothing.png")


def write_dataset(folder: Path, count: int = 4) -> Path:
    """Write a COCO data set of images with four disks of two classes each; return its JSON."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for seed in range(count):
        sample = disks(4, (64, 64), seed)
        Image.fromarray(sample.image).save(folder / f"{seed}.png")
        images.append({"id": seed + 1, "file_name": f"{seed}.png", "height": 64, "width": 64})
        for rle, index in zip(sample.layers.to_rles(), sample.classes.tolist(), strict=True):
            rle["counts"] = rle["counts"].decode() if isinstance(rle["counts"], bytes) else rle["counts"]
            about = {"id": len(annotations) + 1, "image_id": seed + 1, "category_id": index + 1, "iscrowd": 0}
            annotations.append({**about, "segmentation": rle})
    categories = [{"id": 1, "name": "round"}, {"id": 2, "name": "rounder"}]
    path = folder / "disks.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def training_config(data: Path, folder: Path, engine: str, **changes: Any) -> Config:
    """A configuration that trains on `write_dataset`; changes: keys with __ for the dots."""
    values = KEYS | {
        "MODEL.ENGINE": engine,
        # statistics over a few pixels would make chaos of differences in the last bit
        "MODEL.RESNETS.NORM": "FrozenBN",
        "DATASETS.TRAIN": [str(data)],
        "DATASETS.TEST": [str(data)],
        "INPUT.MIN_SIZE_TRAIN": [0],
        "INPUT.MIN_SIZE_TEST": 0,
        "INPUT.RANDOM_FLIP": "both",
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.MAX_ITER": 10,
        "SOLVER.STEPS": [7],
        "SOLVER.WARMUP_ITERS": 3,
        "SOLVER.BASE_LR": 0.02,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.LOG_PERIOD": 1,
        "SOLVER.CHECKPOINT_PERIOD": 5,
        "SOLVER.CLIP_GRADIENTS.ENABLED": True,
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
        "TEST.EVAL_PERIOD": 0,
        "TEST.PRECISION": "float32",  # Detectron2 itself stays in it
        "TEST.OVERLAYS": 0,
        "OUTPUT_DIR": str(folder),
        "SEED": 3,
    }
    cfg = get_default_config()
    for key, value in (values | {name.replace("__", "."): value for name, value in changes.items()}).items():
        cfg.set(key, value)
    return cfg.freeze()
