"""`detseg report`: one page of a run in whatever state it is, or of several, with the numbers that `evaluate` has."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from run_folders import CLASSES, COUNT, make_data, make_run, predictions

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_file import write_predictions
from detseg.evaluation.evaluate import evaluate
from detseg.fusion.postprocess import Postprocess
from detseg.report.run import page
from detseg.report.run.page import report_page
from detseg.report.run.results import read_run
from detseg.report.run.scores import changed_keys, compare


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and two finished runs on it."""
    folder = tmp_path_factory.mktemp("runs")
    data = make_data(folder / "data")
    make_run(folder / "good", data, quality=1.0, keys=["SOLVER.BASE_LR", "0.02"])
    make_run(folder / "poor", data, quality=0.2)
    return folder


def page_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < 5_000_000
    assert not re.search(r'(?:src|href)="(?!data:|#)', text), "something is loaded from elsewhere"
    assert not re.search(r"<script|@import|url\(http", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "an id comes twice"
    targets = set(re.findall(r'href="#([^"]+)"', text))
    assert targets <= set(ids), f"links lead nowhere: {sorted(targets - set(ids))[:5]}"
    assert text.count("<img") == len(re.findall(r'<img src="data:image/jpeg;base64,[^"]+" alt="[^"]+"', text))
    return text


def test_a_finished_run_has_its_scores_figures_and_pictures(made: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", "--run", str(made / "good")]) == 0
    assert "report.html" in capsys.readouterr().out
    text = page_of(made / "good" / "report.html")
    run = read_run(made / "good")
    kept = [Postprocess(score_threshold=0.3).apply(image) for image in predictions(1.0)]
    expected = evaluate(run.sets[0].dataset, kept, coco=False, group_by="group")
    for row in (expected, *expected["per_class"].values(), *expected["per_group"].values()):
        assert f">{row['object_ap']:.3f}<" in text
        assert f">{row['recall']:.3f}<" in text
    assert ">0.123<" in text  # COCO AP as the final evaluation wrote it
    assert re.search(r"<small>0\.\d{3}–[01]\.\d{3}</small>", text), "intervals"
    assert text.count("<svg") >= 8
    for title in ("Worst", "Median", "Best", "Confusion matrix", "SOLVER.BASE_LR", "git checkout abc123"):
        assert title in text
    assert "long &lt;b&gt;" in text
    assert "<b>round" not in text.replace("<b>0", "")


def test_another_output_is_not_replaced_unasked(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "r.html"
    output.write_text("mine")
    assert main(["report", "--run", str(made / "good"), "--output", str(output)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert output.read_text() == "mine"


def test_two_runs_are_compared_image_by_image(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "both.html"
    assert main(["report", "--run", str(made / "good"), "--run", str(made / "poor"), "--output", str(output)]) == 0
    text = page_of(output)
    for title in ("poor against good", "Different settings", "Lost most", "SOLVER.BASE_LR"):
        assert title in text
    good, poor = read_run(made / "good").sets[0], read_run(made / "poor").sets[0]
    compared = compare(good, poor)
    name, first, second, gains, ends = compared.rows[0]
    assert (name, len(compared.base_images)) == ("all", COUNT)
    assert gains == pytest.approx(second - first)
    assert ends[0][0] < gains[0] < ends[0][1] < 0, "most objects less is no chance"
    assert f"{gains[0]:+.3f}".replace("-", "\N{MINUS SIGN}") in text
    same = compare(good, good)
    assert (same.rows[0][3] == 0).all()
    assert (same.rows[0][4] == 0).all()


def test_a_training_that_still_runs_gives_what_there_is(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    run = make_run(tmp_path / "run", data, status="running", scored=False)
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"iteration": 40, "kind": "trai')
    assert main(["report", "--run", str(run)]) == 0
    text = page_of(run / "report.html")
    assert "running, or its process was killed" in text
    assert "After 20 iterations" in text or "after 20 iterations" in text
    assert "Losses" in text


def test_a_run_without_test_data(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", None)
    (run / "metrics.jsonl").unlink()  # and without a line yet
    assert main(["report", "--run", str(run)]) == 0
    text = page_of(run / "report.html")
    assert "no test data (DATASETS.TEST)" in text
    assert "Losses" not in text


def test_data_that_moved_away_leaves_the_stored_scores(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    run = make_run(tmp_path / "run", data)
    shutil.rmtree(tmp_path / "data")
    assert main(["report", "--run", str(run)]) == 0
    text = page_of(run / "report.html")
    assert "there is no data set" in text
    assert "0.123" in text
    assert "without the data there are no intervals" in text


def test_images_that_are_missing_or_broken_are_only_left_out(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    run = make_run(tmp_path / "run", data)
    (tmp_path / "data" / "003.png").write_bytes(b"no image")
    assert main(["report", "--run", str(run)]) == 0
    assert "<img" in page_of(run / "report.html")
    for image in (tmp_path / "data").glob("*.png"):
        image.unlink()
    assert main(["report", "--run", str(run)]) == 0
    text = page_of(run / "report.html")
    assert "The images do not exist" in text
    assert "<img" not in text


@pytest.mark.parametrize("damaged", ["{", "[1]"])
def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path, damaged: str) -> None:
    data = make_data(tmp_path / "data")
    run = make_run(tmp_path / "run", data)
    (run / "final_metrics.json").write_text(damaged)
    (run / "run.json").write_text(damaged)
    (run / "predictions" / "val.json.gz").write_bytes(b"\x1f\x8b")
    assert main(["report", "--run", str(run)]) == 0
    text = page_of(run / "report.html")
    for name in ("final_metrics.json", "run.json", "val.json.gz"):
        assert name in text
    assert "Losses" in text


def test_boxes_without_masks_have_their_coco_scores(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    run = make_run(tmp_path / "run", data)
    boxes = predictions()
    for image in boxes:
        image.rles = None
    categories = [{"id": number, "name": text} for number, text in enumerate(CLASSES, start=1)]
    write_predictions(run / "predictions" / "val.json.gz", boxes, categories, {})
    (run / "final_metrics.json").write_text(json.dumps({"object_ap": None, "coco_bbox_ap": 0.321, "per_class": {}}))
    assert main(["report", "--run", str(run)]) == 0
    assert "0.321" in page_of(run / "report.html")


def test_folds_are_one_report_out_of_fold(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    folder = tmp_path / "cv"
    keys = ["DATASETS.FOLD"]
    for fold in range(2):
        make_run(folder / f"fold{fold}", data, keys=[*keys, f"{fold}"])
    (folder / "folds.json").write_text(json.dumps({"folds": 3}))
    assert main(["report", "--run", str(folder)]) == 0
    assert "fold2 of 3 has not started" in page_of(folder / "report.html")
    (folder / "folds.json").write_text(json.dumps({"folds": 2}))
    dataset = CocoDataset.load(data)
    dataset.save(folder / "oof_ground_truth.json", annotations=dataset.rle_annotations())
    categories = [{"id": number, "name": text} for number, text in enumerate(CLASSES, start=1)]
    write_predictions(folder / "oof.json.gz", predictions(), categories, {})
    scores = {"object_ap": 0.5, "folds": {"fold0": {"object_ap": 0.111}, "fold1": {"object_ap": 0.222}}}
    (folder / "final_metrics.json").write_text(json.dumps(scores))
    assert main(["report", "--run", str(folder)]) == 0
    text = page_of(folder / "report.html")
    for part in ("out of fold", "fold 0", "fold 1", "0.111", "0.222", "finished"):
        assert part in text


def test_the_newest_of_numbered_runs_is_taken_and_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make_run(tmp_path / "name" / "002", None)
    make_run(tmp_path / "name" / "010", None)
    assert main(["report", "--run", str(tmp_path / "name")]) == 0
    assert (tmp_path / "name" / "010" / "report.html").exists()
    (tmp_path / "empty").mkdir()
    for wrong, said in ((tmp_path / "empty", "contains no run"), (tmp_path / "nothing", "is not a folder")):
        assert main(["report", "--run", str(wrong)]) == 2
        assert said in capsys.readouterr().err
    make_run(tmp_path / "of_fit" / "run", None)
    assert main(["report", "--run", str(tmp_path / "of_fit")]) == 2
    assert f"did you mean {tmp_path / 'of_fit' / 'run'}?" in capsys.readouterr().err
    twice = str(tmp_path / "name")
    assert main(["report", "--run", twice, twice]) == 2
    assert "is given twice" in capsys.readouterr().err


def test_changed_keys_say_who_set_them(tmp_path: Path) -> None:
    base, own = tmp_path / "base.yaml", tmp_path / "own.yaml"
    base.write_text("SOLVER: {BASE_LR: 0.5, GAMMA: 0.3}\n")
    own.write_text("_BASE_: base.yaml\nSOLVER: {BASE_LR: 0.25}\n")
    run = make_run(tmp_path / "run", None, keys=["SOLVER.BASE_LR", "0.125", "SOLVER.GAMMA", "0.3"])
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "config": str(own), "folder": str(tmp_path)}))
    rows = {key: (value, origin) for key, value, _, origin in changed_keys(read_run(run))}
    assert rows["SOLVER.BASE_LR"] == (0.125, "command line")
    assert rows["SOLVER.GAMMA"][1].endswith("base.yaml:1")


def test_a_page_that_is_too_large_has_fewer_pictures(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run(made / "good")
    whole = report_page([run])
    monkeypatch.setattr(page, "LARGEST", len(whole.encode()) - 1)
    smaller = report_page([run])
    assert 0 < smaller.count("<img") <= whole.count("<img")
    assert len(smaller) < len(whole)
    monkeypatch.setattr(page, "LARGEST", 60_000)
    least = report_page([run])
    assert "<img" not in least
    assert len(least) < len(smaller)
    assert "Confusion matrix" in least
