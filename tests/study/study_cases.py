"""A small study on synthetic cells, and a few of its stages."""

from __future__ import annotations

import copy
from typing import Any

from tiny_networks import TINY_RCNN, TWO_ITERATIONS

from detseg.study.study_file import Study

STUDY: dict[str, Any] = {
    "prepare": {
        "cells": [
            *("make_synthetic", "--train", 6, "--val", 2, "--test", 1, "--height", 64, "--width", 64),
            *("--cells", 4, "--channels", 1),
        ]
    },
    "labelled": "<prepare/cells>/train.json",
    "unlabelled": "<prepare/cells>/val.json",
    "test": "<prepare/cells>/test.json",
    "split": ["--folds", 2, "--similar", 0],
    "repair": ["--rules", "holes=all"],
    "settings": {
        **TINY_RCNN,
        **TWO_ITERATIONS,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "INPUT.CROP.SIZE": [64, 64],
        "TEST.DETECTIONS_PER_IMAGE": 20,
    },
    "views": {"flips": ["--tta", "none", "h"]},
    "models": {
        "plain": {"config": "quickstart/mask_rcnn.yaml", "masks": "repaired"},
        "further": {"config": "quickstart/mask_rcnn.yaml", "weights": "plain"},
        "taught": {
            "config": "quickstart/mask_rcnn.yaml",
            "pseudo": {
                "teachers": ["plain"],
                "gates": {"score": 0.0, "ignore_score": 0.0, "min_sure_share": 0.0},
                "label": ["--similar", 0],
            },
        },
    },
    "rows": {
        "baseline": {"models": ["plain"]},
        "classes": {"models": ["plain"], "tune": ["--only", "score_threshold"], "base": "baseline"},
        "flips": {"models": ["plain"], "view": "flips", "base": "baseline", "submit": "sartorius"},
        "two": {"models": ["plain", "taught"], "fusion": "fusion/nms.yaml", "base": "baseline"},
        "further": {"models": ["further"], "base": "baseline"},
        "leaked": {"models": ["taught"], "leaked_fold": 0, "base": "baseline"},
    },
}


def content(**changes: Any) -> dict[str, Any]:
    """The plain values of the study, with changes at the top."""
    return {**copy.deepcopy(STUDY), **changes}


def study(**changes: Any) -> Study:
    return Study.from_dict(content(**changes), "small")
