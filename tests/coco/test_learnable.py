"""What of a COCO file is an object, and what is said where little or nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.coco.learnable import check_objects, check_sets
from detseg.coco.masks import pixels_of_polygons, to_rle
from detseg.coco.predictions_file import write_predictions
from detseg.errors import DataError
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec

HEIGHT, WIDTH = 40, 100
SQUARE = [50.0, 10.0, 70.0, 10.0, 70.0, 30.0, 50.0, 30.0]


def write(folder: Path, polygons: list[list[float]], crowd: int = 0) -> Path:
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(folder / "a.png")
    annotations: list[dict[str, Any]] = [
        {"id": n, "image_id": 1, "category_id": 1, "iscrowd": int(n <= crowd), "segmentation": [polygon]}
        for n, polygon in enumerate(polygons, start=1)
    ]
    images = [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}]
    path = folder / "set.json"
    categories = [{"id": 1, "name": "cell"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def moved(polygon: list[float], x: float, y: float, scale: float = 1.0) -> list[float]:
    return [scale * value + (y if index % 2 else x) for index, value in enumerate(polygon)]


FRACTIONS = [value / (HEIGHT if index % 2 else WIDTH) for index, value in enumerate(SQUARE)]
SWAPPED = [SQUARE[index ^ 1] for index in range(8)]


@pytest.mark.parametrize(
    ("polygon", "cause"),
    [
        (FRACTIONS, "fractions from 0 to 1"),
        (moved(SWAPPED, 0, 0), "x and y are swapped"),
        (moved(SQUARE, 500, 500), "outside it"),
        (moved(SQUARE, 10.02, 10.52, 0.001), "thinner than a pixel"),
    ],
)
def test_polygons_without_a_pixel_and_why(tmp_path: Path, polygon: list[float], cause: str) -> None:
    dataset = CocoDataset.load(write(tmp_path, [polygon] * 3))
    assert dataset.num_objects == 0
    with pytest.raises(DataError, match=f"nothing to learn(.|\\n)*3 of 3 annotations cover (no|one) pixel.*{cause}"):
        check_objects(dataset)
    mixed = CocoDataset.load(write(tmp_path, [polygon] * 3 + [SQUARE]))
    assert mixed.num_objects == mixed.objects_per_image().sum() == len(mixed.annotations(0).rles) == 1
    (warning,) = check_objects(mixed)
    assert "3 of 4 annotations" in warning
    assert cause in warning


def test_crowd_is_told_of_and_cleared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, [SQUARE, moved(SQUARE, -40, 0)], crowd=2)
    assert main(["inspect_data", "--data", str(path), "--output", str(tmp_path / "report")]) == 0
    said = capsys.readouterr().out
    assert "2 of 2 annotations are crowd regions (iscrowd 1)" in said
    assert "--iscrowd clear" in said
    words = ["prepare", "coco", "--annotations", str(path), "--split", "1", "--output"]
    assert main([*words, str(tmp_path / "kept")]) == 0
    said = capsys.readouterr().out
    assert "WARNING: there is nothing to learn" in said
    assert said.count("WARNING") == 1, "one thing is told once"
    assert CocoDataset.load(tmp_path / "kept" / "all.json").num_objects == 0
    assert main([*words, str(tmp_path / "cleared"), "--iscrowd", "clear"]) == 0
    assert "WARNING" not in capsys.readouterr().out
    assert CocoDataset.load(tmp_path / "cleared" / "all.json").num_objects == 2


def test_scores_of_a_ground_truth_without_objects_are_told_to_be_none(tmp_path: Path, capsys) -> None:
    path = write(tmp_path, [SQUARE], crowd=1)
    write_predictions(tmp_path / "p.json", [Predictions.empty(1, "a.png", HEIGHT, WIDTH)], ["cell"])
    assert main(["evaluate", "--ground-truth", str(path), "--predictions", str(tmp_path / "p.json")]) == 0
    assert "WARNING: there is nothing to learn or to score" in capsys.readouterr().out


def test_boxes_alone_are_one_sentence_also_where_they_are_left_out(tmp_path: Path, capsys) -> None:
    content = json.loads(write(tmp_path, [SQUARE] * 30).read_text())
    for row in content["annotations"]:
        row["bbox"] = [50, 10, 20, 20]
        del row["segmentation"]
    (tmp_path / "set.json").write_text(json.dumps(content))
    for words in ([], ["--skip-bad"]):
        words = [
            "prepare",
            "coco",
            "--annotations",
            str(tmp_path / "set.json"),
            "--output",
            str(tmp_path / "out"),
            *words,
        ]
        assert main(words) == 2
        message = capsys.readouterr().err
        assert message.splitlines()[1].startswith("  - 30 of 30 annotations have a box (bbox) but no mask")
        assert len(message.splitlines()) <= 3
    assert not (tmp_path / "out").exists()


def test_a_few_of_them_are_usual(tmp_path: Path) -> None:
    polygons = [SQUARE] * 9
    assert check_objects(CocoDataset.load(write(tmp_path, [*polygons, moved(SQUARE, 500, 0)]))) == []
    assert check_objects(CocoDataset.load(write(tmp_path, [*polygons, SQUARE], crowd=1))) == []
    with pytest.raises(DataError, match="without annotations"):
        check_objects(CocoDataset.load(write(tmp_path, [])))


def test_a_set_without_images_is_no_set_to_score(tmp_path: Path) -> None:
    dataset = CocoDataset.load(write(tmp_path, [SQUARE]))
    empty = dataset.select(np.zeros(0, np.int64))
    with pytest.raises(DataError, match="it has no images"):
        check_sets([empty])
    assert "it has no images" in check_sets([dataset, empty])[0]


def test_pixels_of_polygons_are_those_that_are_drawn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        count = int(rng.integers(3, 9))
        size = rng.choice([0.3, 1, 3, 10, 60])
        xy = rng.uniform(-5, 45, 2) + size * rng.uniform(0, 1, (count, 2)) * rng.choice([[1, 1], [1, 0.02]])
        polygons = [xy.ravel().tolist()]
        drawn = int(rle_codec.area([to_rle(polygons, HEIGHT, WIDTH)])[0])
        assert pixels_of_polygons(polygons, HEIGHT, WIDTH) == min(drawn, 2)
