"""Configuration files mean here what they mean to Detectron2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detectron2_cases import require_detectron2

require_detectron2()

from detectron2.config import get_cfg

from detseg.config import load_config
from detseg.config.schema import default_values, detectron2_defaults
from detseg.detectron2.config import flatten

OLD_FILES = {
    "guessed": "MODEL: {WEIGHT: a.pkl, RPN: {ANCHOR_SIZES: [[8, 16]]}}\nTEST: {DETECTIONS_PER_IMG: 7, AUG_FLIP: False}",
    "0": "VERSION: 0\nMODEL: {RPN_HEAD: {NAME: Mine}, ROI_HEADS: {NMS: 0.3, SCORE_THRESH: 0.2}}",
    "1, panoptic": """
VERSION: 1
MODEL:
  PANOPTIC_FPN: {SEMANTIC_LOSS_SCALE: 2.0, RPN_LOSS_SCALE: 3.0, COMBINE_ON: False, COMBINE_OVERLAP_THRESHOLD: 0.25}
""",
    "1, RetinaNet": """
VERSION: 1
MODEL:
  META_ARCHITECTURE: RetinaNet
  RETINANET: {ANCHOR_SIZES: [[8], [16]], ANCHOR_STRIDES: [8, 16], INFERENCE_TOPK_CANDIDATES: 9}
  RPN: {ANCHOR_SIZES: [[99]]}
""",
}


def plain(value: Any) -> Any:
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def in_both(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file changes of Detectron2's defaults to Detectron2, and of detseg's to detseg."""
    theirs = get_cfg()
    theirs.merge_from_file(str(path), allow_unsafe=True)
    cfg, defaults = load_config(path), default_values()
    known = detectron2_defaults()
    expected = {key: plain(value) for key, value in flatten(theirs) if plain(value) != known[key]}
    found = {key: cfg[key] for key in known if cfg[key] != defaults[key] or key in expected}
    return expected, found


@pytest.mark.parametrize("name", OLD_FILES)
def test_old_versions_are_upgraded_as_by_detectron2(name: str, tmp_path: Path):
    path = tmp_path / "old.yaml"
    path.write_text(OLD_FILES[name])
    expected, found = in_both(path)
    assert expected
    assert found == expected
