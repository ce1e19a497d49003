"""Boxes from other detectors: YOLO text files, COCO results, Predictions files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from detseg.coco.dataset import ImageRecord
from detseg.coco.predictions_file import write_predictions
from detseg.errors import DataError
from detseg.inference.external_boxes import read_boxes
from detseg.inference.image_list import ImageList
from detseg.structures.predictions import Predictions

CLASSES = ["round", "long"]


def files(*names: str) -> ImageList:
    return ImageList([ImageRecord(i + 1, name, Path(name), 0, 0, {}) for i, name in enumerate(names)], {})


def coco(**categories: int) -> ImageList:
    return ImageList([ImageRecord(number, f"{number}.png", Path("x"), 40, 50, {}) for number in (7, 9)], categories)


def test_yolo_rows_become_boxes_in_pixels(tmp_path):
    (tmp_path / "a.txt").write_text("1 0.5 0.25 0.2 0.5 0.75\n\n0 0.1 0.1 0.2 0.2\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text("0 0.5 0.5 1 1\n")
    source = files("a.png", "deep/b.png", "c.png")
    boxes = read_boxes(tmp_path, source, CLASSES)
    first = boxes(source.records[0], 40, 100)
    assert first.boxes.tolist() == [[40, 0, 60, 20], [0, 0, 20, 8]]
    assert first.scores.tolist() == [0.75, 1]
    assert first.classes.tolist() == [1, 0]
    assert first.rles is None
    assert boxes(source.records[1], 10, 20).boxes.tolist() == [[0, 0, 20, 10]]
    assert len(boxes(source.records[2], 10, 20)) == 0, "YOLO writes no file where it finds nothing"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("2 0.5 0.5 0.1 0.1", "the class is 2"),
        ("0 0.5 0.5 0.1", "row 1: expected"),
        ("0 0.5 0.5 0.1 high", "row 1: expected"),
        ("0 0.5 0.5 0.1 nan", "row 1: expected"),
        ("0 1 1 2 2 3 3 4 4", "polygons"),
        ("0 50 50 10 10", "fractions"),
        ("0 0.5 0.5 0.1 0.1 1.5", "fractions"),
        ("0.5 0.5 0.5 0.1 0.1", "the class is 0.5"),
        ("\x00\xff", "row 1: expected"),
    ],
)
def test_broken_yolo_rows_are_named(tmp_path, text, named):
    (tmp_path / "a.txt").write_text(f"{text}\n", encoding="utf-8")
    source = files("a.png")
    with pytest.raises(DataError, match=r"a\.txt.*" + named):
        read_boxes(tmp_path, source, CLASSES)(source.records[0], 40, 40)


def test_yolo_folders_that_do_not_belong_to_the_images_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"a\.txt"):
        read_boxes(tmp_path, files("b.png", "../../a.png"), CLASSES)
    with pytest.raises(DataError, match=r"both one/a\.png and two/a\.png"):
        read_boxes(tmp_path, files("one/a.png", "two/a.png"), CLASSES)
    with pytest.raises(DataError, match="does not exist"):
        read_boxes(tmp_path / "gone", files("a.png"), CLASSES)


@pytest.mark.parametrize("name", ["r.json", "r.json.gz"])
def test_coco_results_are_found_by_image_id_and_class_name(tmp_path, name):
    results = [{"image_id": 9, "category_id": 4, "bbox": [1, 2, 3, 4], "score": 0.5}]
    text = json.dumps(results).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    source = coco(round=2, long=4)
    boxes = read_boxes(tmp_path / name, source, CLASSES)
    assert len(boxes(source.records[0], 40, 50)) == 0
    found = boxes(source.records[1], 40, 50)
    assert found.boxes.tolist() == [[1, 2, 4, 6]]
    assert found.classes.tolist() == [1]
    with pytest.raises(DataError, match="39 x 50"):
        boxes(source.records[1], 39, 50)
    with pytest.raises(DataError, match="COCO file"):
        read_boxes(tmp_path / name, files("7.png"), CLASSES)


def predictions_file(path: Path, categories: list[str]) -> Path:
    found = Predictions(3, "deep/a.png", 40, 50, [[1, 2, 3, 4], [5, 6, 7, 8]], [0.5, 0.25], [0, len(categories) - 1])
    write_predictions(path, [found], categories)
    return path


def test_predictions_of_files_are_found_by_name(tmp_path):
    path = predictions_file(tmp_path / "p.json", ["long", "round"])
    source = files("b.png", "deep/a.png")
    found = read_boxes(path, source, CLASSES)(source.records[1], 40, 50)
    assert found.classes.tolist() == [1, 0]
    assert np.array_equal(found.scores, np.float32([0.5, 0.25]))
    with pytest.raises(DataError, match=r"none of the images to predict \(b\.png\), but .*a\.png"):
        read_boxes(path, files("b.png"), CLASSES)


def test_one_class_fits_one_class_and_others_must_have_names_of_the_models(tmp_path):
    source = files("deep/a.png")
    path = predictions_file(tmp_path / "p.json", ["nucleus"])
    assert read_boxes(path, source, ["cell"])(source.records[0], 40, 50).classes.tolist() == [0, 0]
    with pytest.raises(DataError, match="'nucleus'"):
        read_boxes(path, source, CLASSES)


def test_files_that_are_no_results_are_refused(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match=r"a\.json"):
        read_boxes(tmp_path / "a.json", files("a.png"), CLASSES)
    with pytest.raises(DataError, match="cannot be read"):
        read_boxes(tmp_path / "gone.json", coco(round=1), CLASSES)
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match="YOLO"):
        read_boxes(tmp_path / "a.csv", files("a.png"), CLASSES)
