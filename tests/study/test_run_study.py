"""A whole study in miniature: every kind of stage, one after the other, to the table; and what runs again."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from study_cases import STUDY, content

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_file import read_predictions
from detseg.config import load_config
from detseg.study import running


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the study's file, where the commands of stages are run in this process: each saves two seconds."""

    def call(words: Sequence[str], log: Path, environment: Mapping[str, str], stopped: Callable[[], bool]) -> int:
        assert environment["WANDB_RUN_GROUP"] == "small"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(" ".join(words) + "\n")
        return main(list(words))

    monkeypatch.setattr(running, "run_command", call)
    monkeypatch.chdir(tmp_path)
    write(content())
    return tmp_path


def write(plain: dict) -> None:
    Path("small.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))


def run(*words: str) -> int:
    return main(["run_study", "--config", "small.yaml", "--output", "out", *words])


def test_every_kind_of_row_comes_to_the_table_once(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert run() == 0
    said = capsys.readouterr().out
    rows = {row["row"]: row for row in csv.DictReader(Path("out/results.csv").read_text().splitlines())}
    assert list(rows) == list(STUDY["rows"])
    assert rows["flips"]["base"] == "baseline"
    assert float(rows["two"]["seconds"]) > float(rows["two"]["training_seconds"]) > 0
    assert float(rows["two"]["training_seconds"]) > float(rows["baseline"]["training_seconds"]), "two models, one"
    results = json.loads(Path("out/results.json").read_text())
    assert results["baseline"]["distinguishable"] is None
    assert results["flips"]["distinguishable"] is False
    leaked = rows["leaked"]
    assert (results["leaked"]["leaked"], results["leaked"]["distinguishable"]) == (True, None)
    assert float(leaked["all_difference"]) == pytest.approx(
        float(leaked["all_object_ap"]) - float(rows["baseline"]["all_object_ap"])
    )
    assert leaked["all_difference_low"] == "", "other images: no paired interval"
    assert "not distinguishable" in Path("out/results.md").read_text()
    assert "not distinguishable" in Path("out/results.html").read_text()
    line = next(line for line in Path("out/results.md").read_text().splitlines() if line.startswith("| leaked"))
    assert ", an illusion |" in line
    truth = CocoDataset.load(next(Path("out/pseudo_label/taught_truth").glob("*/all.json")))
    folders = [record.file_name.split("/")[0] for record in truth.images]
    assert folders.count("train") == 6
    assert folders.count("val") > 0, "its teacher's labels are a part of the truth"
    assert said.count(" done, ") == said.count("[") - said.count("done before") == len(set(said.split("[")[1:]))

    submission = next(Path("out/submit/flips").glob("*/submission.csv"))
    assert submission.read_text().startswith("id,predicted")
    further = next(Path("out/train/further").iterdir())
    cfg = load_config(further / "fold1" / "config.yaml")
    assert cfg.MODEL.WEIGHTS.endswith("/fold{fold}/checkpoints/best.pth"), "each fold begins with its own"
    plain = next(Path("out/train/plain").iterdir())
    cfg = load_config(plain / "fold0" / "config.yaml")
    assert [Path(name).parts[1] for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)] == ["repair", "split"]
    fitted = read_predictions(next(Path("out/tune/classes").glob("*/cross_fitted.json.gz")))
    assert len(fitted) == 6

    assert run("--dry-run") == 0
    assert "\n0 of " in capsys.readouterr().out
    changed = content()
    changed["models"]["taught"]["settings"] = {"SOLVER.BASE_LR": 0.002}
    write(changed)
    assert run("--dry-run") == 0
    planned = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if "changed" in line]
    names = ["train/taught/fold0", "train/taught/fold1", "fuse/two", "tune/two", "evaluate/two"]
    names += ["predict/taught_pseudo", "tune/leaked", "evaluate/leaked"]
    assert planned == [[name, "changed"] for name in names]


def test_what_fails_leaves_out_what_needs_it_and_the_rest_is_done(here: Path, capsys: pytest.CaptureFixture) -> None:
    plain = content()
    plain["repair"] = ["--rules", "holes=perhaps"]
    assert "repair" in plain
    write(plain)
    assert run("--only", "prepare", "split", "repair", "train/plain") == 2
    captured = capsys.readouterr()
    assert "train/plain/fold1: left out: repair/labelled is missing" in captured.out
    assert "1 stages failed" in captured.err
    assert "holes" in captured.err
    assert run("--only", "tune/baseline") == 2
    assert "these stages are needed but not done: train/plain/fold0" in capsys.readouterr().err


def test_wrong_words_and_impossible_models_end_before_anything_begins(
    here: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run("--rows", "flip") == 2
    assert "--rows flip: the study has no such row; did you mean flips?" in capsys.readouterr().err
    assert run("--rows", "zzz") == 2
    assert "--rows zzz: the study has no such row; there are baseline, " in capsys.readouterr().err
    assert run("--workers", "0") == 2
    plain = content()
    plain["models"]["plain"]["settings"] = {"MODEL.RPN.IOU_THRESHOLDS": [0.7, 0.3]}
    plain["models"]["further"]["settings"] = {"SOLVER.OPTIMIZER": "Adem"}
    write(plain)
    assert run() == 2
    error = capsys.readouterr().err
    assert "train/plain: " in error
    assert "train/further: " in error
    plain["models"]["further"]["settings"] = {"SOLVER.MAX_ITTER": 2}
    write(plain)
    assert run("--dry-run") == 2
    error = capsys.readouterr().err
    assert (
        "train/further: settings of the study: unknown key 'SOLVER.MAX_ITTER'; did you mean SOLVER.MAX_ITER?" in error
    )
    assert not Path("out").exists()


def test_the_words_to_continue_are_those_given(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run("--dry-run") == 0
    assert "how long they take is known when some have run" in capsys.readouterr().out, "not 0 s"

    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(running, "run_command", interrupted)
    assert run("--workers", "1", "--only", "prepare", "--ignore-code") == 128 + signal.SIGTERM
    said = capsys.readouterr().out
    assert "run_study --config small.yaml --output out --workers 1 --only prepare --ignore-code" in said.replace(
        "run_study.py", "run_study"
    )
