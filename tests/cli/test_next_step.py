"""The last lines of commands name the next ones, which work as they are copied."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.cli.main import main
from detseg.cli.next_step import beside, command_line, print_next
from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_file import write_predictions
from detseg.structures import Predictions

ROOT = Path(__file__).parents[2]
TINY = f"""
_BASE_: {(ROOT / "tests" / "tiny_mask_rcnn.yaml").as_posix()}
DATASETS: {{TRAIN: [my coco/train.json], TEST: [my coco/val.json]}}
SOLVER: {{MAX_ITER: 1, IMS_PER_BATCH: 1}}
TEST: {{OVERLAYS: 0}}
"""


def next_commands(said: str) -> list[list[str]]:
    """The words of the commands in the last lines, without the program's name."""
    lines = [line for line in said.splitlines() if line[:6] in ("next: ", "or:   ", "then: ")]
    assert lines, f"no next command in: {said}"
    assert said.splitlines()[-1] == lines[-1], "they are the last lines"
    words = [shlex.split(line[6:]) for line in lines]
    assert all(first == "detseg" for first, *_ in words)
    return [rest for _, *rest in words]


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    status = main(words)
    said = capsys.readouterr()
    assert status == 0, f"{words}: {said.err}"
    return said.out


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a blank and a quotation mark in its name, with images and label images of six discs each."""
    folder = tmp_path / "my cell's data"
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(6):
        labels = np.zeros((96, 96), np.uint16)
        for label in range(6):
            y, x = 16 + 32 * (label // 3) + random.integers(5), 16 + 30 * (label % 3) + random.integers(5)
            rows, columns = np.ogrid[:96, :96]
            labels[(rows - y) ** 2 + (columns - x) ** 2 < 90 + 10 * label] = label + 1
        image = random.integers(0, 60, labels.shape) + 150 * (labels > 0)
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{number}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{number}.png")
    monkeypatch.chdir(folder)
    return folder


def test_from_folders_to_the_table_by_the_last_lines_alone(cells: Path, capsys: pytest.CaptureFixture[str]):
    words = ["prepare", "label_images", "--images", "images", "--labels", "labels", "--output", "my coco"]
    look, train = next_commands(run([*words, "--split", "0.5", "0.5"], capsys))
    assert (look[0], train[0]) == ("inspect_data", "train_net")
    (again,) = next_commands(run([*look, "--similar", "0"], capsys))
    assert Path(train[2]).is_file(), "what it trains with is what was suggested"
    assert again == train

    Path("tiny.yaml").write_text(TINY)
    predict, evaluate = next_commands(run(["train_net", "--config", "tiny.yaml", "OUTPUT_DIR", "my run"], capsys))
    assert (predict[0], evaluate[0]) == ("predict", "evaluate")
    (look,) = next_commands(run(evaluate, capsys))
    assert look[0] == "visualize"
    run(look, capsys)

    visualize, score = next_commands(run(predict, capsys))
    assert (visualize[0], score[0]) == ("visualize", "evaluate")
    run(score, capsys)
    (export,) = next_commands(run(visualize, capsys))
    (again,) = next_commands(run(export, capsys))
    assert again[:1] == ["visualize"]
    assert again[-1] != visualize[-1], "the pictures that are there stay"
    run(again, capsys)

    _, tune = next_commands(run([*predict, "--raw", "--output", "raw.json"], capsys))
    assert tune[0] == "tune_thresholds"


def test_tuned_settings_are_used_by_the_next_command(cells: Path, capsys: pytest.CaptureFixture[str]):
    words = ["prepare", "label_images", "--images", "images", "--labels", "labels", "--output", "coco", "--split", "1"]
    look, _ = next_commands(run(words, capsys))
    assert look[look.index("--data") + 1] == "coco/all.json"
    truth = CocoDataset.load("coco/all.json")
    found = []
    for index, image in enumerate(truth.images):
        rles, classes, _ = truth.annotations(index)
        boxes = np.array([[0, 0, 9, 9]] * len(rles), np.float32)
        scores = np.linspace(0.3, 0.9, len(rles))
        size = (image.height, image.width)
        found.append(Predictions(image.image_id, image.file_name, *size, boxes, scores, classes, list(rles)))
    write_predictions("a b.json.gz", found, truth.class_names)
    write_predictions("c.json", found, truth.class_names)
    tuning = [
        "--ground-truth",
        "coco/all.json",
        "--output",
        "tuned.yaml",
        "--bootstrap",
        "0",
        "--only",
        "score_threshold",
    ]
    (evaluate,) = next_commands(run(["tune_thresholds", "--predictions", "a b.json.gz", *tuning], capsys))
    run(evaluate, capsys)
    fusion = ["--fusion", str(ROOT / "configs" / "fusion" / "nms.yaml"), "--overwrite"]
    (fuse,) = next_commands(
        run(["tune_thresholds", "--predictions", "a b.json.gz", "c.json", *tuning, *fusion], capsys)
    )
    assert (fuse[0], fuse[-1]) == ("fuse", "tuned_predictions.json.gz")
    (evaluate,) = next_commands(run(fuse, capsys))
    run(evaluate, capsys)
    (export,) = next_commands(run(["fuse", "--inputs", "c.json", "--output", "f.json"], capsys))
    run(export, capsys)
    words = ["--predictions", "c.json", "--format", "dsb2018", "--output", "s.csv", "--images", "coco/all.json"]
    (check,) = next_commands(run(["make_submission", *words], capsys))
    run(check, capsys)
    # Of a run it is known which model gives the predictions of other images.
    write_predictions("of run.json", found, truth.class_names, {"given": {"run": ["my run"]}})
    (predict,) = next_commands(run(["tune_thresholds", "--predictions", "of run.json", *tuning, "--overwrite"], capsys))
    assert predict[:3] == ["predict", "--run", "my run"]
    assert predict[predict.index("--postprocess") + 1] == "tuned.yaml"


@pytest.mark.parametrize("option", [["--folds", "2"], ["--fractions", "0.5", "0.5"]])
def test_what_is_split_is_looked_at_and_trained(option: list[str], cells: Path, capsys: pytest.CaptureFixture[str]):
    words = ["prepare", "label_images", "--images", "images", "--labels", "labels", "--output", "coco", "--split", "1"]
    run(words, capsys)
    (look,) = next_commands(run(["repair", "coco/all.json", "coco/mended.json"], capsys))
    run([*look, "--similar", "0"], capsys)
    look, train = next_commands(run(["split", "coco/mended.json", "--output", "cv", "--similar", "0", *option], capsys))
    run([*look, "--similar", "0"], capsys)
    assert ("--fold" in train) == (option[0] == "--folds")


def test_a_name_that_is_free(tmp_path: Path):
    assert beside(tmp_path / "p.json.gz", "_tuned.yaml") == str(tmp_path / "p_tuned.yaml")
    (tmp_path / "p_tuned.yaml").touch()
    assert beside(tmp_path / "p.json.gz", "_tuned.yaml") == str(tmp_path / "p_tuned2.yaml")
    (tmp_path / "p.json.gz").touch()
    assert beside(tmp_path / "p.json.gz", ".json.gz") == str(tmp_path / "p2.json.gz")


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        ("/usr/bin/detseg", "detseg evaluate 'a b'"),
        ("tools/predict.py", "python tools/evaluate.py 'a b'"),
        ("/x/detseg/__main__.py", "python -m detseg evaluate 'a b'"),
        ("/x/pytest/__main__.py", "detseg evaluate 'a b'"),
        ("my_script.py", "detseg evaluate 'a b'"),
    ],
)
def test_a_command_is_named_in_the_way_in_which_this_one_was_started(
    started: str, expected: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", [started])
    assert command_line("evaluate", "a b") == expected


def test_scripts_of_a_checkout_name_scripts(tmp_path: Path):
    script = ROOT / "datasets" / "make_synthetic.py"
    words = [sys.executable, os.path.relpath(script, tmp_path), "--output", "s", "--train", "2", "--val", "1"]
    said = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    line = said.splitlines()[-2]
    name = shlex.split(line)[2]
    assert (tmp_path / name).resolve() == ROOT / "tools" / "inspect_data.py"


def test_several_commands(capsys: pytest.CaptureFixture[str]):
    print_next("a", "b", then=["c"])
    assert capsys.readouterr().out == "next: a\nor:   b\nthen: c\n"


def test_what_has_nothing_to_learn_is_not_trained_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (30, 20), 9).save(tmp_path / "a.png")
    image = {"id": 1, "file_name": "a.png", "height": 20, "width": 30}
    truth = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "none.json").write_text(json.dumps(truth))
    none = str(tmp_path / "none.json")
    said = run(["prepare", "coco", "--annotations", none, "--output", str(tmp_path / "p"), "--split", "1"], capsys)
    assert "there is nothing to learn" in said
    assert [words[0] for words in next_commands(said)] == ["inspect_data"]
    said = run(["inspect_data", "--data", none, "--output", str(tmp_path / "report")], capsys)
    assert "there is nothing to learn" in said
    assert "next: " not in said
