"""torchvision's Mask R-CNN as a Segmenter: losses, given boxes, ignored regions, its own weights and other classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from models_for_tests import disks, without_objects

from detseg.config import load_flat_config
from detseg.engine.validation import validate_config
from detseg.engines.build import build_model
from detseg.errors import ConfigError
from detseg.models.base import Segmenter
from detseg.models.weights.files import Weights
from detseg.models.weights.loading import load_state
from detseg.models.weights.names import names_of_model

KEYS = {
    "MODEL.META_ARCHITECTURE": "TorchvisionMaskRCNN",
    "MODEL.MASK_ON": True,
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 7,
}


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(0)
    return build_model(load_flat_config(KEYS))


def test_losses_of_images_of_two_sizes_and_of_none(model: Segmenter) -> None:
    model.train()
    losses = model([disks(6, (64, 80)), without_objects((48, 64))])
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    empty = model([without_objects((64, 64))])
    assert empty["loss_mask"] == empty["loss_box_reg"] == 0
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen
    assert all(name.split(".")[2] in ("conv1", "bn1", "layer1") for name in frozen)


def test_what_lies_in_ignored_regions_counts_as_nothing(model: Segmenter) -> None:
    sample = replace(disks(6, (64, 80)), ignore=np.ones((64, 80), dtype=bool))
    losses = model.train()([sample])
    assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
    assert "assign_targets_to_anchors" not in vars(model.rpn)


def test_answers_in_pixels_of_the_output_and_for_given_boxes(model: Segmenter) -> None:
    image = disks(6, (64, 80)).image
    model.eval()
    (found,) = model.predict([image], output_sizes=[(128, 160)], soft_masks=True)
    assert 0 < len(found) <= 7
    assert set(found.classes) <= {0, 1}
    assert all(rle["size"] == [128, 160] for rle in found.rles)
    (again,) = model.predict_masks([image], [found], [(128, 160)])
    assert again.rles == found.rles
    (none,) = model.predict_masks([image], [found.select(np.zeros(0))])
    assert len(none) == 0


def test_without_a_limit_no_detection_is_dropped() -> None:
    """As a slice, -1 would leave the last one out."""
    keys = KEYS | {"TEST.DETECTIONS_PER_IMAGE": -1, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}
    torch.manual_seed(4)  # of many initial weights no detection is left
    unlimited = build_model(load_flat_config(keys)).eval()
    found = len(unlimited.predict([disks(6, (64, 80)).image])[0])
    unlimited.roi_heads.detections_per_img = 10_000
    assert found == len(unlimited.predict([disks(6, (64, 80)).image])[0]) > 1


def test_its_own_names_load_and_other_classes_begin_anew(model: Segmenter) -> None:
    with torch.device("meta"):
        other = build_model(load_flat_config(KEYS | {"MODEL.ROI_HEADS.NUM_CLASSES": 5}))
    other = other.to_empty(device="cpu")
    named = names_of_model(Weights(model.state_dict()), other.state_dict())
    report = load_state(other, named.state, fine_tune=True)
    assert sorted({name.rsplit(".", 1)[0] for name in report.new}) == [
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.box_predictor.cls_score",
        "roi_heads.mask_predictor.mask_fcn_logits",
    ]
    backbone = {
        name.removeprefix("backbone.body."): value
        for name, value in model.state_dict().items()
        if name.startswith("backbone.body.")
    }
    named = names_of_model(Weights(backbone), other.state_dict())
    assert all(name.startswith("backbone.body.") for name in named.state)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.RESNETS.DEPTH", 101),
        ("MODEL.RESNETS.NORM", "GN"),
        ("MODEL.TORCHVISION.NAME", "ssd300_vgg16"),
        ("MODEL.MASK_ON", False),
        ("MODEL.RPN.CONV_DIMS", [64]),
    ],
)
def test_keys_that_it_cannot_follow_are_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        validate_config(load_flat_config(KEYS | {key: value}), training=False)
