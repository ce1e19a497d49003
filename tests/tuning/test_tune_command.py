"""`detseg tune_thresholds`: files in, files out, and one clear message for what cannot be tuned."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scoring_cases import SIZE, predictions_of, random_case, rectangle, truth_of

from detseg.cli.main import main
from detseg.coco.predictions_file import read_predictions, write_predictions
from detseg.evaluation.evaluate import evaluate
from detseg.evaluation.ground_truth import GroundTruth
from detseg.fusion.options import FusionOptions
from detseg.fusion.postprocess import Postprocess
from detseg.tuning.inputs import read_inputs

CATEGORIES = [{"id": 1, "name": "kind 0"}, {"id": 2, "name": "kind 1"}]


def write_truth(path, truth, folds=None):
    images, annotations = [], []
    for position, image in enumerate(truth.images):
        entry = {"id": image.image_id, "file_name": image.file_name, "height": image.height, "width": image.width}
        images.append(entry if folds is None else {**entry, "part": folds[position]})
        for rle, index, crowd in zip(image.rles, image.classes, image.crowd, strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": image.image_id, "category_id": int(index) + 1}
            annotation |= {"iscrowd": int(crowd), "bbox": [0, 0, 1, 1], "area": 1}
            annotations.append({**annotation, "segmentation": {**rle, "counts": rle["counts"].decode()}})
    path.write_text(json.dumps({"images": images, "categories": CATEGORIES, "annotations": annotations}))


@pytest.fixture
def case(tmp_path):
    truth, predictions = random_case(5, images=6, objects=20)
    write_truth(tmp_path / "gt.json", truth, folds=[0, 0, 1, 1, 2, 2])
    write_predictions(tmp_path / "p.json.gz", predictions, CATEGORIES, {})
    return tmp_path, truth, predictions


def words(folder, *more, predictions=("p.json.gz",)):
    paths = [str(folder / name) for name in predictions]
    given = ["--predictions", *paths, "--ground-truth", str(folder / "gt.json"), "--output", str(folder / "post.yaml")]
    return ["tune_thresholds", *given, "--bootstrap", "20", *more]


def test_files_and_numbers(case, capsys):
    folder, truth, predictions = case
    assert main(words(folder, "--only", "score_threshold", "min_area", "--rounds", "1")) == 0
    out = capsys.readouterr().out
    table = json.loads((folder / "post.json").read_text())
    found = evaluate(truth, Postprocess.load(folder / "post.yaml").apply_all(predictions), coco=False)["object_ap"]
    assert table["in_sample"]["after"]["value"] == pytest.approx(found, abs=1e-12)
    assert f"scored by evaluate: {found:.4f}" in out
    assert "5 folds, random, seed 0" in out
    assert (folder / "post.png").read_bytes().startswith(b"\x89PNG")
    assert [curve["name"] for curve in table["curves"]][:2] == [
        "score_threshold of kind 0",
        "score_threshold of kind 1",
    ]
    assert main(words(folder)) == 2
    assert "exist already; pass --overwrite" in capsys.readouterr().err


def test_the_start_is_what_is_compared_with(case, capsys):
    folder, truth, predictions = case
    start = Postprocess(score_threshold=0.35, min_visible_fraction=0.25)
    start.save(folder / "start.yaml")
    assert main(words(folder, "--start", str(folder / "start.yaml"), "--only", "min_area", "--shared")) == 0
    table = json.loads((folder / "post.json").read_text())
    before = evaluate(truth, start.apply_all(predictions), coco=False)["object_ap"]
    assert table["in_sample"]["before"]["value"] == pytest.approx(before, abs=1e-12)
    assert table["cross_fitted"]["before"]["value"] == table["in_sample"]["before"]["value"]
    after = Postprocess.load(folder / "post.yaml")
    assert (after.score_threshold, after.min_visible_fraction) == (0.35, 0.25)


def test_folds_from_a_field_or_from_the_predictions(case, capsys):
    folder, _, predictions = case
    assert main(words(folder, "--only", "min_area", "--rounds", "1", "--fold-field", "part")) == 0
    assert "3 folds, of the images" in capsys.readouterr().out
    assert main(words(folder, "--fold-field", "plate", "--overwrite")) == 2
    assert "6 images lack the field 'plate'" in capsys.readouterr().err
    own = [dataclasses.replace(image, provenance={"fold": index % 2}) for index, image in enumerate(predictions)]
    write_predictions(folder / "oof.json.gz", own, CATEGORIES, {})
    assert main(words(folder, "--only", "min_area", "--overwrite", predictions=("oof.json.gz",))) == 0
    assert "2 folds, of the images" in capsys.readouterr().out


def test_cross_fitted_predictions_score_what_the_table_says(case, capsys):
    """Every image after the settings of the other folds: not those that are written, which have seen it."""
    folder, truth, _ = case
    fitted = folder / "new" / "fitted.json.gz"
    given = ("--only", "score_threshold", "min_area", "--rounds", "1", "--fold-field", "part")
    assert main(words(folder, *given, "--cross-fitted", str(fitted))) == 0
    table = json.loads((folder / "post.json").read_text())
    found = read_predictions(fitted)
    assert found.info["chosen_without_fold"] == table["chosen_without_fold"]
    after = table["cross_fitted"]["after"]["value"]
    assert evaluate(truth, list(found), coco=False)["object_ap"] == pytest.approx(after, abs=1e-12)
    assert after != pytest.approx(table["in_sample"]["after"]["value"])
    (folder / "post.yaml").unlink()
    (folder / "post.json").unlink()
    (folder / "post.png").unlink()
    assert main(words(folder, *given, "--cross-fitted", str(fitted))) == 2
    assert "fitted.json.gz exists already" in capsys.readouterr().err


def test_files_that_share_out_the_images(case, capsys):
    folder, _, predictions = case
    write_predictions(folder / "a.json.gz", predictions[:3], CATEGORIES, {})
    write_predictions(folder / "b.json.gz", predictions[3:], CATEGORIES, {})
    only = ("--only", "min_area", "--rounds", "1", "--overwrite")
    assert main(words(folder, *only, predictions=("a.json.gz", "b.json.gz"))) == 0
    parts = json.loads((folder / "post.json").read_text())["in_sample"]
    assert main(words(folder, *only)) == 0
    assert json.loads((folder / "post.json").read_text())["in_sample"] == parts
    capsys.readouterr()
    assert main(words(folder, *only, predictions=("a.json.gz", "p.json.gz"))) == 2
    assert "images are in several files" in capsys.readouterr().err
    assert main(words(folder, *only, predictions=("a.json.gz",))) == 2
    assert "give --missing leave-out" in capsys.readouterr().err
    assert main(words(folder, *only, "--missing", "leave-out", predictions=("a.json.gz",))) == 0
    assert json.loads((folder / "post.json").read_text())["images"] == 3
    assert main(words(folder, *only, "--missing", "empty", predictions=("a.json.gz",))) == 0
    assert json.loads((folder / "post.json").read_text())["images"] == 6


def test_images_of_one_name_and_id_in_two_folders_are_told_apart(case):
    folder, truth, predictions = case
    names = ("train/0.png", "val/0.png")
    images = [dataclasses.replace(image, file_name=name) for image, name in zip(truth.images, names, strict=False)]
    write_truth(folder / "two.json", GroundTruth(truth.class_names, images))
    files = []
    for number, name in enumerate(names):
        files.append(str(folder / f"{number}.json"))
        own = dataclasses.replace(predictions[number], image_id=images[0].image_id, file_name=name)
        write_predictions(files[-1], [own], CATEGORIES, {})
    (found,) = read_inputs(files, str(folder / "two.json"), fused=False).members
    assert [image.scores.tolist() for image in found] == [image.scores.tolist() for image in predictions[:2]]


def test_members_are_fused_by_tuned_settings(case, capsys):
    folder, _, predictions = case
    moved = [image.select(np.arange(len(image))[::-1]) for image in predictions]
    write_predictions(folder / "q.json.gz", moved, CATEGORIES, {})
    FusionOptions().save(folder / "nms.yaml")
    both = ("p.json.gz", "q.json.gz")
    only = ("--only", "fusion.threshold", "score_threshold", "--shared", "--rounds", "1")
    assert main(words(folder, "--fusion", str(folder / "nms.yaml"), *only, predictions=both)) == 0
    assert 0 < FusionOptions.load(folder / "post_fusion.yaml").threshold <= 1
    assert main(words(folder, "--fusion", str(folder / "nms.yaml"), "--overwrite")) == 2
    assert "--fusion needs several" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--only", "min_size"], "there is no setting 'min_size'"),
        (["--metric", "speed"], "there is no metric 'speed'"),
        (["--also", "mask_threshold"], "predict --soft-masks"),
        (["--folds", "1"], "--folds is 1; expected 2 or more"),
    ],
)
def test_bad_words(case, capsys, more, message):
    assert main(words(case[0], *more)) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert message in error
    assert not (case[0] / "post.yaml").exists()


def test_nothing_to_tune(tmp_path, capsys):
    truth, predictions = random_case(5, images=2)
    for image in truth.images:
        image.rles, image.classes, image.crowd = [], np.zeros(0, dtype=int), np.zeros(0, dtype=bool)
    write_truth(tmp_path / "gt.json", truth)
    write_predictions(tmp_path / "p.json.gz", predictions, CATEGORIES, {})
    assert main(words(tmp_path)) == 2
    assert "has no objects" in capsys.readouterr().err
    truth.images[0].rles, truth.images[0].classes = [rectangle(0, 0, 9, 9, SIZE)], np.zeros(1, dtype=int)
    truth.images[0].crowd = np.zeros(1, dtype=bool)
    write_truth(tmp_path / "gt.json", truth)
    write_predictions(tmp_path / "p.json.gz", [predictions_of([], image_id=n) for n in (1, 2)], CATEGORIES, {})
    assert main(words(tmp_path)) == 2
    assert "no class has both objects and predictions" in capsys.readouterr().err


def test_a_class_without_objects_stays_as_it_is_and_one_image_is_enough(tmp_path, capsys, caplog):
    truth, predictions = random_case(5, images=1, objects=20)
    truth.images[0].classes[:] = 0
    write_truth(tmp_path / "gt.json", truth)
    write_predictions(tmp_path / "p.json.gz", predictions, CATEGORIES, {})
    assert main(words(tmp_path, "--only", "min_area")) == 0
    out = capsys.readouterr().out
    assert "needs images of two folds" in out
    assert "min_area of kind 0" in out
    assert "min_area of kind 1" not in out
    assert "class kind 1: has no objects" in caplog.text


def two_members(folder, kinds):
    """Write a truth of two cells an image, and members that see the left cell ("left"), the right one, or dirt."""
    cells = {"left": rectangle(0, 0, 10, 10), "right": rectangle(20, 0, 30, 10)}
    seen = {
        **{name: [cell] for name, cell in cells.items()},
        "both": [*cells.values()],
        "dirt": [rectangle(0, 20, 9, 29)],
    }
    truth = GroundTruth(["kind 0", "kind 1"], [truth_of([*cells.values()], image_id=number) for number in range(6)])
    write_truth(folder / "gt.json", truth)
    for number, kind in enumerate(kinds):
        score = 0.95 if kind == "dirt" else 0.9
        found = [
            predictions_of(seen[kind], scores=[score] * len(seen[kind]), image_id=image.image_id)
            for image in truth.images
        ]
        write_predictions(folder / f"m{number}.json", found, CATEGORIES, {})
    FusionOptions(method="nms", overlap="mask_iou").save(folder / "fusion.yaml")


@pytest.mark.parametrize(
    ("kinds", "best", "score", "says"),
    [
        (["both", "dirt"], 0, 2 / 3, "the fusion does not beat its best member {} alone"),
        (["dirt", "both"], 1, 2 / 3, "the fusion does not beat its best member {} alone"),
        (["both", "both"], 0, 1, "the fusion does not beat its best member {} alone"),
        (["left", "right"], 0, 1, "the fusion beats its best member {} ("),
    ],
)
def test_the_fusion_stands_beside_each_member_alone(tmp_path, capsys, kinds, best, score, says):
    two_members(tmp_path, kinds)
    members = ["m0.json", "m1.json"]
    fusion = [
        "--fusion",
        str(tmp_path / "fusion.yaml"),
        "--only",
        "score_threshold",
        "fusion.threshold",
        "--rounds",
        "1",
    ]
    # The threshold cannot part the dirt from the cells where both have one score.
    assert main(words(tmp_path, *fusion, "--shared", predictions=members)) == 0
    out = capsys.readouterr().out
    table = json.loads((tmp_path / "post.json").read_text())
    name = str(tmp_path / members[best])
    alone = {"both": 1.0, "left": 0.5, "right": 0.5, "dirt": 0.0}
    for member, kind in zip(members, kinds, strict=True):
        found = table["members"][str(tmp_path / member)]
        assert found["cross_fitted"]["after"]["value"] == pytest.approx(alone[kind])
        assert f"{alone[kind]:.4f}" in next(
            line for line in out.splitlines() if line.startswith(str(tmp_path / member))
        )
    assert table["cross_fitted"]["after"]["value"] == pytest.approx(score)
    assert table["best_member"] == name
    assert table["fusion_beats_best_member"] == (kinds == ["left", "right"])
    assert says.format(name) in table["verdict"]
    assert table["verdict"] in out
    for file in ("post.yaml", "post_fusion.yaml"):
        assert (tmp_path / file).read_text().startswith(f"# {table['verdict']}\n")
    assert FusionOptions.load(tmp_path / "post_fusion.yaml").method == "nms"


def test_members_are_tuned_by_the_search_of_the_fusion(tmp_path, capsys):
    truth, predictions = random_case(5, images=6, objects=20)
    write_truth(tmp_path / "gt.json", truth)
    write_predictions(tmp_path / "a.json", predictions, CATEGORIES, {})
    write_predictions(tmp_path / "b.json", [image.select(image.scores > 0.4) for image in predictions], CATEGORIES, {})
    FusionOptions().save(tmp_path / "fusion.yaml")
    some = ["--only", "score_threshold", "min_area", "--rounds", "2", "--overwrite"]
    assert (
        main(words(tmp_path, *some, "--fusion", str(tmp_path / "fusion.yaml"), predictions=["a.json", "b.json"])) == 0
    )
    fused = json.loads((tmp_path / "post.json").read_text())
    assert main(words(tmp_path, *some, predictions=["a.json"])) == 0
    alone = json.loads((tmp_path / "post.json").read_text())
    of_fused = fused["members"][str(tmp_path / "a.json")]
    for key in ("after", "chosen_without_fold"):
        assert of_fused[key] == alone[key]
    assert of_fused["cross_fitted"]["after"]["value"] == alone["cross_fitted"]["after"]["value"]
    # Of a fusion's settings alone, a member has none: it gets the score threshold.
    only = ["--only", "fusion.threshold", "--fusion", str(tmp_path / "fusion.yaml"), "--overwrite", "--rounds", "1"]
    assert main(words(tmp_path, *only, predictions=["a.json", "b.json"])) == 0
    assert json.loads((tmp_path / "post.json").read_text())["members"][str(tmp_path / "a.json")]["settings_tried"] > 5
