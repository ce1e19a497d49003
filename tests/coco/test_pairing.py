"""Images of two files are paired by name, by id only where there are no names; classes by name."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scoring_cases import predictions_of, random_case, rectangle, truth_of

from detseg.cli.main import main
from detseg.coco.pairing import ImageIndex
from detseg.coco.predictions_file import write_predictions
from detseg.coco.predictions_parsing import ImageEntry
from detseg.errors import DataError
from detseg.evaluation.evaluate import evaluate
from detseg.evaluation.ground_truth import GroundTruth
from detseg.fusion.postprocess import Postprocess


def entry(image_id, name, height=10):
    return ImageEntry(image_id, name, height, 10)


@pytest.mark.parametrize(
    ("own", "asked", "found"),
    [
        ([(1, "a.png"), (2, "b.png")], (1, "b.png"), 2),  # names are stronger than ids
        ([(1, "train/x.png")], (7, "x.png"), 1),
        ([(1, "x.png")], (7, "images/train/x.tif"), 1),
        ([(1, "a/x.png"), (2, "b/x.png")], (2, "b/x.png"), 2),
        ([(1, "a/x.png"), (2, "b/x.png")], (9, "x.png"), None),  # which one?
        ([(1, "a/x.png")], (9, "b/x.png"), None),
        ([(1, "old/x.png")], (1, "new/x.png"), 1),  # the folder was moved
        ([(1, "a.png")], (1, "b.png"), None),
        ([(1, "")], (1, "b.png"), 1),
        ([(1, "a.png")], (1, ""), 1),
        ([(1, "train\\x.png")], (2, "train/x.png"), 1),
    ],
)
def test_which_image_is_which(own, asked, found):
    result = ImageIndex([entry(*item) for item in own], "own.json").find(entry(*asked))
    assert (None if result is None else result.image_id) == found


def test_another_size_is_refused():
    with pytest.raises(DataError, match="has 10 x 10 pixels"):
        ImageIndex([entry(1, "a.png")], "own.json").find(entry(5, "a.png", height=20))


def write_coco(path, truth, names):
    images = [
        {"id": image.image_id, "file_name": name, "height": image.height, "width": image.width}
        for image, name in zip(truth.images, names, strict=True)
    ]
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(truth.class_names)]
    annotations = []
    for image in truth.images:
        for rle, index in zip(image.rles, image.classes, strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": image.image_id, "category_id": int(index) + 1}
            annotation |= {"segmentation": {**rle, "counts": rle["counts"].decode()}, "iscrowd": 0, "area": 1}
            annotations.append({**annotation, "bbox": [0, 0, 1, 1]})
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))


@pytest.mark.parametrize("command", ["evaluate", "tune_thresholds"])
def test_predictions_of_other_images_with_the_same_ids_are_refused_with_examples(command, tmp_path, capsys):
    truth, predictions = random_case(1, images=3)
    write_coco(tmp_path / "gt.json", truth, ["a.png", "b.png", "c.png"])
    renamed = [dataclasses.replace(image, file_name=f"other{index}.png") for index, image in enumerate(predictions)]
    write_predictions(tmp_path / "p.json", renamed, truth.class_names)
    words = [command, "--ground-truth", str(tmp_path / "gt.json"), "--predictions", str(tmp_path / "p.json")]
    words += ["--output", str(tmp_path / "out.yaml")] if command == "tune_thresholds" else []
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "other0.png" in message
    assert "a.png" in message


def test_images_are_scored_by_name_whatever_their_ids():
    cells = [[rectangle(0, 0, 10, 10)], [rectangle(20, 20, 30, 40)]]
    truth = GroundTruth(["cell"], [truth_of(cell, image_id=number) for number, cell in enumerate(cells)])
    for image, name in zip(truth.images, ("train/a.png", "train/b.png"), strict=True):
        image.file_name = name
    swapped = [
        dataclasses.replace(predictions_of(cell, image_id=1 - number), file_name=name)
        for number, (cell, name) in enumerate(zip(cells, ("a.png", "b.png"), strict=True))
    ]
    assert evaluate(truth, swapped, coco=False)["object_ap"] == 1


def test_settings_belong_to_class_names_in_any_order():
    settings = Postprocess(classes=("round", "long"), score_threshold={"round": 0.2, "long": 0.7})
    reordered = settings.for_classes(["long", "round"])
    assert reordered.values("score_threshold", np.array([0, 1])).tolist() == [0.7, 0.2]
