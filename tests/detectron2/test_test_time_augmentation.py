"""TEST.AUG.ENABLED by itself is Detectron2's test-time augmentation: its GeneralizedRCNNWithTTA on the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2_cases import ARCHITECTURES, KEYS, disks, in_both_engines, require_detectron2

require_detectron2()

from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import GeneralizedRCNNWithTTA

from detseg.config import Config, load_flat_config
from detseg.detectron2.config import to_cfg_node
from detseg.inference.predictor import Predictor
from detseg.inference.validation import InferenceOptions
from detseg.models.base import Segmenter
from detseg.structures.predictions import Predictions
from detseg.structures.rle import decode

AUGMENTED = {
    "TEST.AUG.ENABLED": True,
    "TEST.AUG.MIN_SIZES": [64, 88, 120],
    "TEST.AUG.MAX_SIZE": 140,  # less than the last of them asks for
    "TEST.DETECTIONS_PER_IMAGE": 60,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.4,
}


def by_detectron2(cfg: Config, network: torch.nn.Module, image: np.ndarray) -> tuple[np.ndarray, ...]:
    """Boxes, scores, classes and masks (N, H, W); one view a batch, since Detectron2 pads batches to their largest."""
    resize = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    seen = resize.get_transform(image).apply_image(image[:, :, ::-1]) if cfg.INPUT.MIN_SIZE_TEST else image[:, :, ::-1]
    given = {"image": torch.from_numpy(np.ascontiguousarray(seen.transpose(2, 0, 1)))}
    given["height"], given["width"] = image.shape[:2]
    model = GeneralizedRCNNWithTTA(to_cfg_node(cfg), network, batch_size=1)
    with torch.no_grad():
        found = model([given])[0]["instances"]
    values = found.pred_boxes.tensor, found.scores, found.pred_classes, found.pred_masks
    return tuple(value.numpy() for value in values)


def by_detseg(cfg: Config, model: Segmenter, image: np.ndarray) -> Predictions:
    return Predictor.from_model(model, InferenceOptions.from_config(cfg), ["round", "rounder"])(image)


def paired(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For every box the index of the nearest other one: scores that differ in the last digit change the order."""
    nearest = np.abs(boxes[:, None] - others[None]).max(axis=2).argmin(axis=1)
    assert len(set(nearest.tolist())) == len(others)
    return nearest


@pytest.mark.parametrize("min_size", [0, 80])
@pytest.mark.parametrize("architecture", ["FPN", "cascade", "C4"])
def test_all_detections_agree(architecture: str, min_size: int):
    theirs, ours = (model.eval() for model in in_both_engines(architecture))
    changes = {**AUGMENTED, "INPUT.MIN_SIZE_TEST": min_size, "INPUT.MAX_SIZE_TEST": 200}
    cfg = load_flat_config({**KEYS, **ARCHITECTURES[architecture], **changes})
    image = disks(12, seed=4).image
    boxes, scores, classes, masks = by_detectron2(cfg, theirs.network, image)
    for model in (theirs, ours):
        found = by_detseg(cfg, model, image)
        assert len(found) == len(boxes) > 10
        found = found.select(paired(boxes, found.boxes))
        np.testing.assert_array_equal(found.classes, classes)
        np.testing.assert_allclose(found.scores, scores, atol=2e-5)
        np.testing.assert_allclose(found.boxes, boxes, atol=2e-3)
        for rle, mask in zip(found.rles, masks, strict=True):
            assert (decode(rle) != mask).sum() <= 2
