"""Data that a training cannot use: told with the place and the remedy before or when it is met, status 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detseg.cli.main import main

SIDE = 64
CONFIG = f"""
_BASE_: {(Path(__file__).parents[1] / "tiny_mask_rcnn.yaml").as_posix()}
SOLVER: {{MAX_ITER: 2}}
TEST: {{EVAL_PERIOD: 0, OVERLAYS: 1}}
"""


def content_of(num_images: int, objects: int) -> dict[str, Any]:
    square = [[8, 8, 30, 8, 30, 30, 8, 30]]
    numbers = range(1, num_images + 1)
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "height": SIDE, "width": SIDE} for n in numbers],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": n * 100 + k, "image_id": n, "category_id": 1, "segmentation": square}
            for n in numbers
            for k in range(objects)
        ],
    }


def train(folder: Path, content: dict[str, Any], *words: str) -> int:
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "set.json").write_text(json.dumps(content), encoding="utf-8")
    for row in content["images"]:
        if not (folder / row["file_name"]).exists():
            Image.fromarray(np.full((SIDE, SIDE), 90, np.uint8)).save(folder / row["file_name"])
    data = f"['{(folder / 'set.json').as_posix()}']"
    fixed = ["DATASETS.TRAIN", data, "DATASETS.TEST", data, "OUTPUT_DIR", str(folder / "run")]
    return main(["train_net", "--num-threads", "1", "--config", str(folder / "config.yaml"), *fixed, *words])


def test_data_without_any_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", "True"]):
        assert train(tmp_path, content_of(3, 0), *words) == 2
        assert "3 images without annotations: there is nothing to learn" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_validation_data_without_any_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    content = content_of(3, 1)
    crowd = [{**row, "iscrowd": 1} for row in content["annotations"]]
    for name, rows in (("none", []), ("crowd", crowd)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**content, "annotations": rows}), encoding="utf-8")
        validation = (tmp_path / f"{name}.json").as_posix()
        assert train(tmp_path, content, "DATASETS.TEST", f"['{validation}']") == 2
        message = capsys.readouterr().err
        assert validation in message
        assert "there is nothing to learn or to score" in message
        assert not (tmp_path / "run").exists()
    # Beside another one it can be meant so: images in which nothing is to be found.
    both = f"['{(tmp_path / 'set.json').as_posix()}', '{(tmp_path / 'none.json').as_posix()}']"
    assert train(tmp_path, content, "DATASETS.TEST", both, "SOLVER.MAX_ITER", "1") == 0
    assert "none.json: 3 images without annotations" in caplog.text


def test_data_without_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, content_of(0, 0)) == 2
    assert "set.json: it has no images" in capsys.readouterr().err


def test_a_config_for_other_classes_than_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, content_of(2, 1), "MODEL.ROI_HEADS.NUM_CLASSES", "3") == 2
    message = capsys.readouterr().err
    for part in (
        "set.json has 1 classes (cell)",
        "MODEL.ROI_HEADS.NUM_CLASSES is 3",
        "set MODEL.ROI_HEADS.NUM_CLASSES 1",
    ):
        assert part in message


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_when_it_is_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    (tmp_path / "2.png").write_bytes(b"")
    assert train(tmp_path, content_of(3, 1), "DATALOADER.NUM_WORKERS", str(workers)) == 2
    message = capsys.readouterr().err
    assert f"{tmp_path / '2.png'}: the file is empty (0 bytes)" in message
    assert "Traceback" not in message


def test_images_that_are_missing_are_told_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = content_of(2, 1)
    assert train(tmp_path, content, "DATASETS.IMAGE_ROOT", str(tmp_path / "run_nowhere")) == 2
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "elsewhere").mkdir()
    assert train(tmp_path, content, "DATASETS.IMAGE_ROOT", str(tmp_path / "elsewhere")) == 2
    message = capsys.readouterr().err
    assert "2 of 2 images are missing; set DATASETS.IMAGE_ROOT" in message
