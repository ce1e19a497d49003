"""Classes of training and validation data are matched by name; groups of classes are none; advice in messages works."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_file import write_predictions
from detseg.config import load_config
from detseg.engine.data_sets import load_test_sets, load_training_set
from detseg.errors import DetsegError
from detseg.structures import Predictions

SIDE = 32
GROUP = {"id": 0, "name": "cells", "supercategory": "none"}
RED, WHITE = ({"id": number, "name": name, "supercategory": "cells"} for number, name in ((1, "red"), (2, "white")))


def write(name: str, categories: list[dict[str, Any]], used: list[str]) -> None:
    """Write a COCO file with one image that has an object of each class of `used`."""
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save("a.png")
    ids = {category["name"]: category["id"] for category in categories}
    annotations = [
        {"id": n, "image_id": 1, "category_id": ids[one], "segmentation": [[x, 2, x + 4, 2, x + 4, 9, x, 9]]}
        for n, (one, x) in enumerate(zip(used, range(0, SIDE, 6), strict=False), start=1)
    ]
    images = [{"id": 1, "file_name": "a.png", "height": SIDE, "width": SIDE}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    Path(f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("train", [GROUP, RED, WHITE], ["red", "white", "white"])


def load(test: str, *words: str) -> tuple[CocoDataset, CocoDataset]:
    Path("config.yaml").write_text("MODEL: {ROI_HEADS: {NUM_CLASSES: 2}, DEVICE: cpu}\n", encoding="utf-8")
    cfg = load_config("config.yaml", ["DATASETS.TRAIN=['train.json']", f"DATASETS.TEST=['{test}.json']", *words])
    training = load_training_set(cfg)
    (validation,) = load_test_sets(cfg, training.class_names).values()
    return training, validation


@pytest.mark.parametrize(
    ("categories", "used", "counts"),
    [
        ([GROUP, {**WHITE, "id": 1}], ["white"], [0, 1]),
        ([{"id": 9, "name": "white"}, {"id": 4, "name": "red"}], ["white", "white", "red"], [1, 2]),
        ([{"id": 3, "name": "white"}, {"id": 9, "name": "red"}], ["white", "white", "red"], [1, 2]),
        ([RED, WHITE, {"id": 3, "name": "never"}], ["red", "white"], [1, 1]),
    ],
)
def test_validation_sets_with_other_categories_are_matched_by_name(categories, used, counts):
    write("val", categories, used)
    training, validation = load("val")
    assert training.class_names == validation.class_names == ["red", "white"], "the group is no class"
    assert training.objects_per_image().tolist() == [[1, 2]]
    assert validation.objects_per_image().tolist() == [counts]
    assert len({category.id for category in validation.categories}) == 2


def test_a_group_that_has_objects_is_a_class():
    write("train", [GROUP, RED, WHITE], ["cells", "red", "white"])
    with pytest.raises(DetsegError, match=r"3 classes \(cells, red, white\).*set MODEL.ROI_HEADS.NUM_CLASSES 3"):
        load("train")


def test_the_advice_of_messages_works():
    write("val", [RED, WHITE, {"id": 3, "name": "blue"}], ["red", "blue"])
    with pytest.raises(DetsegError, match="its classes are red, white, blue; expected red, white") as refused:
        load("val")
    learned = re.search(r'set (DATASETS.CLASSES ".*?") and (MODEL.ROI_HEADS.NUM_CLASSES \d)', str(refused.value))
    words = [word for part in learned.groups() for word in shlex.split(part)]
    assert load("val", *words)[1].objects_per_image().tolist() == [[1, 0, 1]]

    Path("NAMES.yaml").write_text("red: red\nblue: white\n", encoding="utf-8")
    advised = re.search(r"`detseg (prepare coco .*?)`", str(refused.value))[1]
    assert main(shlex.split(advised.replace("FILE", "val.json").replace("DIR", "renamed"))) == 0
    assert load("renamed/all")[1].objects_per_image().tolist() == [[1, 1]]

    write("train", [RED, WHITE, {"id": 3, "name": "blue"}], ["red", "white"])
    with pytest.raises(DetsegError, match="blue has no annotation") as refused:
        load("train")
    words = re.search(r'(DATASETS.CLASSES ".*?")', str(refused.value))[1]
    assert load("train", *shlex.split(words))[0].class_names == ["red", "white"]


def test_no_common_class_is_advised_to_be_renamed_only():
    write("val", [{"id": 1, "name": "Red"}], ["Red"])
    with pytest.raises(DetsegError, match=r"val.json: its classes are Red; expected red, white.*Rename") as refused:
        load("val")
    assert "NUM_CLASSES" not in str(refused.value)


def test_a_group_of_the_same_name_is_no_class():
    write("one", [{"id": 0, "name": "cell", "supercategory": "none"}], [])
    content = json.loads(Path("one.json").read_text())
    content["categories"].append({"id": 1, "name": "cell", "supercategory": "cell"})
    Path("one.json").write_text(json.dumps(content))
    assert [(one.id, one.name) for one in CocoDataset.load("one.json").categories] == [(1, "cell")]
    content["categories"].append({"id": 2, "name": "cell", "supercategory": "cell"})
    Path("one.json").write_text(json.dumps(content))
    with pytest.raises(DetsegError, match="'cell' occurs twice"):
        CocoDataset.load("one.json")


@pytest.mark.parametrize("command", ["evaluate", "tune_thresholds", "visualize"])
def test_a_ground_truth_may_lack_a_class_that_is_predicted(command, capsys):
    write("val", [GROUP, {**WHITE, "id": 1}], ["white"])
    write("all", [RED, WHITE], ["white"])
    (rle,), _, _ = CocoDataset.load("all.json").annotations(0)
    boxes = np.array([[0, 2, 4, 9], [0, 2, 4, 9]])
    found = Predictions(1, "a.png", SIDE, SIDE, boxes, [0.9, 0.8], [1, 0], rles=[rle, rle])
    write_predictions("p.json", [found], ["red", "white"])
    words = {"evaluate": "--json s.json", "tune_thresholds": "--output o.yaml --bootstrap 0", "visualize": "--output o"}
    for truth in ("val", "all"):
        asked = f"{command} --ground-truth {truth}.json --predictions p.json --overwrite {words[command]}"
        assert main(asked.split()) == 0
        if command == "evaluate":
            scores = json.loads(Path("s.json").read_text())["per_class"]
            assert scores["white"]["true_positives"] == scores["red"]["false_positives"] == 1
            assert scores["white"]["object_ap"] == 1
