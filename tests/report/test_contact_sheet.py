"""The contact sheet of training samples, and `visualize --augmented`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.cli.main import main
from detseg.report.contact_sheets import PER_SHEET, contact_sheet
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

CONFIG = """
MODEL: {ROI_HEADS: {NUM_CLASSES: 1}}
INPUT:
  MIN_SIZE_TRAIN: [0]
  RANDOM_AFFINE: {ROTATION: 180}
  RANDOM_CONTRAST: 0.3
DATASETS: {TRAIN: [%s]}
SEED: 5
"""


def sample_of(height: int, width: int, dtype: type = np.uint8, channels: int = 1) -> Sample:
    labels = np.zeros((height, width), np.int32)
    labels[5:20, 5:25] = 1
    image = np.full((height, width, channels), 100, dtype)
    ignore = np.zeros((height, width), bool)
    ignore[-10:] = True
    return Sample(image, LabelLayers.from_label_image(labels), np.array([0]), ignore, 1, "folder/name.png")


def test_samples_of_any_size_type_and_number_are_drawn() -> None:
    samples = [
        sample_of(40, 60),
        sample_of(90, 30, np.uint16, 3),
        sample_of(64, 64, np.float32, 5),
        Sample(np.zeros((10, 10, 2), np.uint8), LabelLayers.empty(10, 10)),
        Sample(np.zeros((10, 10, 1), np.uint8)),
    ]
    for count in (1, 2, 4, 5):
        picture = contact_sheet(samples[:count], class_names=["cell", "other"], caption="words")
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
    large = contact_sheet([sample_of(1000, 1400)])
    assert large.shape[1] < 900


def test_intensities_are_those_of_the_sample_and_not_stretched() -> None:
    plain = Sample(np.full((64, 64, 1), 100, np.float32), LabelLayers.empty(64, 64))
    for value_range, expected in (((0.0, 255.0), 100), ((0.0, 200.0), 128)):
        picture = contact_sheet([plain], value_range=value_range)
        values, counts = np.unique(picture[..., 0], return_counts=True)
        inner = dict(zip(values.tolist(), counts.tolist(), strict=True))
        assert inner.get(expected, 0) >= 2 * 320 * 320


def test_objects_are_drawn_on_the_right_and_ignored_regions_striped() -> None:
    picture = contact_sheet([sample_of(64, 64)])
    coloured = np.abs(picture.astype(int) - picture.mean(axis=2, keepdims=True)).max(axis=2) > 20
    left, right = np.split(coloured[:, : coloured.shape[1] // 2 * 2], 2, axis=1)
    assert right.sum() > 3000
    assert left.sum() < 400, "only the legend's square"


def data_set(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (60, 80), dtype=np.uint8)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 60, "width": 80})
        annotations.append(
            {
                "id": number + 1, "image_id": number, "category_id": 1, "iscrowd": 0, "area": 100,
                "bbox": [10, 10, 10, 10], "segmentation": [[10, 10, 20, 10, 20, 20, 10, 20]],
            }
        )  # fmt: skip
    path = folder / "train.json"
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_the_command_draws_what_a_training_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG % data_set(tmp_path), encoding="utf-8")
    words = ["visualize", "--augmented", "2", "--config", str(config), "--output", str(tmp_path / "out")]
    assert main([*words, "INPUT.RANDOM_FLIP", "both"]) == 0
    first = (tmp_path / "out" / "augmented.png").read_bytes()
    assert "2 samples" in capsys.readouterr().out
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite", "INPUT.RANDOM_FLIP", "both"]) == 0
    assert (tmp_path / "out" / "augmented.png").read_bytes() == first, "the same seed, the same picture"
    assert main([*words, "--overwrite", "--seed", "9", "INPUT.RANDOM_FLIP", "both"]) == 0
    assert (tmp_path / "out" / "augmented.png").read_bytes() != first
    words[2] = str(PER_SHEET + 1)
    assert main(words) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"augmented_1.png", "augmented_2.png"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--augmented", "3"], "needs --config"),
        (["--augmented", "0", "--config", "CONFIG"], "expected 1 or more"),
        (["--augmented", "3", "--config", "CONFIG", "--predictions", "p.json"], "--predictions cannot be given"),
        (["--augmented", "3", "--config", "CONFIG", "--seed", "-1"], "--seed is -1"),
        (["--augmented", "3", "--config", "CONFIG", "INPUT.RANDM_FLIP", "both"], "did you mean INPUT.RANDOM_FLIP"),
        (["--augmented", "3", "--config", "CONFIG", "DATASETS.TRAIN", "[]"], "DATASETS.TRAIN"),
        (["--config", "CONFIG", "--ground-truth", "t.json"], "belong to --augmented"),
        (["--ground-truth", "t.json", "INPUT.RANDOM_FLIP", "both"], "unrecognized arguments"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG % data_set(tmp_path), encoding="utf-8")
    words = [str(config) if word == "CONFIG" else word for word in words]
    assert main(["visualize", *words, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
