"""Images of two files are paired by name, by id only where there are no names; classes by name."""

from __future__ import annotations

import csv
import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scoring_cases import predictions_of, random_case, rectangle, truth_of

from detseg.cli.main import main
from detseg.coco.pairing import ImageIndex
from detseg.coco.predictions_file import read_predictions, write_predictions
from detseg.coco.predictions_parsing import ImageEntry
from detseg.errors import DataError
from detseg.evaluation.evaluate import evaluate
from detseg.evaluation.ground_truth import GroundTruth
from detseg.fusion.options import FusionOptions
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


@pytest.mark.parametrize(
    "words",
    [
        "evaluate --predictions p.json --ground-truth gt.json",
        "tune_thresholds --predictions p.json --ground-truth gt.json --output out.yaml",
        "tune_thresholds --predictions p.json --ground-truth gt.json --missing empty --output out.yaml",
        "fuse --inputs p.json p.json --ground-truth gt.json --output out.json",
        "fuse --inputs p.json p.json --ground-truth gt.json --missing empty --output out.json",
        "fuse --inputs p.json same.json --output out.json",
        "fuse --inputs p.json labels --label-class 'kind 0' --output out.json",
        "visualize --predictions p.json --ground-truth gt.json --output out",
        "visualize --predictions p.json --images images --output out",
        "export --input p.json --images images --format csv --output out",
        "export --input p.json --images gt.json --format csv --output out",
        "export --input gt.json --images others --format csv --output out",
        "make_submission --predictions p.json --images gt.json --format dsb2018 --output out.csv",
        "make_submission --predictions p.json --images images --format dsb2018 --output out.csv",
        "make_submission --predictions p.json --score gt.json --format dsb2018 --output out.csv",
    ],
)
def test_predictions_of_other_images_with_the_same_ids_are_refused_with_examples(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth, predictions = random_case(1, images=3)
    names = ["a.png", "b.png", "c.png"]
    write_coco(tmp_path / "gt.json", truth, names)
    for file, folder in (("p.json", "others"), ("same.json", "images")):
        renamed = [
            dataclasses.replace(image, file_name=f"{folder}/{name}" if folder == "images" else f"other_{name}")
            for image, name in zip(predictions, names, strict=True)
        ]
        write_predictions(tmp_path / file, renamed, truth.class_names)
        for image in renamed:
            path = tmp_path / folder / image.file_name.removeprefix("images/")
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (image.width, image.height)).save(path)
    (tmp_path / "labels").mkdir()
    Image.new("L", (50, 40), 1).save(tmp_path / "labels" / "a.png")
    before = {path.name for path in tmp_path.iterdir()}
    assert main(shlex.split(words)) == 2
    message = capsys.readouterr().err
    assert "other_a.png" in message
    assert any(name in message.replace("other_a.png", "") for name in names)
    assert {path.name for path in tmp_path.iterdir()} == before, "nothing is written"


def test_images_in_moved_folders_are_exported_and_submitted_with_their_own_names(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truth, predictions = random_case(1, images=2)
    write_coco(tmp_path / "gt.json", truth, ["train/b.png", "train/a.png"])
    disjoint = list(Postprocess(score_threshold=0.3).apply_all(predictions))
    named = [
        dataclasses.replace(image, image_id=number, file_name=name)
        for image, number, name in zip(disjoint, (2, 1), ("b.png", "a.png"), strict=True)
    ]
    write_predictions(tmp_path / "p.json", named, truth.class_names)
    (tmp_path / "set" / "train").mkdir(parents=True)
    for image, level in zip(named, (7, 9), strict=True):
        Image.new("L", (image.width, image.height), level).save(tmp_path / "set" / "train" / image.file_name)
    assert main(["export", "--input", "p.json", "--images", "set/**/*.png", "--format", "csv", "--output", "out"]) == 0
    with open(tmp_path / "out" / "measurements.csv", newline="", encoding="utf-8") as file:
        levels = {(row["image"], row["intensity_mean"]) for row in csv.DictReader(file)}
    assert levels == {("b.png", "7"), ("a.png", "9")}
    words = "make_submission --predictions p.json --score gt.json --format dsb2018 --output s.csv"
    assert main(words.split()) == 0
    expected = evaluate(truth, disjoint, coco=False)
    assert f"score    {expected['object_ap']:.4f}" in capsys.readouterr().out


def test_files_of_different_images_with_the_same_ids_are_joined(tmp_path):
    cells = [rectangle(0, 0, 10, 10)], [rectangle(20, 20, 30, 40)]
    for name, cell in zip("ab", cells, strict=True):
        own = dataclasses.replace(predictions_of(cell), image_id=1, file_name=f"{name}.png")
        write_predictions(tmp_path / f"{name}.json", [own], ["cell"])
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    output = tmp_path / "both.json"
    assert main(["fuse", "--inputs", *files, "--missing", "leave-out", "--output", str(output)]) == 0
    found = list(read_predictions(output))
    assert [(image.image_id, image.file_name) for image in found] == [(1, "a.png"), (2, "b.png")]
    assert [image.boxes.tolist() for image in found] == [[[0, 0, 10, 10]], [[20, 20, 30, 40]]]


def test_two_images_that_would_be_one_of_the_other_file_are_refused():
    index = ImageIndex([entry(1, "x.png"), entry(2, "y.png")], "own.json")
    with pytest.raises(DataError, match=r"p\.json: image a/x\.png and b/x\.png both match x\.png of own\.json"):
        index.pair([entry(7, "a/x.png"), entry(8, "b/x.png")], "p.json")
    assert index.pair_some([entry(7, "x.png"), entry(8, "z.png")], "p.json")[1] is None
    with pytest.raises(DataError, match=r"z\.png"):
        index.pair_some([entry(8, "z.png")], "p.json")


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


@pytest.mark.parametrize(
    "words",
    [
        "evaluate --predictions p.json --ground-truth gt.json --postprocess S.yaml --csv out",
        "make_submission --predictions p.json --format dsb2018 --postprocess S.yaml --output out",
        "fuse --inputs p.json p.json --postprocess S.yaml --output out.json",
        "fuse --inputs p.json p.json --config F.yaml --output out.json",
        "visualize --predictions p.json --images images --postprocess S.yaml --output out",
        "tune_thresholds --predictions p.json --ground-truth gt.json --start S.yaml --only min_area --output out.yaml",
        "tune_thresholds --predictions p.json p.json --ground-truth gt.json --fusion F.yaml --output out.yaml",
    ],
)
def test_settings_of_classes_in_another_order_change_nothing(words, tmp_path, monkeypatch):
    truth, predictions = random_case(2, images=3)
    names = truth.class_names
    values = dict(zip(names, (0.05, 0.95), strict=True))
    results = {}
    for name, order in (("same", names), ("reversed", names[::-1])):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_coco(Path("gt.json"), truth, [image.file_name for image in truth.images])
        write_predictions("p.json", predictions, names)
        Path("images").mkdir()
        for image in predictions:
            Image.new("L", (image.width, image.height)).save(Path("images", image.file_name))
        Postprocess(classes=order, score_threshold=values).save("S.yaml")
        FusionOptions(classes=order, threshold=values, method="wbf").save("F.yaml")
        assert main(shlex.split(words)) == 0
        files = sorted(path for place in Path().glob("out*") for path in (place, *place.rglob("*")) if path.is_file())
        if words.startswith("fuse"):
            results[name] = [(image.scores.tolist(), image.classes.tolist()) for image in read_predictions("out.json")]
        else:
            results[name] = [path.read_bytes() for path in files if path.suffix != ".png" or path.parent.name == "out"]
    assert results["same"] == results["reversed"]
    assert results["same"], "nothing was compared"
