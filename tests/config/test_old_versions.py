"""Files of versions 0 and 1 of Detectron2's format; tests/detectron2 compares them with Detectron2's own upgrade."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from detseg.config import load_config
from detseg.errors import ConfigError

VERSION_1 = """
MODEL:
  WEIGHT: model.pkl
  RPN: {ANCHOR_SIZES: [[8, 16]]}
  RETINANET: {ANCHOR_SIZES: [[99]], ANCHOR_STRIDES: [8]}
  ROI_HEADS: {NMS: 0.4}
TEST: {DETECTIONS_PER_IMG: 300, AUG_ON: True}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "old.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("version", ["", "VERSION: 1\n"])
def test_old_names_become_the_new_ones(version: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write(tmp_path, version + VERSION_1)
    with caplog.at_level(logging.WARNING):
        cfg = load_config(path, ["TEST.DETECTIONS_PER_IMAGE", "200"])
    assert cfg.VERSION == 2
    assert (cfg.MODEL.WEIGHTS, cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST) == ("model.pkl", 0.4)
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[8, 16]], "RetinaNet's anchors are those of RetinaNet only"
    assert (cfg.TEST.AUG.ENABLED, cfg.TEST.DETECTIONS_PER_IMAGE) == (True, 200)
    assert cfg.origin("MODEL.WEIGHTS").startswith(f"{path}:")
    assert "MODEL.WEIGHT is MODEL.WEIGHTS" in caplog.text


def test_retinanet_has_its_own_anchors(tmp_path: Path):
    cfg = load_config(write(tmp_path, VERSION_1.replace("MODEL:", "MODEL:\n  META_ARCHITECTURE: RetinaNet")))
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[99]]


def test_version_0_has_one_more_section(tmp_path: Path):
    cfg = load_config(write(tmp_path, "VERSION: 0\nMODEL: {RPN_HEAD: {NAME: Head}, WEIGHT: a.pkl}"))
    assert (cfg.MODEL.RPN.HEAD_NAME, cfg.MODEL.WEIGHTS) == ("Head", "a.pkl")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("VERSION: 2\nMODEL: {WEIGHT: a.pkl}", "MODEL.WEIGHT is not a key of version 2 any more: write MODEL.WEIGHTS"),
        ("VERSION: 1\nMODEL: {RPN_HEAD: {NAME: a}}", "MODEL.RPN_HEAD.NAME is not a key of version 1"),
        ("MODEL: {RETINANET: {ANCHOR_STRIDES: [8]}}", "leave it out"),
        ("VERSION: 1\nMODEL: {RPN_HEAD: {NAMES: a}}", "unknown key 'MODEL.RPN_HEAD.NAMES'"),
        ("VERSION: 1\nMODEL: {WEIGHT: {a: 1}}", "MODEL.WEIGHT"),
    ],
)
def test_names_of_another_version_are_refused_with_the_new_one(text: str, expected: str, tmp_path: Path):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=expected) as raised:
        load_config(path)
    assert f"{path}:" in str(raised.value)
