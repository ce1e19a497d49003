"""`predict` from the command line: files written, exit status, refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tifffile

from detseg.cli.main import main
from detseg.coco.predictions_file import read_predictions
from detseg.curation.synthetic import KINDS
from detseg.files.table import read_table
from detseg.formats.label_images import TOP, to_label_image
from detseg.formats.objects import ImageObjects
from detseg.fusion.options import FusionOptions
from detseg.fusion.postprocess import Postprocess
from detseg.inference.predictor import Predictor


def predict(*words) -> int:
    return main(["predict", "--device", "cpu", *map(str, words)])


def test_a_run_over_a_folder(small_run, image_folder, tmp_path, capsys):
    output, labels = tmp_path / "new" / "p.json.gz", tmp_path / "labels"
    words = ("--run", small_run, "--images", image_folder, "--output", output, "--label-images", labels)
    assert predict(*words, "--batch-size", 2) == 0
    file = read_predictions(output)
    assert [category["name"] for category in file.categories] == list(KINDS)
    assert {"checkpoint_hash", "config_hash", "detseg_version", "engine", "postprocess"} <= file.info.keys()
    predictor = Predictor.from_run(small_run, device="cpu")
    found = list(file)
    assert [predictions.file_name for predictions in found] == ["a.png", "b.png", "c.png"]
    for predictions in found:
        direct = predictor(image_folder / predictions.file_name)
        assert len(direct) == len(predictions)
        drawn = tifffile.imread(labels / predictions.file_name.replace("png", "tif"))
        assert np.array_equal(drawn, to_label_image(ImageObjects.from_predictions(predictions), TOP))
    printed = capsys.readouterr().out
    assert "seconds per image" in printed
    assert all(kind in printed for kind in KINDS)
    assert predict(*words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert predict(*words, "--overwrite") == 0


def test_the_summary_agrees_with_the_table_of_the_objects(small_run, image_folder, tmp_path, capsys):
    for part, name in (("x", "a"), ("y", "b"), ("y", "c")):
        (tmp_path / "images" / part).mkdir(parents=True, exist_ok=True)
        shutil.copy(image_folder / f"{name}.png", tmp_path / "images" / part)
    images = [tmp_path / "images" / "x", tmp_path / "images" / "y"]
    words = ["--run", small_run, "--images", *images, "--pixel-size", "0.5", "--score-threshold", "0"]
    assert predict(*words, "--output", tmp_path / "p.json.gz") == 0
    printed = capsys.readouterr().out
    assert "per mm2" in printed
    assert "folder y" in printed
    export = ["--input", tmp_path / "p.json.gz", "--format", "csv", "--output", tmp_path / "t", "--images", *images]
    assert main(["export", "--pixel-size", "0.5", *map(str, export)]) == 0
    table = [row.values for row in read_table(next((tmp_path / "t").glob("*.csv")), ["id"]).rows]
    rows = [row.values for row in read_table(tmp_path / "p_summary.csv", ["kind"]).rows]
    assert [row["kind"] for row in rows] == ["image"] * 3 + ["folder"] * 2 + ["all"]
    for row in rows:
        own = [cell for cell in table if row["kind"] == "all" or cell["image"].startswith(row["name"])]
        assert own
        assert int(row["cells"]) == len(own)
        assert [int(row[f"cells_{kind}"]) for kind in KINDS] == [
            sum(cell["class"] == kind for cell in own) for kind in KINDS
        ]
        for column, of in (("median_area_px", "area_px"), ("median_area_um2", "area_um2")):
            assert float(row[column]) == pytest.approx(np.median([float(cell[of]) for cell in own]), rel=1e-6)
        mean = np.mean([float(cell["intensity_mean"]) for cell in own])
        assert float(row["intensity_mean"]) == pytest.approx(mean, rel=1e-6)

    # The same of several processes and of tiles, from what an interrupted prediction left too: tests below and
    # test_predict_large.py compare the predictions, of which the summary is made when they are written.
    assert predict(*words, "--output", tmp_path / "two.json", "--processes", 2) == 0
    assert (tmp_path / "two_summary.csv").read_bytes() == (tmp_path / "p_summary.csv").read_bytes()

    # Nothing is written over, and it can be left out.
    (tmp_path / "q_summary.csv").write_text("mine")
    assert predict(*words, "--output", tmp_path / "q.json") == 2
    assert "q_summary.csv" in capsys.readouterr().err
    assert predict(*words, "--output", tmp_path / "q.json", "--no-summary") == 0
    assert (tmp_path / "q_summary.csv").read_text() == "mine"


def test_raw_threshold_and_plain_weights(small_run, image_folder, tmp_path):
    numbers = {}
    for name, words in {
        "run": ["--run", small_run],
        "raw": ["--run", small_run, "--raw"],
        "weights": ["--weights", small_run / "checkpoints" / "best.pth"],
        "config": ["--weights", small_run / "checkpoints" / "best.pth", "--config", small_run / "config.yaml"],
        "none": ["--run", small_run, "--score-threshold", "1.0"],
    }.items():
        output = tmp_path / f"{name}.json"
        assert predict(*words, "--images", image_folder / "a.png", "--output", output) == 0
        (predictions,) = read_predictions(output)
        numbers[name] = len(predictions)
    assert numbers["raw"] == numbers["weights"] == numbers["config"] >= numbers["run"]
    assert numbers["raw"] > 0
    assert numbers["none"] == 0


def test_settings_of_classes_in_another_order_change_nothing(small_run, image_folder, tmp_path):
    found = {}
    for name, order in (("same", KINDS), ("reversed", KINDS[::-1])):
        values = dict(zip(KINDS, (0.001, 0.9, 0.05), strict=False))
        Postprocess(classes=order, score_threshold=values).save(tmp_path / "post.yaml")
        FusionOptions(classes=order, threshold=values, method="wbf").save(tmp_path / "fusion.yaml")
        words = ["--postprocess", tmp_path / "post.yaml", "--fusion", tmp_path / "fusion.yaml", "--tta", "none", "h"]
        output = tmp_path / f"{name}.json"
        assert predict("--run", small_run, *words, "--images", image_folder / "a.png", "--output", output) == 0
        (predictions,) = read_predictions(output)
        found[name] = predictions.scores.tolist(), predictions.classes.tolist()
    assert found["same"] == found["reversed"]
    assert found["same"][0]


def test_overrides_change_the_given_configuration(small_run, image_folder, tmp_path):
    weights = ["--weights", small_run / "checkpoints" / "best.pth", "--images", image_folder / "a.png"]
    words = [*weights, "--config", small_run / "config.yaml", "--output", tmp_path / "p.json"]
    assert predict(*words, "TEST.DETECTIONS_PER_IMAGE", "3") == 0
    (predictions,) = read_predictions(tmp_path / "p.json")
    assert len(predictions) <= 3


def test_a_coco_file_gives_ids_and_category_ids(small_run, image_folder, tmp_path):
    categories = [{"id": 10 * index, "name": kind} for index, kind in enumerate(reversed(KINDS), start=1)]
    images = [
        {"id": 40, "file_name": "b.png", "height": 64, "width": 96, "group": "x", "fold": 1, "plane": {}},
        {"id": 30, "file_name": "a.png", "height": 64, "width": 64},
    ]
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    words = ["--images", tmp_path / "set.json", "--image-root", image_folder, "--output", tmp_path / "p.json"]
    assert predict("--run", small_run, *words) == 0
    file = read_predictions(tmp_path / "p.json")
    assert {predictions.image_id: predictions.file_name for predictions in file} == {40: "b.png", 30: "a.png"}
    assert [predictions.metadata for predictions in file] == [{"group": "x", "fold": 1}, {}]
    by_name = {category["name"]: category["id"] for category in categories}
    assert [category["id"] for category in file.categories] == [by_name[kind] for kind in KINDS]


def test_bad_images_are_listed_and_the_others_predicted(small_run, image_folder, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:80])
    (folder / "d.png").write_bytes(b"")
    assert predict("--run", small_run, "--images", folder, "--output", tmp_path / "p.json") == 1
    assert [predictions.file_name for predictions in read_predictions(tmp_path / "p.json")] == ["a.png", "c.png"]
    printed = capsys.readouterr().out
    assert "2 images could not be predicted" in printed
    assert "b.png" in printed
    assert "d.png" in printed


def test_no_image_at_all_leaves_nothing(small_run, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no picture")
    output = ["--output", tmp_path / "new" / "deeper" / "p.json", "--label-images", tmp_path / "labels"]
    for _ in range(2):
        assert predict("--run", small_run, "--images", tmp_path / "images", *output) == 2
        said = capsys.readouterr().err
        assert "none of the 1 images could be predicted" in said
        assert "a.png" in said
        assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--output", "p.json"], "--run"),
        (["--run", "r", "--run", "s", "--config", "c", "--output", "p.json"], "--config"),
        (["--run", "r", "--model-weights", "1", "2", "--output", "p.json"], "--model-weights"),
        (["--run", "r", "--run", "s", "--boxes-of", "3", "--output", "p.json"], "no model 3"),
        (["--weights", "v", "--weights", "w", "--config", "c", "--output", "p.json"], "--config"),
        (["--run", "r", "--config", "c", "--output", "p.json"], "--config"),
        (["--run", "r"], "--output"),
        (["--run", "r", "--output", "p.txt"], "p.txt"),
        (["--run", "r", "--output", "p.json", "--raw", "--postprocess", "x"], "--raw"),
        (["--run", "r", "--output", "p.json", "--score-threshold", "7"], "--score-threshold"),
        (["--run", "r", "--output", "p.json", "SEED", "3"], "SEED 3"),
        (["--run", "gone", "--output", "p.json"], "gone"),
    ],
)
def test_commands_that_cannot_be_are_refused_in_one_line(words, named, image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert predict("--images", image_folder, *words) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_views_models_and_boxes_of_others(small_run, image_folder, tmp_path, caplog):
    image = ("--images", image_folder / "a.png")
    flips, models, masks = tmp_path / "flips.json", tmp_path / "models.json", tmp_path / "masks.json"
    assert predict("--run", small_run, *image, "--tta", "flips", "--soft-masks", "--output", flips) == 0
    assert "chosen for other views" in caplog.text
    file = read_predictions(flips)
    assert file.info["tta"]["views"] == ["none", "h", "v", "hv"]
    (found,) = file
    assert found.provenance["tta"]["mode"] == "merge_then_mask"
    assert found.soft_masks is not None

    last = small_run / "checkpoints" / "last.pth"
    options = ("--raw", "--model-weights", 2, 1, "--boxes-of", 1, "--tta", "off", "--fusion", tmp_path / "fusion.yaml")
    (tmp_path / "fusion.yaml").write_text("method: wbf\nthreshold: 0.6\n")
    assert predict("--run", small_run, "--weights", last, *image, *options, "--output", models) == 0
    file = read_predictions(models)
    assert [(model["weight"], model["boxes"]) for model in file.info["models"]] == [(2, True), (1, False)]
    assert file.info["tta"]["fusion"]["method"] == "wbf"

    assert predict("--weights", last, *image, "--boxes", flips, "--tta", "eight", "--output", masks) == 0
    file = read_predictions(masks)
    (given,) = file
    assert np.array_equal(given.boxes, found.boxes)
    assert np.array_equal(given.scores, found.scores)
    assert given.rles != found.rles
    assert file.info["boxes"] == str(flips)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--tta", "flop"], "flop"),
        (["--boxes", "gone"], "gone"),
        (["--fusion", "gone.yaml"], "gone.yaml"),
        (["--tta", "flips", "--tta-mode", "fuse", "--precision", "float8"], "float8"),
    ],
)
def test_views_and_boxes_that_cannot_be_are_refused(words, named, small_run, image_folder, tmp_path, capsys):
    output = tmp_path / "p.json"
    assert predict("--run", small_run, "--images", image_folder, "--output", output, *words) == 2
    assert named in capsys.readouterr().err
    assert not output.exists()
