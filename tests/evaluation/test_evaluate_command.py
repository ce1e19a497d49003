"""`detseg evaluate` from files to table, JSON and CSV."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from scoring_cases import random_case

from detseg.cli.evaluate import score_table
from detseg.cli.main import run_command
from detseg.coco.json_files import annotations_of, write_coco
from detseg.coco.predictions_file import write_predictions
from detseg.evaluation.evaluate import evaluate
from detseg.fusion.postprocess import Postprocess


@pytest.fixture
def case(tmp_path, monkeypatch):
    """gt.json, p.json.gz and results.json of the same case in the working folder."""
    ground_truth, predictions = random_case(4, images=4, classes=2)
    images, annotations = [], []
    for truth in ground_truth.images:
        images.append(
            {"id": truth.image_id, "file_name": truth.file_name, "height": 40, "width": 50, "plate": truth.image_id % 2}
        )
        annotations += annotations_of(
            truth.rles, np.array([10, 20])[truth.classes], image_id=truth.image_id, first_id=len(annotations) + 1
        )
    categories = [{"id": 10, "name": "kind 0"}, {"id": 20, "name": "kind 1"}]
    write_coco(tmp_path / "gt.json", images=images, annotations=annotations, categories=categories)
    write_predictions(tmp_path / "p.json", predictions, categories)
    results = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))["annotations"]
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return ground_truth, predictions, tmp_path


def command(*words):
    return run_command("evaluate", ["--ground-truth", "gt.json", *words], prog="evaluate")


@pytest.mark.parametrize("name", ["p.json", "results.json"])
def test_scores_of_files_are_those_of_the_function(case, name, capsys):
    ground_truth, predictions, folder = case
    assert command("--predictions", name, "--json", "out.json") == 0
    scores = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    assert scores == evaluate(ground_truth, predictions)
    with open(folder / "out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image_id"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["plate"] for row in rows] == ["1", "0", "1", "0"]
    printed = capsys.readouterr().out
    assert f"{scores['object_ap']:.3f}" in printed
    assert "kind 1" in printed


def test_postprocess_and_groups(case, capsys):
    ground_truth, predictions, folder = case
    settings = Postprocess(score_threshold=0.5)
    settings.save(folder / "post.yaml")
    options = ["--postprocess", "post.yaml", "--group-by", "plate", "--csv", "images.csv", "--json", "out.json"]
    assert command("--predictions", "p.json", *options) == 0
    scores = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    assert scores["object_ap"] == evaluate(ground_truth, settings.apply_all(predictions))["object_ap"]
    assert list(scores["per_group"]) == ["0", "1"]
    assert all(scores["per_group"][name]["count_error"] >= 0 for name in "01")
    printed = capsys.readouterr().out.splitlines()
    assert "count error" in printed[0]
    assert f"{scores['per_group']['0']['count_error']:.3f}" in next(line for line in printed if line.startswith("[0]"))
    assert (folder / "images.csv").exists()
    assert not (folder / "out.csv").exists()


def test_groups_that_only_the_predictions_know(case):
    _, predictions, folder = case
    content = json.loads((folder / "gt.json").read_text(encoding="utf-8"))
    for image in content["images"]:
        del image["plate"]
    (folder / "bare.json").write_text(json.dumps(content), encoding="utf-8")
    for image in predictions:
        image.metadata = {"plate": image.image_id % 2}
    write_predictions(folder / "fields.json", predictions, content["categories"])
    options = ["--group-by", "plate", "--json", "a.json"]
    assert command("--predictions", "p.json", *options) == 0
    words = ["--ground-truth", "bare.json", "--predictions", "fields.json", "--group-by", "plate", "--json", "b.json"]
    assert run_command("evaluate", words, prog="evaluate") == 0
    scores = [json.loads((folder / name).read_text(encoding="utf-8")) for name in ("a.json", "b.json")]
    assert scores[0]["per_group"] == scores[1]["per_group"]
    with open(folder / "b.csv", newline="", encoding="utf-8") as file:
        assert [row["plate"] for row in csv.DictReader(file)] == ["1", "0", "1", "0"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--predictions", "missing.json"], "missing.json"),
        (["--predictions", "gt.json"], "has no score"),
        (["--predictions", "p.json", "--json", "gt.json"], "--overwrite"),
        (["--predictions", "p.json", "--group-by", "colour"], "colour"),
        (["--predictions", "p.json", "--max-detections", "-1"], "--max-detections"),
        (["--predictions", "p.json", "--json", "gt.json/scores.json"], "folder"),
    ],
)
def test_refusals(case, capsys, words, message):
    if message == "has no score":
        message = "the score is None"
    assert command(*words) == 2
    assert message in capsys.readouterr().err


def test_the_table_shows_undefined_scores():
    scores = {"object_ap": 0.5, "coco_segm_ap": None, "images": 1200, "per_class": {"a": {}, "b": {"object_ap": None}}}
    lines = score_table(scores).splitlines()
    assert lines[0].split() == ["object", "AP", "images"]
    assert lines[1].split() == ["all", "0.500", "1,200"]
    assert lines[3].split() == ["b", "-", "-"]


def test_intervals_and_the_difference_to_a_base(case, capsys, caplog):
    ground_truth, predictions, folder = case
    names = ["kind 0", "kind 1"]
    write_predictions(folder / "base.json", [image.select(image.scores > 0.7) for image in predictions], names)
    assert command("--predictions", "p.json", "--base", "base.json", "--json", "out.json") == 0
    printed = capsys.readouterr().out
    scores = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    value, low, high = scores["intervals"]["all"]["object_ap"]
    assert value == pytest.approx(scores["object_ap"])
    assert low <= value <= high
    base = evaluate(ground_truth, [image.select(image.scores > 0.7) for image in predictions])
    gain = scores["differences"]["all"]["object_ap"][0]
    assert gain == pytest.approx(scores["object_ap"] - base["object_ap"])
    gain, of_class = scores["differences"]["kind 1"]["object_ap"][0], "per_class"
    assert gain == pytest.approx(scores[of_class]["kind 1"]["object_ap"] - base[of_class]["kind 1"]["object_ap"])
    assert f"{value:.3f} ({low:.3f} to {high:.3f})" in printed
    told = printed.split("Difference to base.json")[1]
    value, low, high = scores["differences"]["all"]["object_ap"]
    assert f"{value:+.3f} ({low:+.3f} to {high:+.3f})" in told, "not taken for scores"

    assert command("--predictions", "p.json", "--base", "p.json", "--json", "same.json") == 0
    same = json.loads((folder / "same.json").read_text(encoding="utf-8"))
    assert same["differences"]["all"]["object_ap"] == [0.0, 0.0, 0.0], "the draws are the same"
    # What a postprocess does to one side only is no difference between the two
    (folder / "post.yaml").write_text("classes: [kind 0, kind 1]\nscore_threshold: 0.7\n")
    words = ["--predictions", "p.json", "--postprocess", "post.yaml", "--base", "p.json"]
    assert command(*words, "--base-postprocess", "post.yaml", "--json", "both.json") == 0
    both = json.loads((folder / "both.json").read_text(encoding="utf-8"))
    assert both["differences"]["all"]["object_ap"] == [0.0, 0.0, 0.0]
    assert "scored as it stands" not in caplog.text
    assert command(*words) == 0
    assert "--base p.json is scored as it is" in caplog.text
    assert command("--predictions", "p.json", "--base-postprocess", "post.yaml") == 2
    capsys.readouterr()
    assert command("--predictions", "p.json", "--base", "none.json") == 2
    assert "none.json" in capsys.readouterr().err
