"""COCO results as other programs write them."""

from __future__ import annotations

import json
from pathlib import Path

from scoring_cases import rectangle


def result(**changes: object) -> dict:
    """One result on an image of 40 x 50 pixels; ... leaves a field out."""
    base = {
        "image_id": 1,
        "category_id": 1,
        "score": 0.5,
        "bbox": [0, 0, 5, 5],
        "segmentation": {"size": [40, 50], "counts": rectangle(0, 0, 5, 5)["counts"].decode()},
    }
    base.update(changes)
    return {key: value for key, value in base.items() if value is not ...}


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
